//! Secrets are not where they do not belong, and names from peers do not control a terminal: X19,
//! X53.

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::Duration;

use engine::tls::Stream;
use pair::client::{ClientInfo, Step};
use pair::{Client, Code};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::alone::{ELSEWHERE, is_alone};
use crate::host::{NvmeClient, connect_tls, disk_psk, pairing_psk};
use crate::process::field;
use crate::scene::{DESK, Folder, KEYED, LAPTOP, Running, contains, run};

/// Prefixes of keys and passwords in files: keys of NVMe hosts, private keys, passwords of users,
/// SSH keys of users.
const WRITTEN: [&str; 10] = [
    "NVMeTLSkey-1:0",
    "DHHC-1:0",
    "PRIVATE KEY-----\n",
    "root:$",
    "$6$",
    "$y$",
    "ssh-rsa AAAA",
    "ssh-ed25519 AAAA",
    "authorized_keys",
    "dropbear",
];

/// Returns the positions of keys and passwords in the bytes, by their prefix and what follows.
fn written(bytes: &[u8]) -> Vec<String> {
    let secret = |rest: &&[u8]| rest.iter().take(40).filter(|byte| is_base64(**byte)).count() >= 16;
    let starts = |text: &'static str| {
        let at = (0..bytes.len()).filter(move |at| bytes[*at..].starts_with(text.as_bytes()));
        at.map(move |at| &bytes[at + text.len()..])
    };
    let found = WRITTEN.into_iter().flat_map(|text| {
        let named = text.ends_with(|c: char| c.is_ascii_lowercase());
        starts(text).filter(move |rest| named || secret(rest)).map(move |rest| (text, rest))
    });
    let shown = |rest: &[u8]| String::from_utf8_lossy(&rest[..rest.len().min(40)]).into_owned();
    found.map(|(text, rest)| format!("{text}{}", shown(rest))).collect()
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+/=:".contains(&byte)
}

/// Keys in tests and specifications.
const TLS: &str = "NVMeTLSkey-1:01:VRLbtnN9AQb2WXW3c9+wEf/DRLz0QuLdbYvEhwtdWwNf9LrZ:";
const CHAP: &str = "DHHC-1:00:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:";

/// Makes an initramfs of the program. Returns the paths in it and all its bytes, unpacked.
fn image(folder: &Folder) -> (Vec<String>, Vec<u8>) {
    let modules = folder.path("6.12.0");
    fs::create_dir_all(&modules).unwrap();
    for name in ["dep", "alias", "softdep", "builtin", "builtin.modinfo", "order"] {
        fs::write(Path::new(&modules).join(format!("modules.{name}")), "").unwrap();
    }
    let packed = folder.path("initramfs");
    let made = run(&["image", "--initramfs", &packed, "--modules", &modules, "--no-firmware"], "");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let archive = fs::read(packed).unwrap();
    // The uncompressed archive is followed by a compressed one (magic number of RFC 8878 §3.1.1).
    let start = archive.windows(4).position(|it| it == [0x28, 0xb5, 0x2f, 0xfd]).unwrap();
    let rest = zstd::decode_all(&archive[start..]).unwrap();
    let names = [entries(&archive[..start]), entries(&rest)].concat();
    (names, [&archive[..start], &rest].concat())
}

/// Returns the paths in a newc cpio archive: a magic number, thirteen numbers of eight digits, and
/// a name; the seventh number is the length of the data, the twelfth that of the name.
fn entries(mut archive: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    while archive.starts_with(b"070701") {
        let number = |n: usize| {
            let digits = &archive[6 + 8 * n..14 + 8 * n];
            usize::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
        };
        let (length, name) = (number(6), number(11));
        names.push(String::from_utf8(archive[110..109 + name].to_vec()).unwrap());
        let end = (110 + name).next_multiple_of(4) + length.next_multiple_of(4);
        archive = &archive[end.min(archive.len())..];
    }
    names
}

