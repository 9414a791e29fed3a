//! Copies from targets that require keys, in a network namespace.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::alone::{ELSEWHERE, is_alone};
use crate::scene::{
    Folder, MIB, PROGRAM, assert_equal, copy, events, run_expecting, until_arrived,
};
use crate::target::Target;

const HOST: &str = "nqn.2024-01.test:copier";

/// Starts a target that exports the image at an address that requires a key.
fn target(keys: &str, image: &str, more: &[&str]) -> Target {
    let (nvme, nbd) = (format!("nvme:{ELSEWHERE}:0"), format!("nbd:{ELSEWHERE}:0"));
    Target::serve(&[&["--keys", keys, "--listen", &nvme, "--listen", &nbd, image], more].concat())
}

fn owner(keys: &str, args: &[&str]) {
    let run = Command::new(PROGRAM).args(args).args(["--keys", keys]).stdin(Stdio::null()).output();
    let run = run.unwrap();
    assert!(run.status.success(), "{args:?}: {}", String::from_utf8_lossy(&run.stderr));
}

/// X20: with the key the disk is copied by either protocol; with another key, or in plaintext, it
/// is not.
#[test]
fn x20_a_key_secures_the_copy_and_a_wrong_one_ends_it() {
    if !is_alone("keyed::x20_a_key_secures_the_copy_and_a_wrong_one_ends_it") {
        return;
    }
    let folder = Folder::new();
    let image = folder.image("disk.img", 2 * MIB);
    let (keys, key, wrong) = (folder.path("keys"), folder.path("key"), folder.path("wrong"));
    for (name, path) in [("copier", &key), ("stranger", &wrong)] {
        owner(&keys, &["key", "generate", "--name", name]);
        owner(&keys, &["key", "export", name, "--to", path]);
    }
    owner(&keys, &["host", "add", HOST, "--name", "copier", "--tls-key", "copier"]);
    let target = target(&keys, &image, &[]);
    let nvme = format!("nvme://{ELSEWHERE}:{}/", target.port("nvme"));
    let nbd = format!("{ELSEWHERE}:{}/disk", target.port("nbd"));
    let never = folder.path("never.img");
    // A key given by an option is used with each scheme.
    for from in [&nvme, &format!("nbds://{nbd}"), &format!("nbd://{nbd}")] {
        let to = folder.path("copy.img");
        run_expecting(0, &["--force", "--hostnqn", HOST, "--key", &key, from, &to]);
        assert_equal(&image, &to);
        let message = run_expecting(5, &["--hostnqn", HOST, "--key", &wrong, from, &never]);
        assert!(message.contains("securely"), "{message}");
    }
    let message = run_expecting(5, &[&nvme, &never]);
    let pair =
        format!("pair this machine by \"storagetm pair {ELSEWHERE}:{}\"", target.port("nvme"));
    assert!(message.contains(&pair), "{message}");
    let message = run_expecting(5, &[&format!("nbd://{nbd}"), &never]);
    assert!(message.contains("nbds://"), "{message}");
    assert!(!Path::new(&never).exists());
}

/// Pairs the state directory `here` with the target.
fn pair(target: &Target, here: &str) {
    let at = format!("{ELSEWHERE}:{}", target.port("nvme"));
    let mut pair = Command::new(PROGRAM)
        .args(["pair", &at, "--code-file", "-", "--keys", here, "--hostnqn", HOST])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    writeln!(pair.stdin.take().unwrap(), "{}", target.code()).unwrap();
    assert!(pair.wait().unwrap().success());
}

/// An address of this machine besides [`ELSEWHERE`].
const OTHER: &str = "10.77.0.2";

fn add_other() {
    let address = format!("{OTHER}/32");
    let up = Command::new("ip").args(["address", "add", &address, "dev", "lo"]).status();
    assert!(up.unwrap().success());
}

/// A listener at another address that records what clients send, per connection, and forwards it to
/// a port, if one is given.
struct Tap {
    port: u16,
    sent: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Tap {
    fn on(target: Option<u16>) -> Self {
        let listener = TcpListener::bind((OTHER, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let sent = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let all = sent.clone();
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let number = {
                    let mut all = all.lock().unwrap();
                    all.push(Vec::new());
                    all.len() - 1
                };
                let keep = all.clone();
                let far = target.map(|port| TcpStream::connect((ELSEWHERE, port)).unwrap());
                if let Some(far) = &far {
                    let (mut far, mut near) = (far.try_clone().unwrap(), near.try_clone().unwrap());
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut far, &mut near);
                        let _ = near.shutdown(Shutdown::Write);
                    });
                }
                std::thread::spawn(move || {
                    relay(near, far, |bytes| {
                        keep.lock().unwrap()[number].extend_from_slice(bytes);
                    })
                });
            }
        });
        Self { port, sent }
    }

    fn sent(&self) -> Vec<Vec<u8>> {
        self.sent.lock().unwrap().clone()
    }
}

