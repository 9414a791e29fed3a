//! Another machine: how it is named, found, reached and asked.
#![forbid(unsafe_code)]

pub mod ask;
mod line;
pub mod machine;
pub mod own;
pub mod place;
pub mod uri;
pub mod which;
pub mod who;