/// X19: neither the program nor the boot image contains a key, a password, a shell or a way to log
/// in.
#[test]
fn x19_no_key_and_no_password_is_built_in() {
    let (names, mut bytes) = image(&Folder::new());
    assert_eq!(written(&bytes), [""; 0]);
    // Positive control: the stripped program is in the image, and a key would be found.
    assert!(names.iter().any(|name| name == "init") && contains(&bytes, "NVMeTLSkey-1:"));
    for (planted, begin) in
        [(TLS, "NVMeTLSkey"), (CHAP, "DHHC"), ("root:$6$abcdefghijklmnop:", "root")]
    {
        bytes.extend_from_slice(planted.as_bytes());
        assert!(written(&bytes).iter().any(|found| found.starts_with(begin)), "{planted}");
    }
    for word in ["passwd", "shadow", "ssh", "busybox", "bash", "login", "getty", "telnet", "/sh"] {
        let found = names.iter().find(|name| format!("/{name}").ends_with(word));
        assert!(found.is_none(), "{found:?}");
    }
}

/// X19: without authorized hosts every key is refused, and no key is generated.
#[test]
fn x19_without_hosts_all_access_is_refused() {
    if !is_alone("secrets::x19_without_hosts_all_access_is_refused") {
        return;
    }
    let folder = Folder::new();
    let image = folder.image("disk.img", 1);
    let line = ["--pair", "--listen", KEYED, "--keys", &folder.keys(), &image];
    let running = Running::serve(&line);
    let (address, names, _) = running.settled();
    let zero = "NVMeTLSkey-1:00:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==:";
    for host in [LAPTOP, DESK] {
        let client = NvmeClient::new(host, &names[0]);
        assert!(client.attach_tls(address, TLS).is_err());
        assert!(client.attach_plain(address).is_err());
        assert!(client.clone().with_credentials(CHAP).attach_plain(address).is_err());
        assert!(client.attach(|| connect_tls(address, pairing_psk())).is_err());
        let mut psk = disk_psk(TLS, host, &names[0]);
        psk.secret = export::Secret::new(zero.as_bytes()[..32].to_vec());
        assert!(connect_tls(address, psk.clone()).is_err());
        psk.secret = export::Secret::new(vec![0; 32]);
        assert!(connect_tls(address, psk).is_err());
    }
    let kept = |inside: &str| fs::read_dir(folder.path(inside)).map_or(0, Iterator::count);
    assert_eq!((kept("state/keys"), kept("state/hosts")), (0, 0));
    let reported = running.names_within(Duration::from_millis(300));
    assert!(!reported.iter().any(|name| name == "attached" || name == "paired"), "{reported:?}");
}

/// Names that would clear a screen, set a title, begin a line, or reverse the text direction.
const HOSTILE: [&str; 5] = [
    "nqn.2024-01.test:\u{1b}[2Jred",
    "nqn.2024-01.test:\u{1b}]0;title\u{7}",
    "nqn.2024-01.test:a\r\n{\"event\":\"paired\"}",
    "nqn.2024-01.test:\u{9b}2J\u{202e}",
    "nqn.2024-01.test:\u{2028}\u{2066}\u{feff}",
];

/// Returns whether all characters are printable, and each line starts as the program writes it.
fn is_harmless(output: &[u8]) -> bool {
    output.iter().all(|byte| *byte == b'\n' || (b' '..=b'~').contains(byte))
}

/// Returns an invalid pairing Hello: type 1, kind of the code, requested access, share, host NQN,
/// name.
fn hello(host: &str, name: &str) -> Vec<u8> {
    let with_length = |bytes: &[u8]| [&[u8::try_from(bytes.len()).unwrap()], bytes].concat();
    let texts = [with_length(host.as_bytes()), with_length(name.as_bytes())].concat();
    let body = [&[1, 1][..], &with_length(&[3; 32]), &texts].concat();
    let len = u16::try_from(body.len()).unwrap().to_le_bytes();
    [&[1, 1, len[0], len[1]][..], &body].concat()
}

/// Sends hostile names to the listener without authentication and to the one with it.
fn annoy(open: SocketAddr, keyed: SocketAddr, disk: &str) {
    for name in HOSTILE {
        // Whether access is granted does not matter here.
        let _ = NvmeClient::new(name, disk).attach_plain(open).map(|mut disk| disk.read(0));
        let _ = NvmeClient::new(LAPTOP, name).attach_plain(open);
        let raw = |bytes: Vec<u8>| {
            let mut channel = connect_tls(keyed, pairing_psk()).unwrap();
            let _ = channel.write_all(&bytes).and_then(|()| channel.flush());
            let _ = channel.read(&mut [0; 100]);
        };
        raw(hello(name, "guest"));
        raw(hello(LAPTOP, name));
    }
}

