//! CHAP, in one direction and in both.

use export::{Credential, Secret};
use iscsi::chap::Algorithm;
use iscsi::credential::{chap_initiator, chap_target};
use iscsi::host::{Credentials, Options, Refusal};

use crate::world::{World, credentials, options};

const SECRET: &[u8] = b"secretsecret";
const OTHER: &[u8] = b"anothersecret";

fn secret(bytes: &[u8]) -> Secret {
    Secret::new(bytes.to_vec())
}

fn mutual() -> Vec<Credential> {
    vec![chap_initiator(secret(SECRET), true), chap_target(secret(OTHER))]
}

/// Logs in, and returns why that failed.
fn refusal(credentials: Option<Credentials>, target: Vec<Credential>) -> Option<Refusal> {
    let world = World::with(Options { credentials, ..options() }, target, [usize::MAX; 2]);
    assert_eq!(world.events.logged_in, world.events.refused.is_none(), "{:?}", world.events);
    world.events.refused
}

#[test]
fn right_secret_is_accepted_by_every_algorithm() {
    for algorithm in Algorithm::ALL {
        let own = Credentials { algorithms: vec![algorithm], ..credentials(SECRET, None) };
        assert_eq!(refusal(Some(own), mutual()), None);
    }
}

#[test]
fn wrong_or_missing_secret_is_refused() {
    let failed = Some(Refusal::Status([2, 1]));
    assert_eq!(refusal(Some(credentials(OTHER, None)), mutual()), failed);
    assert!(refusal(None, mutual()).is_some());
    let renamed = Credentials { name: "other".to_owned(), ..credentials(SECRET, None) };
    assert_eq!(refusal(Some(renamed), mutual()), failed);
}

#[test]
fn target_proves_its_secret_or_is_refused() {
    assert_eq!(refusal(Some(credentials(SECRET, Some(OTHER))), mutual()), None);
    let wrong = credentials(SECRET, Some(b"thirdsecret12"));
    assert_eq!(refusal(Some(wrong), mutual()), Some(Refusal::TargetUnproved));
    // Without a secret of the target, there is no proof.
    let one_way = vec![chap_initiator(secret(SECRET), false)];
    assert!(refusal(Some(credentials(SECRET, Some(OTHER))), one_way).is_some());
}

#[test]
fn secret_for_a_target_without_credentials_is_refused() {
    let failed = Some(Refusal::Status([2, 1]));
    assert_eq!(refusal(Some(credentials(SECRET, None)), Vec::new()), failed);
}

/// With equal secrets, a target could have its own challenge answered in a second session.
#[test]
fn equal_secrets_in_both_directions_are_refused() {
    let equal = credentials(SECRET, Some(SECRET));
    assert_eq!(refusal(Some(equal), mutual()), Some(Refusal::SecretsEqual));
}
