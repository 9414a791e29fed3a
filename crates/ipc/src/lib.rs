//! Processes of our own: [`helper`] starts the program once more without privileges, [`channel`] carries frames and
//! descriptors between the two.
#![forbid(unsafe_code)]

pub mod channel;
pub mod spawn;
