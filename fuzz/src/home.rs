//! Arbitrary bytes as a disk that may be a home directory, as a disk with signatures, and as a signing key: no panic, and
//! only names of users that are safe on a command line.

use linux::{home, homed, signature};

/// Runs the target on `data`.
pub fn run(data: &[u8]) {
    if let Some(home) = home::find(data).unwrap() {
        assert!(home::is_user_name(&home.user), "{}", home.user);
        assert!(home.user.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)));
    }
    signature::probe(data, data.len() as u64).unwrap();
    let text = String::from_utf8_lossy(data);
    if let Some(key) = homed::parse_key(&text) {
        assert_eq!(homed::parse_key(&homed::key_file(&key)), Some(key));
    }
}
