//! The program. It knows nothing: the library does the work.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    storagetm::run(std::env::args_os())
}
