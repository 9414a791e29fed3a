//! Tests of the policy with valid and broken stores.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::UNIX_EPOCH;

use super::*;
use crate::key::KeyKind;
use crate::record::{Allowed, check_nqn};
use crate::store::{Credential, NotAdded, PairedHost};
use export::{Access, Secret};
use nvme::auth::credential;
use testkit::Scratch;

const NQN: &str = "nqn.2024-01.test:laptop";
const HOUR: Duration = Duration::from_secs(3600);

/// 2026-12-01T00:00:00Z.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_796_083_200)
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A store with a TLS key `laptop` and a CHAP key `chap`.
fn store() -> (Scratch, Store) {
    let folder = Scratch::new();
    let mut store = Store::open(&folder.0.join("state")).unwrap();
    store.credentials.clear();
    store.put_key(&name("laptop"), &Key::generate(KeyKind::Tls, None).unwrap(), false).unwrap();
    store.put_key(&name("chap"), &Key::generate(KeyKind::Chap, None).unwrap(), false).unwrap();
    (folder, store)
}

fn write(store: &Store, file: &str, text: &str) {
    let path = store.folder().join(file);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn host(nqn: &str, rest: &str) -> String {
    format!(r#"{{"nqn": "{nqn}", "tls_key": "laptop", {rest}}}"#)
}

/// The TLS key of the host [`NQN`].
fn tls_key(policy: &Policy) -> Option<&Secret> {
    Some(&policy.host(NQN)?.credential(credential::TLS_PSK)?.secret)
}

const READ: &str = r#""rules": [{"access": "read-only"}]"#;

/// The only warning, of a store that grants no access.
fn only_warning(store: &Store) -> String {
    let (policy, _, warnings) = read(store, now());
    assert_eq!(policy.hosts, []);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    warnings[0].clone()
}

#[test]
fn host_gets_its_keys_and_rules() {
    let (_folder, store) = store();
    let rules = r#""chap_key": "chap", "tls_compat": true,
        "rules": [{"access": "read-only"}, {"disk": "sdb", "access": "writable"},
        {"disk": "nqn.2014-08.org.nvmexpress:uuid:2f6d1c52-0001-4002-8003-040506070809",
         "access": "read-only"}]"#;
    write(&store, "hosts/one.json", &host(NQN, rules));
    let (policy, next, warnings) = read(&store, now());
    assert_eq!((next, warnings.len()), (None, 0), "{warnings:?}");
    let found = policy.host(NQN).unwrap();
    assert_eq!(found.name, "one");
    let (tls, chap) = (store.key(&name("laptop")).unwrap(), store.key(&name("chap")).unwrap());
    let expected = [
        credential::tls_psk(tls.text().clone(), true),
        nbd::credential::tls_psk(tls.nbd_psk().unwrap()),
        credential::chap_host(chap.text().clone(), true),
    ];
    assert_eq!(found.credentials, expected);
    assert_eq!(found.rules[1].disk.as_deref(), Some("sdb"));
    assert_eq!(found.rules[1].access, Access::Writable);
    let id = found.rules[2].disk.as_deref();
    assert_eq!(id, Some("2f6d1c52-0001-4002-8003-040506070809"), "an NQN is that of an export");
}

#[test]
fn key_id_differs_per_host_and_key() {
    let (_folder, store) = store();
    write(&store, "hosts/one.json", &host(NQN, READ));
    write(&store, "hosts/two.json", &host("nqn.2024-01.test:two", READ));
    let numbers = || {
        let (policy, ..) = read(&store, now());
        policy.hosts.iter().map(|host| host.key).collect::<Vec<_>>()
    };
    let before = numbers();
    assert_eq!(before, numbers());
    assert_ne!(before[0], before[1]);
    store.put_key(&name("laptop"), &Key::generate(KeyKind::Tls, None).unwrap(), true).unwrap();
    let after = numbers();
    assert!(after.iter().all(|number| !before.contains(number)));
}

#[test]
fn expired_rules_are_dropped_and_next_expiry_returned() {
    let (_folder, store) = store();
    let rules = r#""rules": [
        {"access": "read-only", "expires": "2026-12-01T02:00:00Z"},
        {"disk": "a", "access": "writable", "expires": "2026-12-01T01:00:00Z"}]"#;
    write(&store, "hosts/one.json", &host(NQN, rules));
    let rules_at = |moment| {
        let (policy, next, warnings) = read(&store, moment);
        assert!(warnings.is_empty(), "{warnings:?}");
        (policy.host(NQN).map(|host| host.rules.len()), next)
    };
    assert_eq!(rules_at(now()), (Some(2), Some(now() + HOUR)));
    assert_eq!(rules_at(now() + HOUR), (Some(1), Some(now() + 2 * HOUR)));
    assert_eq!(rules_at(now() + 2 * HOUR), (None, None));
}

/// With a clock that starts at 1970, all expired rules would be in force again.
#[test]
fn expiring_rules_need_a_plausible_clock() {
    let (_folder, store) = store();
    let rules = r#""added": "2026-12-01", "rules": [
        {"access": "read-only"}, {"disk": "a", "access": "writable", "expires": "2026-12-02"}]"#;
    write(&store, "hosts/one.json", &host(NQN, rules));
    let (policy, next, warnings) = read(&store, UNIX_EPOCH + HOUR);
    assert_eq!(policy.host(NQN).unwrap().rules.len(), 1);
    assert!(warnings[0].contains("set the clock"), "{warnings:?}");
    assert_eq!(next, Some(now()));
    let (policy, _, warnings) = read(&store, now() - HOUR);
    assert_eq!(policy.host(NQN).unwrap().rules.len(), 2);
    assert!(warnings.is_empty());
}