/// Without a far end, plaintext is read to its end, and TLS is disconnected.
fn relay(mut near: TcpStream, mut far: Option<TcpStream>, keep: impl Fn(&[u8])) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = near.read(&mut bytes) {
        keep(&bytes[..count]);
        let passed = far.as_mut().map_or(Ok(()), |far| far.write_all(&bytes[..count]));
        if passed.is_err() || (far.is_none() && bytes[0] == 0x16) {
            break;
        }
    }
    let _ = far.map(|far| far.shutdown(Shutdown::Write));
}

fn has(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

/// X60: keys belong to the machine. They are used at each of its addresses, and an unknown machine
/// is not contacted.
#[test]
fn x60_known_machine_is_never_contacted_in_plaintext() {
    if !is_alone("keyed::x60_known_machine_is_never_contacted_in_plaintext") {
        return;
    }
    add_other();
    let folder = Folder::new();
    let image = folder.image("disk.img", 2 * MIB);
    let (there, here) = (folder.path("there"), folder.path("here"));
    let target = target(&there, &image, &["--pair"]);
    pair(&target, &here);
    let (nvme, nbd) = (Tap::on(Some(target.port("nvme"))), Tap::on(Some(target.port("nbd"))));
    let sources = [
        format!("nvme://{OTHER}:{}/disk", nvme.port),
        format!("nbd://{OTHER}:{}/disk", nbd.port),
        format!("nbds://{OTHER}:{}/disk", nbd.port),
    ];
    for source in &sources {
        let to = folder.path("copy.img");
        run_expecting(0, &["--force", "--keys", &here, source, &to]);
        assert_equal(&image, &to);
    }
    assert!(nvme.sent().iter().all(|sent| sent.first() == Some(&0x16)), "TLS from the first byte");
    // NBD negotiates STARTTLS in plaintext, and sends nothing else.
    assert!(
        nbd.sent()
            .iter()
            .all(|sent| !has(sent, b"disk") && has(&sent[..24], b"IHAVEOPT\0\0\0\x05"))
    );
    let stranger = Tap::on(None);
    let never = folder.path("never.img");
    let message =
        run_expecting(5, &["--keys", &here, &format!("nvme://{OTHER}:{}/", stranger.port), &never]);
    assert!(message.contains("storagetm pair") && message.contains("--insecure"), "{message}");
    assert!(stranger.sent().iter().all(|sent| sent.first() == Some(&0x16)));
}

/// X60: once there is a key for any machine, a target without keys needs --insecure.
#[test]
fn x60_open_target_needs_insecure_where_keys_are_kept() {
    if !is_alone("keyed::x60_open_target_needs_insecure_where_keys_are_kept") {
        return;
    }
    let folder = Folder::new();
    let image = folder.image("disk.img", 2 * MIB);
    let (there, here) = (folder.path("there"), folder.path("here"));
    pair(&target(&there, &image, &["--pair"]), &here);
    add_other();
    let listens = ["nvme", "nbd", "iscsi"].map(|protocol| format!("{protocol}:{OTHER}:0"));
    let listens: Vec<&str> = listens.iter().flat_map(|listen| ["--listen", listen]).collect();
    let open = Target::serve(&[&["--open", &image], &listens[..]].concat());
    let iqn = open.lent[0]["iqn"].as_str().unwrap();
    for source in [
        format!("nvme://{OTHER}:{}/disk", open.port("nvme")),
        format!("nbd://{OTHER}:{}/disk", open.port("nbd")),
        format!("iscsi://{OTHER}:{}/{iqn}", open.port("iscsi")),
    ] {
        let (to, never) = (folder.path("copy.img"), folder.path("never.img"));
        let message = run_expecting(5, &["--keys", &here, &source, &never]);
        assert!(message.contains("--insecure"), "{message}");
        assert!(!Path::new(&never).exists());
        run_expecting(0, &["--force", "--keys", &here, "--insecure", &source, &to]);
        assert_equal(&image, &to);
        // Without stored keys no machine can be impersonated.
        run_expecting(0, &["--force", &source, &to]);
    }
}

/// A copy waits for a target that is restarted, as for one that was killed.
#[test]
fn keyed_target_that_is_restarted_is_copied_on() {
    if !is_alone("keyed::keyed_target_that_is_restarted_is_copied_on") {
        return;
    }
    let folder = Folder::new();
    let image = folder.image("disk.img", 32 * MIB);
    let (there, here) = (folder.path("there"), folder.path("here"));
    let first = target(&there, &image, &["--pair"]);
    pair(&first, &here);
    let mut running = Some(first);
    for protocol in ["nvme", "nbds"] {
        let target = running.take().unwrap();
        let (nvme, nbd) = (target.port("nvme"), target.port("nbd"));
        let port = if protocol == "nvme" { nvme } else { nbd };
        let source = format!("{protocol}://{ELSEWHERE}:{port}/disk");
        let to = folder.path(&format!("{protocol}.img"));
        let args = ["--json", "--rate", "4M", "--keys", &here, &source, &to];
        let copying = copy(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        until_arrived(&to, 4 * MIB);
        target.interrupt();
        std::thread::sleep(Duration::from_secs(3));
        let at = [format!("nvme:{ELSEWHERE}:{nvme}"), format!("nbd:{ELSEWHERE}:{nbd}")];
        running = Some(Target::serve(&[
            "--keys", &there, "--listen", &at[0], "--listen", &at[1], &image,
        ]));
        let output = copying.wait_with_output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{protocol}: {message}");
        let last = events(&output).pop().unwrap();
        assert_eq!(last["verified"], 32 * MIB, "{last}");
        assert_equal(&image, &to);
    }
}

/// After pairing the address of the machine and the name of the disk are sufficient.
#[test]
fn paired_machine_is_copied_from_by_disk_name() {
    if !is_alone("keyed::paired_machine_is_copied_from_by_disk_name") {
        return;
    }
    let folder = Folder::new();
    let image = folder.image("disk.img", 2 * MIB);
    let (there, here) = (folder.path("there"), folder.path("here"));
    let target = target(&there, &image, &["--pair"]);
    let port = target.port("nvme");
    pair(&target, &here);
    let sources = [
        format!("nvme://{ELSEWHERE}:{port}/disk"),
        format!("nvme://{ELSEWHERE}:{port}/disk.img"),
        format!("nbds://{ELSEWHERE}:{}/disk", target.port("nbd")),
    ];
    for (number, from) in sources.iter().enumerate() {
        let to = folder.path(&format!("copy{number}.img"));
        run_expecting(0, &["--keys", &here, from, &to]);
        assert_equal(&image, &to);
    }
    // Keys in a world-readable directory are not secret.
    let kept = Path::new(&here).join("targets");
    let file = fs::read_dir(kept).unwrap().map(|entry| entry.unwrap().path());
    let file = file.into_iter().find(|path| path.extension().is_some_and(|it| it == "json"));
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(file.unwrap(), open).unwrap();
    let message = run_expecting(5, &["--keys", &here, &sources[0], &folder.path("never.img")]);
    assert!(message.contains("can be read by others"), "{message}");
}

/// X20: a target that requires a CHAP secret is copied from and to with it only, and proves its own
/// one if that is asked for.
#[test]
fn x20_iscsi_target_is_copied_with_its_secret_only() {
    const IQN: &str = "iqn.2026-01.test:copier";
    if !is_alone("keyed::x20_iscsi_target_is_copied_with_its_secret_only") {
        return;
    }
    let folder = Folder::new();
    let image = folder.image("disk.img", 2 * MIB);
    let [keys, to, never] = ["keys", "to.img", "never.img"].map(|name| folder.path(name));
    fs::write(&to, vec![5; 2 << 20]).unwrap();
    let [key, back, wrong] = ["copier", "target", "stranger"].map(|name| {
        owner(&keys, &["key", "generate", "iscsi", "--name", name]);
        owner(&keys, &["key", "export", name, "--to", &folder.path(name)]);
        folder.path(name)
    });
    owner(&keys, &["key", "generate", "--name", "tls"]);
    owner(&keys, &["key", "export", "tls", "--to", &folder.path("tls")]);
    let both = ["--chap-key", "copier", "--chap-controller-key", "target"];
    owner(&keys, &[&["host", "add", IQN, "--name", "copier", "--writable"], &both[..]].concat());
    let listen = format!("iscsi:{ELSEWHERE}:0");
    let target = Target::serve(&["--keys", &keys, "--listen", &listen, &image, "--writable", &to]);
    let uris = target.lent.iter().map(|lent| {
        let (port, name) = (target.port("iscsi"), lent["iqn"].as_str().unwrap());
        format!("iscsi://{ELSEWHERE}:{port}/{name}?initiator={IQN}")
    });
    let uris: Vec<String> = uris.collect();
    let mutual = format!("{}&target-key={back}", uris[0]);
    for from in [&uris[0], &mutual] {
        run_expecting(0, &["--key", &key, "--force", from, &folder.path("copy.img")]);
        assert_equal(&image, folder.path("copy.img"));
    }
    run_expecting(0, &["--key", &key, "--yes", &mutual, &uris[1]]);
    assert_equal(&image, &to);
    let unproved = format!("{}&target-key={wrong}", uris[0]);
    let equal = format!("{}&target-key={key}", uris[0]);
    for (key, from, reason) in [
        (&key, &unproved, "did not authenticate itself"),
        (&key, &equal, "must differ"),
        (&wrong, &uris[0], "authentication failed"),
        (&folder.path("tls"), &uris[0], "is not for iSCSI"),
    ] {
        let message = run_expecting(5, &["--key", key, from, &never]);
        assert!(message.contains(reason), "{message}");
    }
    run_expecting(5, &[&uris[0], &never]);
    assert!(!Path::new(&never).exists());
}
