//! X10: a recorded pairing is of no use to who searches for the code afterwards.

use hmac::{Hmac, KeyInit, Mac};
use pair::Code;
use pair::client::Step;
use sha2::{Digest, Sha256, Sha512};

use crate::world::World;

/// What went over the wire in a pairing with `code`: a field each.
fn record(world: &mut World, code: &Code) -> [Vec<u8>; 4] {
    let (mut conn, mut client) = (world.open(), world.client(code));
    let Some(Step::Send(hello)) = client.poll() else { panic!() };
    conn.receive(world.now, &hello);
    let answer = std::mem::take(&mut conn.sent);
    client.receive(&answer);
    let Some(Step::Send(confirm)) = client.poll() else { panic!() };
    conn.receive(world.now, &confirm);
    let welcome = std::mem::take(&mut conn.sent);
    assert!(conn.knock().is_some());
    [hello[7..39].to_vec(), answer[5..].to_vec(), confirm[4..].to_vec(), welcome[4..68].to_vec()]
}

/// Two desks that show the same code, and nothing else the same.
fn twins() -> (World, World) {
    let mut twin = World::seeded(1);
    let mut draws = 0;
    let (mut same, mut other) = (crate::world::random(1), crate::world::random(99));
    let draw: pair::Random = Box::new(move |bytes| {
        draws += 1;
        if draws <= 2 { same(bytes) } else { other(bytes) }
    });
    twin.server = pair::PairingServer::new("laptop", twin.now, draw);
    (World::seeded(1), twin)
}

/// With the same code in the same channel, every byte that depends on the code is another one each time: so none is a
/// function of the code, and none can be compared with what a searcher computes from a candidate.
#[test]
fn x10_nothing_on_the_wire_is_a_function_of_the_code() {
    let (mut one, mut two) = twins();
    let code = one.digits();
    assert_eq!(two.digits(), code);
    two.client(&code); // another draw of the client's
    let (first, second) = (record(&mut one, &code), record(&mut two, &code));
    for (a, b) in first.iter().zip(&second) {
        assert_ne!(a, b);
        let same = a.iter().zip(b).filter(|(a, b)| a == b).count();
        assert!(same < 8, "{same} bytes are the same");
    }
}

/// All that a searcher can compute from a candidate and the record by hashing: it finds the code no better than any
/// other.
#[test]
fn x10_a_search_over_candidates_finds_no_verifier() {
    let mut world = World::new();
    let code = world.digits();
    let record = record(&mut world, &code);
    let right: u64 = code.text().parse().unwrap();
    let mut found = Vec::new();
    for candidate in right.saturating_sub(500)..right + 500 {
        let text = format!("{candidate:08}");
        if guesses(&text, &record).iter().any(|guess| is_in(guess, &record)) {
            found.push(text);
        }
    }
    assert_eq!(found, Vec::<String>::new());
    assert!(!record.concat().windows(8).any(|window| window == code.text().as_bytes()));
}

fn guesses(text: &str, record: &[Vec<u8>; 4]) -> Vec<Vec<u8>> {
    let prefixed = format!("\x06digits\x08{text}");
    let mut guesses = Vec::new();
    for password in [text.as_bytes(), prefixed.as_bytes()] {
        guesses.push(Sha256::digest(password).to_vec());
        guesses.push(Sha512::digest(password).to_vec());
        for field in record {
            let mac = Hmac::<Sha512>::new_from_slice(password).unwrap();
            guesses.push(mac.chain_update(field).finalize().into_bytes().to_vec());
            let mac = Hmac::<Sha512>::new_from_slice(field).unwrap();
            guesses.push(mac.chain_update(password).finalize().into_bytes().to_vec());
        }
    }
    guesses
}

/// Whether 16 bytes of the guess stand anywhere.
fn is_in(guess: &[u8], record: &[Vec<u8>; 4]) -> bool {
    let has = |part: &[u8]| record.iter().any(|field| field.windows(16).any(|it| it == part));
    guess.chunks_exact(16).any(has)
}