#[test]
fn broken_host_file_grants_no_access_and_warns() {
    for (text, word) in [
        ("".to_owned(), "not understood"),
        ("{".to_owned(), "not understood"),
        (host("laptop", READ), "not a host NQN"),
        (
            host(NQN, r#""rules": [{"access": "read-only", "expire": "2027-01-01"}]"#),
            "not understood",
        ),
        (host(NQN, READ).replace("laptop\",", "other\","), "no key other"),
        (host(NQN, READ).replace("tls_key", "chap_key"), "is one for TLS"),
        (host(NQN, READ).replace("\"laptop\"", "\"chap\""), "is one for DH-HMAC-CHAP"),
        (format!(r#"{{"nqn": "{NQN}", {READ}}}"#), "has no key"),
        ("x".repeat(70_000), "more than"),
    ] {
        let (_folder, store) = store();
        write(&store, "hosts/one.json", &text);
        let warning = only_warning(&store);
        assert!(warning.contains(word) && warning.contains("one"), "{text:.80}: {warning}");
    }
}

#[test]
fn host_with_one_malformed_key_is_refused() {
    let (_folder, store) = store();
    write(&store, "hosts/one.json", &host(NQN, &format!(r#""chap_key": "chap", {READ}"#)));
    write(&store, "keys/chap", "DHHC-1:00:hunter2:");
    let warning = only_warning(&store);
    assert!(!warning.contains("hunter2"), "{warning}");
}

#[test]
fn files_readable_by_others_grant_no_access() {
    for file in ["hosts/one.json", "keys/laptop"] {
        let (_folder, store) = store();
        write(&store, "hosts/one.json", &host(NQN, READ));
        fs::set_permissions(store.folder().join(file), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(only_warning(&store).contains("chmod 600"));
    }
}

#[test]
fn broken_file_does_not_affect_other_hosts() {
    let (_folder, store) = store();
    write(&store, "hosts/one.json", &host(NQN, READ));
    write(&store, "hosts/two.json", "{");
    write(&store, "hosts/three.txt", "");
    write(&store, "hosts/.four.json.new", "");
    write(&store, "keys/a b", "");
    let (policy, _, warnings) = read(&store, now());
    assert!(policy.host(NQN).is_some());
    assert_eq!(warnings.len(), 3, "{warnings:?}");
}

#[test]
fn hosts_with_the_same_nqn_are_left_out() {
    let (_folder, store) = store();
    write(&store, "hosts/one.json", &host(NQN, READ));
    write(&store, "hosts/two.json", &host(NQN, READ));
    assert!(only_warning(&store).contains("one and two"));
}

#[test]
fn excess_hosts_are_left_out() {
    let (_folder, store) = store();
    for number in 0..=MAX_HOSTS {
        write(
            &store,
            &format!("hosts/h{number:04}.json"),
            &host(&format!("nqn.2024-01.test:{number}"), READ),
        );
    }
    let (policy, _, warnings) = read(&store, now());
    assert_eq!((policy.hosts.len(), warnings.len()), (MAX_HOSTS, 1));
    // Pairing adds no host that would be left out, and still changes one.
    let tls = Key::from_pairing(&Secret::new(vec![7; 32]));
    let paired = |nqn| PairedHost { nqn, name: "x", tls: tls.text(), access: Access::ReadOnly };
    let refused = store.add_paired_host(&paired(NQN), now()).unwrap_err();
    assert!(refused.to_string().contains("storagetm host remove"), "{refused}");
    assert!(store.key_names().iter().all(|name| name.as_str() != "x"));
    store.add_paired_host(&paired("nqn.2024-01.test:7"), now()).unwrap();
}

/// X53: names of files and credentials cannot inject terminal control sequences.
#[test]
fn x53_warnings_are_printable() {
    let (_folder, mut store) = store();
    write(&store, "hosts/\u{1b}[2J.json", "");
    let credential = |name: &str, text: &str| Credential {
        name: name.to_owned(),
        text: Secret::new(text.as_bytes().to_vec()),
    };
    store.credentials.push(credential("storagetm.host.\n\u{1b}[31m", "{}"));
    store
        .credentials
        .push(credential("storagetm.host.x", r#"{"nqn": "nqn.\u001b[2J", "rules": []}"#));
    let (_, _, warnings) = read(&store, now());
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    assert!(warnings.iter().all(|warning| !warning.contains(['\u{1b}', '\n'])), "{warnings:?}");
}

#[test]
fn credential_contains_host_with_inline_keys() {
    let (folder, mut store) = store();
    let key = Key::generate(KeyKind::Tls, None).unwrap();
    let text = String::from_utf8(key.text().bytes().to_vec()).unwrap();
    let json = format!(r#"{{"nqn": "{NQN}", "tls": "{text}", {READ}}}"#);
    fs::write(folder.0.join("storagetm.host.laptop"), &json).unwrap();
    fs::write(folder.0.join("storagetm.disk"), "/dev/sda").unwrap();
    store.credentials = crate::store::credentials_in(&folder.0);
    let (policy, _, warnings) = read(&store, now());
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(tls_key(&policy), Some(key.text()));
    assert!(!format!("{store:?} {policy:?}").contains(&text[16..40]));
    // A client with the same NQN that knew the code does not replace it.
    let (nqn, tls) = (NQN, key.text());
    let paired = PairedHost { nqn, name: "x", tls, access: Access::ReadOnly };
    assert!(store.add_paired_host(&paired, now()).is_err());
    assert_eq!(read(&store, now()).0, policy);
    // Also defined in a file: ambiguous.
    write(&store, "hosts/one.json", &host(NQN, READ));
    assert!(only_warning(&store).contains("laptop"));
}

/// X19: a new store grants no access.
#[test]
fn x19_a_new_store_has_no_key_and_no_host() {
    let folder = Scratch::new();
    let mut store = Store::open(&folder.0.join("state")).unwrap();
    store.credentials.clear();
    assert_eq!(read(&store, now()), (Policy::default(), None, Vec::new()));
    assert_eq!(store.key_names(), []);
}

#[test]
fn paired_host_is_stored_and_replaces_itself() {
    let (_folder, store) = store();
    let tls = Key::from_pairing(&Secret::new(vec![7; 32]));
    let paired = |nqn, name| PairedHost { nqn, name, tls: tls.text(), access: Access::ReadOnly };
    let called = store.add_paired_host(&paired(NQN, "laptop"), now()).unwrap();
    assert_eq!(
        called.as_str(),
        "laptop-2",
        "the key laptop is there already, and is not this host's"
    );
    let (policy, ..) = read(&store, now());
    assert_eq!(tls_key(&policy), Some(tls.text()));
    let again = PairedHost { access: Access::Writable, ..paired(NQN, "another name") };
    assert_eq!(store.add_paired_host(&again, now()).unwrap(), called);
    let (policy, _, warnings) = read(&store, now());
    assert_eq!((policy.hosts.len(), warnings.len()), (1, 0), "{warnings:?}");
    assert_eq!(policy.host(NQN).unwrap().rules[0].access, Access::Writable);
    // Another host with the same name gets another name.
    let other =
        store.add_paired_host(&paired("nqn.2024-01.test:b", "\u{1b}laptop-2"), now()).unwrap();
    assert_ne!(other, called);
    assert!(store.add_paired_host(&paired("laptop", "x"), now()).is_err());
    assert!(check_nqn("laptop").is_err());
}

#[test]
fn removing_a_host_removes_only_its_own_key() {
    let (_folder, store) = store();
    write(&store, "hosts/laptop.json", &host(NQN, READ));
    write(
        &store,
        "hosts/two.json",
        &host("nqn.2024-01.test:two", &format!(r#""chap_key": "chap", {READ}"#)),
    );
    assert!(store.remove_key(&name("laptop")).unwrap_err().to_string().contains("laptop, two"));
    assert_eq!(store.remove_host(&name("two")).unwrap(), []);
    assert_eq!(store.remove_host(&name("laptop")).unwrap(), [name("laptop")]);
    assert_eq!(store.key_names(), [name("chap")]);
    assert!(store.remove_key(&name("laptop")).is_err());
    store.remove_key(&name("chap")).unwrap();
}

/// X16: removal of a host is notified at once.
#[test]
fn x16_watch_reports_removal_of_a_host() {
    let (_folder, store) = store();
    write(&store, "hosts/laptop.json", &host(NQN, READ));
    let mut watch = store.watch().unwrap();
    assert!(!watch.receive().unwrap());
    store.remove_host(&name("laptop")).unwrap();
    assert!(watch.receive().unwrap());
    assert!(!watch.receive().unwrap());
    assert_eq!(read(&store, now()).0, Policy::default());
    assert!(!watch.receive().unwrap(), "reading changes nothing");
}

#[test]
fn allowed_converts_to_access_and_back() {
    for access in [Access::ReadOnly, Access::Writable] {
        assert_eq!(Access::from(Allowed::from(access)), access);
    }
}

#[test]
fn default_folder_is_of_service_else_of_user() {
    let place = |set: &[(&str, &str)], root| {
        let variable =
            |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, v)| (*v).into());
        crate::store::default_folder(&variable, root).map(|path| path.display().to_string())
    };
    let home = ("HOME", "/home/a");
    assert_eq!(place(&[home], false).as_deref(), Some("/home/a/.local/state/storagetm"));
    assert_eq!(place(&[home], true).as_deref(), Some("/var/lib/storagetm"));
    assert_eq!(place(&[home, ("XDG_STATE_HOME", "/s")], false).as_deref(), Some("/s/storagetm"));
    assert_eq!(
        place(&[home, ("XDG_STATE_HOME", "s")], false).as_deref(),
        Some("/home/a/.local/state/storagetm")
    );
    assert_eq!(place(&[home, ("STATE_DIRECTORY", "/v/a:/v/b")], true).as_deref(), Some("/v/a"));
    assert_eq!(place(&[], false), None);
}

#[test]
fn pairing_does_not_extend_a_hosts_rules() {
    let (_folder, store) = store();
    let rules = r#""chap_key": "chap",
        "rules": [{"disk": "sdb", "access": "writable", "expires": "2999-01-01T00:00:00Z"}]"#;
    write(&store, "hosts/one.json", &host(NQN, rules));
    let before = read(&store, now());
    let key = Key::generate(KeyKind::Tls, None).unwrap();
    let (nqn, tls) = (NQN, key.text());
    let paired = PairedHost { nqn, name: "x", tls, access: Access::ReadOnly };
    store.add_paired_host(&paired, now()).unwrap();
    let (policy, next, warnings) = read(&store, now());
    assert!(warnings.is_empty() && next == before.1, "{warnings:?}");
    let found = policy.host(NQN).unwrap();
    assert_eq!((tls_key(&policy), found.rules.len()), (Some(tls), 1));
    let rule = &found.rules[0];
    assert_eq!((rule.disk.as_deref(), rule.access), (Some("sdb"), Access::ReadOnly));
}

#[test]
fn pairing_does_not_revive_a_host_whose_rules_are_over() {
    for (rules, is_over) in [
        (r#"{"access": "read-only", "expires": "2026-11-30"}"#, true),
        ("", true),
        (
            r#"{"access": "read-only", "expires": "2026-11-30"}, {"disk": "sdb", "access": "read-only"}"#,
            false,
        ),
    ] {
        let (_folder, store) = store();
        write(&store, "hosts/one.json", &host(NQN, &format!(r#""rules": [{rules}]"#)));
        let (key, before) =
            (store.key(&name("laptop")).unwrap(), store.host(&name("one")).unwrap());
        let tls = Key::from_pairing(&Secret::new(vec![7; 32]));
        let (nqn, tls) = (NQN, tls.text());
        let paired = PairedHost { nqn, name: "x", tls, access: Access::ReadOnly };
        match store.add_paired_host(&paired, now()) {
            Err(NotAdded::Expired(reason)) => {
                let reason = reason.to_string();
                assert!(is_over && reason.contains("storagetm host remove one"), "{reason}");
                assert_eq!(store.host(&name("one")).unwrap(), before);
                assert_eq!(store.key(&name("laptop")).unwrap(), key);
                // Removed by its owner, it is as any other host.
                store.remove_host(&name("one")).unwrap();
                assert!(store.add_paired_host(&paired, now()).is_ok());
            }
            other => assert!(!is_over && other.is_ok(), "{other:?}"),
        }
    }
}

/// A running server reads the policy at each change of the directory.
#[test]
fn renamed_host_is_authorized_all_the_time() {
    let (_folder, store) = store();
    write(&store, "hosts/one.json", &host(NQN, READ));
    let names = ["one", "two"].map(name);
    let record = store.host(&names[0]).unwrap();
    let is_done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (known, new) in [(0, 1), (1, 0)].repeat(100) {
                store.put_host(&names[new], &record, Some(&names[known])).unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
            is_done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        while !is_done.load(std::sync::atomic::Ordering::Relaxed) {
            let (policy, _, warnings) = read(&store, now());
            assert!(policy.host(NQN).is_some() && warnings.is_empty(), "{warnings:?}");
        }
    });
    assert_eq!(store.hosts().len(), 1);
}