/// Pairs with that code, under that name.
fn pair_as(address: SocketAddr, code: &str, name: &str) -> bool {
    let mut channel = connect_tls(address, pairing_psk()).unwrap();
    let asking = ClientInfo { host: LAPTOP, name, writable: true };
    let code = Code::parse(code).unwrap();
    let mut random = Zeroizing::new([0; 32]);
    assert!(nvme::auth::chap::system_random(&mut *random));
    let mut client = Client::new(&code, &asking, channel.channel().binding, random);
    converse(&mut channel, &mut client)
}

fn converse(channel: &mut Stream, client: &mut Client) -> bool {
    let mut some = [0; 4096];
    loop {
        while let Some(step) = client.poll() {
            match step {
                Step::Send(bytes) => {
                    channel.write_all(&bytes).and_then(|()| channel.flush()).unwrap();
                }
                Step::Authenticated { .. } => {}
                Step::Paired(_) => return true,
                Step::Failed(_) => return false,
            }
        }
        let count = channel.read(&mut some).unwrap_or_default();
        if count == 0 {
            client.disconnected();
        }
        client.receive(&some[..count]);
    }
}

/// X53: names of hosts and disks from peers do not control a terminal and do not begin a line, in
/// either output format.
#[test]
fn x53_hostile_names_are_always_escaped() {
    if !is_alone("secrets::x53_hostile_names_are_always_escaped") {
        return;
    }
    for form in [&["serve", "--json", "--pair"][..], &["serve"], &["serve", "--pair"]] {
        let folder = Folder::new();
        let keys = folder.keys();
        let image = folder.image("disk.img", 1);
        let listen = ["--listen", "127.0.0.1:7001", "--listen", &format!("{ELSEWHERE}:7002")];
        let line = [form, &listen, &["--keys", &keys, "--nqn", "nqn.2024-01.test:base", &image]];
        let running = Running::start(&line.concat());
        let open = SocketAddr::from(([127, 0, 0, 1], 7001));
        let keyed = format!("{ELSEWHERE}:7002").parse().unwrap();
        assert!(crate::scene::find(|| crate::host::connect(keyed).ok()).is_some());
        let is_json = form.contains(&"--json");
        let code = is_json.then(|| running.code());
        if let Some(code) = &code {
            assert!(pair_as(keyed, code, "a\u{202e}b\u{2028}c"), "the code is right");
        }
        if form.contains(&"--pair") {
            annoy(open, keyed, "nqn.2024-01.test:base.disk.img");
        }
        let _ = NvmeClient::new(HOSTILE[0], HOSTILE[1]).attach_plain(open);
        let _ = crate::scene::find(|| contains(&running.output(), "2Jred").then_some(()));
        // The rest of the output.
        thread::sleep(Duration::from_millis(600));
        let output = running.output();
        let shown = String::from_utf8_lossy(&output).into_owned();
        assert!(contains(&output, "2Jred"), "it was said at all: {shown}");
        assert!(is_json || is_harmless(&output), "{shown:?}");
        if is_json {
            assert!(is_harmless(&output), "{shown:?}");
            let events = shown.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            assert_eq!(events.filter(|event| event["event"] == "paired").count(), 1);
        }
        if code.is_some() {
            for list in [&["host", "list"][..], &["host", "list", "--json"]] {
                assert!(is_harmless(folder.run_command(list).as_bytes()));
            }
        }
    }
}

/// Returns the secret part of the text of a key.
fn secret(key: &str) -> String {
    key.trim().split(':').nth(2).unwrap()[..40].to_owned()
}

