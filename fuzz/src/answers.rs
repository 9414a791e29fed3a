//! Arbitrary bytes as what registries, servers of objects and web servers answer: no panic, no version that does not
//! last, no token without encryption, no control character in a message.

/// Runs the target on `data`.
pub fn run(data: &[u8]) {
    fetch::fuzz::answers(data);
}
