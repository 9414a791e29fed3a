//! The program `storagetm`; see the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    storagetm::run(std::env::args_os())
}
