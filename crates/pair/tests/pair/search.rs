//! X10: a recorded pairing does not allow an offline search for the code.

use hmac::{Hmac, KeyInit, Mac};
use pair::Code;
use pair::client::Step;
use sha2::{Digest, Sha256, Sha512};

use crate::world::World;

/// Records the fields sent in a pairing with `code`.
fn recording(world: &mut World, code: &Code) -> [Vec<u8>; 4] {
    let (mut conn, mut client) = (world.open(), world.client(code));
    let Some(Step::Send(hello)) = client.poll() else { panic!() };
    conn.receive(world.now, &hello);
    let answer = std::mem::take(&mut conn.sent);
    client.receive(&answer);
    let Some(Step::Send(confirm)) = client.poll() else { panic!() };
    conn.receive(world.now, &confirm);
    let welcome = std::mem::take(&mut conn.sent);
    assert!(conn.request().is_some());
    [hello[7..39].to_vec(), answer[5..].to_vec(), confirm[4..].to_vec(), welcome[4..68].to_vec()]
}

/// Creates two servers with the same code and different randomness.
fn servers_with_same_code() -> (World, World) {
    let mut twin = World::seeded(1);
    let mut draws = 0;
    let (mut same, mut other) = (crate::world::random(1), crate::world::random(99));
    let random_bytes: pair::Random = Box::new(move |bytes| {
        draws += 1;
        if draws <= 2 { same(bytes) } else { other(bytes) }
    });
    twin.server = pair::PairingServer::new("laptop", twin.now, random_bytes);
    (World::seeded(1), twin)
}

/// With the same code in the same channel, all fields differ each time. So none is a function of
/// the code that could be compared with a candidate.
#[test]
fn x10_no_sent_field_is_a_function_of_the_code() {
    let (mut one, mut two) = servers_with_same_code();
    let code = one.digits();
    assert_eq!(two.digits(), code);
    two.client(&code); // another draw of the client's
    let (first, second) = (recording(&mut one, &code), recording(&mut two, &code));
    for (a, b) in first.iter().zip(&second) {
        assert_ne!(a, b);
        let same = a.iter().zip(b).filter(|(a, b)| a == b).count();
        assert!(same < 8, "{same} bytes are the same");
    }
}

/// No hash of a candidate and the recorded fields identifies the code.
#[test]
fn x10_search_over_candidates_finds_no_verifier() {
    let mut world = World::new();
    let code = world.digits();
    let recording = recording(&mut world, &code);
    let right: u64 = code.text().parse().unwrap();
    let mut found = Vec::new();
    for candidate in right.saturating_sub(500)..right + 500 {
        let text = format!("{candidate:08}");
        if guesses(&text, &recording)
            .iter()
            .any(|lock_by_guessing| is_in(lock_by_guessing, &recording))
        {
            found.push(text);
        }
    }
    assert_eq!(found, Vec::<String>::new());
    assert!(!recording.concat().windows(8).any(|window| window == code.text().as_bytes()));
}

fn guesses(text: &str, recording: &[Vec<u8>; 4]) -> Vec<Vec<u8>> {
    let prefixed = format!("\x06digits\x08{text}");
    let mut guesses = Vec::new();
    for password in [text.as_bytes(), prefixed.as_bytes()] {
        guesses.push(Sha256::digest(password).to_vec());
        guesses.push(Sha512::digest(password).to_vec());
        for field in recording {
            let mac = Hmac::<Sha512>::new_from_slice(password).unwrap();
            guesses.push(mac.chain_update(field).finalize().into_bytes().to_vec());
            let mac = Hmac::<Sha512>::new_from_slice(field).unwrap();
            guesses.push(mac.chain_update(password).finalize().into_bytes().to_vec());
        }
    }
    guesses
}

/// Returns whether any 16 bytes of the guess occur in the record.
fn is_in(lock_by_guessing: &[u8], recording: &[Vec<u8>; 4]) -> bool {
    let has = |part: &[u8]| recording.iter().any(|field| field.windows(16).any(|it| it == part));
    lock_by_guessing.chunks_exact(16).any(has)
}
