//! What a client may say, right and wrong, and what the server then does: raw bytes against its sessions, with bytes cut
//! anywhere and requests ended in any order. It knows nothing of what is inside the server.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod corpus;
mod greeting;
mod hostile;
#[path = "../../../../fuzz/src/input.rs"]
#[allow(unreachable_pub, dead_code, reason = "public where the fuzzer is")]
mod input;
mod io;
mod laws;
mod life;
mod long;
mod memory;
mod options;
mod says;
mod states;
mod status;
mod world;

use says as nbd_says;
use world as nbd_world;