/// X53: after all operations with keys and codes, these are only where they were requested.
#[test]
fn x53_keys_and_codes_are_not_printed_or_dumped() {
    if !is_alone("secrets::x53_keys_and_codes_are_not_printed_or_dumped") {
        return;
    }
    let (folder, guests) = (Folder::new(), Folder::new());
    let image = folder.image("disk.img", 4);
    let mut keys = vec![folder.authorize(DESK, "desk", "tls", &[])];
    keys.push(folder.authorize("nqn.2024-01.test:c", "prover", "chap", &[]));
    let line = ["--pair", "--listen", KEYED, "--keys", &folder.keys(), &image];
    let running = Running::serve(&line);
    let (address, names, code) = running.settled();
    let mut codes = vec![code];
    let place = format!("{ELSEWHERE}:{}", address.port());
    let kept = guests.keys();
    let line = ["pair", &place, "--hostnqn", LAPTOP, "--name", "guest", "--keys", &kept];
    let client = |code: &str| run(&[&line[..], &["--code-file", "-"]].concat(), code);
    let wrong = if codes[0] == "12345678" { "12345679" } else { "12345678" };
    let mut received = vec![client(wrong)];
    assert_eq!(received[0].status.code(), Some(3));
    codes.push(running.code());
    thread::sleep(Duration::from_millis(1200));
    received.push(client(&codes[1]));
    assert_eq!(received[1].status.code(), Some(0), "{:?}", received[1]);
    codes.push(running.code());
    keys.push(folder.key("guest"));
    let client = NvmeClient::new(LAPTOP, &names[0]);
    assert_eq!(client.attach_tls(address, &keys[2]).unwrap().read(0).unwrap(), vec![4; 4096]);
    assert!(NvmeClient::new(DESK, &names[0]).attach_tls(address, &keys[2]).is_err());
    running.until("attached");
    let mut output: Vec<u8> =
        received.into_iter().flat_map(|it| [it.stdout, it.stderr].concat()).collect();
    for list in [
        &["host", "list"][..],
        &["host", "list", "--json"],
        &["key", "list"],
        &["key", "list", "--json"],
    ] {
        output.extend(folder.run_command(list).into_bytes());
    }
    let (reported, besides) = split(&running.output());
    assert!(codes.iter().all(|code| contains(&reported, code)) && codes.len() == 3);
    output.extend(besides);
    for process in [running.process(), running.worker()] {
        output.extend(fs::read(process.join("cmdline")).unwrap());
    }
    for secret in keys.iter().map(|key| secret(key)).chain(codes).chain(long_codes(&reported)) {
        assert!(!contains(&output, &secret), "{}", String::from_utf8_lossy(&output));
    }
    // Core dumps are disabled.
    for process in [running.process(), running.worker()] {
        let limits = fs::read_to_string(process.join("limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert!(core.split_whitespace().skip(4).take(2).eq(["0", "0"]), "{core}");
    }
    let status = fs::read_to_string(running.worker().join("status")).unwrap();
    assert_eq!(field(&status, "Seccomp").as_deref(), Some("2"));
}

/// X53: no unit of a process that holds keys lets systemd set another limit.
#[test]
fn x53_units_allow_no_core_dumps() {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../units");
    for unit in ["storagetm.service", "storagetm@.service", "storagetm-provider@.service"] {
        let text = fs::read_to_string(units.join(unit)).unwrap();
        assert!(text.contains("ExecStart=") && text.contains("storagetm"), "{unit}");
        assert!(text.lines().any(|line| line == "LimitCORE=0"), "{unit}");
    }
}

/// Separates the pairing events from all other output.
fn split(output: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let is_code = |line: &&[u8]| line.starts_with(b"{\"event\":\"pairing\"");
    let (reported, rest): (Vec<&[u8]>, Vec<&[u8]>) =
        output.split_inclusive(|byte| *byte == b'\n').partition(is_code);
    (reported.concat(), rest.concat())
}

/// Returns the long forms of the codes.
fn long_codes(reported: &[u8]) -> Vec<String> {
    let text = String::from_utf8(reported.to_vec()).unwrap();
    let link = |line: &str| serde_json::from_str::<Value>(line).unwrap()["link"].clone();
    let long = |link: Value| pair::Invite::parse(link.as_str().unwrap()).unwrap();
    text.lines().map(link).map(long).map(|invite| invite.code.text().to_owned()).collect()
}
