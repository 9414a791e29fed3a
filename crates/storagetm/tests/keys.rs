//! Keys and hosts: what is printed, what is stored with which permissions, what is refused; and
//! that keys appear only where requested.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use testkit::Scratch;

const PROGRAM: &str = env!("CARGO_BIN_EXE_storagetm");
const NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";
const DISK: &str = "nqn.2014-08.org.nvmexpress:uuid:99999999-2222-3333-4444-555555555555";
/// Keys that are used only in tests.
const TLS: &str = "NVMeTLSkey-1:01:VRLbtnN9AQb2WXW3c9+wEf/DRLz0QuLdbYvEhwtdWwNf9LrZ:";
const CHAP: &str = "DHHC-1:00:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:";

/// A temporary directory with the state directory of the program.
struct StateDir(Scratch);

impl StateDir {
    fn new() -> Self {
        Self(Scratch::new())
    }

    /// Returns a state directory with a TLS key `tls` and a CHAP key `chap`.
    fn with_keys() -> Self {
        let store = Self::new();
        assert_eq!(store.run_with_input(&["key", "import", "tls"], TLS).status.code(), Some(0));
        assert_eq!(store.run_with_input(&["key", "import", "chap"], CHAP).status.code(), Some(0));
        store
    }

    fn state(&self) -> PathBuf {
        self.0.0.join("state")
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.state().join(inside)
    }

    fn run_with_input(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = Command::new(PROGRAM)
            .args(arguments)
            .arg("--keys")
            .arg(self.state())
            .env_remove("CREDENTIALS_DIRECTORY")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The program may end without reading.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.run_with_input(arguments, "")
    }

    /// Runs the program, which must succeed. Returns its standard output.
    fn run_ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", error(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Returns the exit status and the error message.
    fn run_failing(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.run(arguments);
        assert_eq!(output.stdout, b"", "{arguments:?}");
        (output.status.code(), error(&output))
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.run_ok(arguments)).unwrap()
    }
}

fn error(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn generated_key_is_either_printed_or_stored() {
    let store = StateDir::new();
    let printed = store.run_ok(&["key", "generate"]);
    assert!(printed.starts_with("NVMeTLSkey-1:01:") && printed.ends_with(":\n"), "{printed}");
    assert!(!store.state().exists());
    let chap = store.run_ok(&["key", "generate", "chap", "--hash", "sha512"]);
    assert!(chap.starts_with("DHHC-1:03:"), "{chap}");
    assert_eq!(store.run_ok(&["key", "generate", "--name", "laptop"]), "");
    let kept = fs::read_to_string(store.path("keys/laptop")).unwrap();
    assert_eq!(store.run_ok(&["key", "export", "laptop"]), kept);
    assert_ne!(kept, printed);
    assert_eq!(store.run_ok(&["key", "generate", "--name", "other", "--show"]).lines().count(), 1);
    assert_eq!(mode(&store.path("keys/laptop")), 0o600);
    assert_eq!(mode(&store.path("keys")), 0o700);
    assert_eq!(store.run_failing(&["key", "generate", "tls", "--hash", "sha512"]).0, Some(2));
}

#[test]
fn key_is_imported_from_stdin_or_a_file() {
    let store = StateDir::with_keys();
    assert_eq!(store.run_ok(&["key", "export", "tls"]), format!("{TLS}\n"));
    let file = store.0.0.join("handed over");
    fs::write(&file, format!("  {CHAP} \r\n")).unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(store.run_ok(&["key", "import", "other", "--file", file]), "");
    assert_eq!(store.run_ok(&["key", "export", "other"]), format!("{CHAP}\n"));
    let (status, message) = store.run_failing(&["key", "import", "tls", "--file", file]);
    assert!(status == Some(1) && message.contains("--replace"), "{message}");
    store.run_ok(&["key", "import", "tls", "--file", file, "--replace"]);
    assert_eq!(store.run_ok(&["key", "export", "tls"]), format!("{CHAP}\n"));
}

#[test]
fn invalid_key_is_refused_and_not_printed() {
    let store = StateDir::new();
    let damaged = TLS.replace("VRL", "VRM");
    for (text, word) in [
        (damaged.as_str(), "damaged"),
        ("hunter2", "not a key"),
        ("", "not a key"),
        ("DHHC-1:09:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:", "hash"),
        (&"A".repeat(10_000), "not a key"),
    ] {
        let output = store.run_with_input(&["key", "import", "a"], text);
        let message = error(&output);
        assert!(output.status.code() == Some(1) && message.contains(word), "{message}");
        assert!(
            !message.contains("hunter2")
                && !message.contains("tnN9AQb2")
                && !message.contains("AAAA"),
            "{message}"
        );
        assert_eq!(message.lines().count(), 1, "{message}");
    }
    assert!(!store.path("keys/a").exists());
}

/// A key on the command line is visible to all users, and must not be repeated in the error.
#[test]
fn no_command_takes_a_key_as_an_argument() {
    let store = StateDir::new();
    for line in [
        &["key", "import", TLS][..],
        &["key", "import", "a", TLS],
        &["key", "generate", "--name", TLS],
        &["host", "add", NQN, "--tls-key", TLS],
        &["host", "add", NQN, "--chap-key", CHAP],
    ] {
        let (status, message) = store.run_failing(line);
        assert!(status == Some(2) && message.contains("standard input"), "{line:?}: {message}");
        assert!(!message.contains("VRLbtnN9") && !message.contains("AAECAwQF"), "{message}");
    }
}

/// X53: names with terminal escapes or path separators are refused.
#[test]
fn x53_names_with_escapes_are_refused() {
    let store = StateDir::with_keys();
    for name in ["\u{1b}[2J", "../a", "a/b", ".a", "", "a\nb", "é"] {
        for line in [
            &["key", "generate", "--name", name][..],
            &["key", "import", name],
            &["key", "export", name],
            &["key", "remove", name],
            &["host", "add", NQN, "--name", name],
        ] {
            let (status, message) = store.run_failing(line);
            assert_eq!(status, Some(2), "{line:?}: {message}");
            assert!(!message.contains("\u{1b}[2J"), "{message:?}");
        }
    }
    for nqn in ["nqn.2024-01.test:\u{1b}[2J", "nqn.2024-01.test:a b", "laptop", ""] {
        let (status, message) = store.run_failing(&["host", "add", nqn]);
        assert!(status == Some(2) && !message.contains('\u{1b}'), "{message:?}");
    }
    let shown = store.run_ok(&["host", "add", NQN, "--tls-key", "tls", "--disk", "a\u{1b}[2J"]);
    assert!(!shown.contains('\u{1b}'), "{shown:?}");
    for line in [&["host", "list"][..], &["host", "list", "--json"]] {
        assert!(!store.run_ok(line).contains('\u{1b}'));
    }
}

#[test]
fn added_host_is_stored_and_next_steps_are_printed() {
    let store = StateDir::new();
    let message = store.run_ok(&["host", "add", NQN, "--name", "laptop", "--disk", DISK]);
    assert!(message.starts_with(&format!("laptop may read {DISK}.\n")), "{message}");
    assert!(
        message.contains(&format!(
            "storagetm key export laptop --for-host laptop --disk {DISK} --to laptop.keys"
        )),
        "{message}"
    );
    assert!(message.contains("nvme tls-key --import --keyfile laptop.keys"), "{message}");
    let listed = store.json(&["host", "list", "--json"]);
    assert_eq!(listed[0]["name"], "laptop");
    assert_eq!(listed[0]["id"], NQN);
    assert_eq!(listed[0]["keys"], serde_json::json!(["laptop"]));
    assert_eq!(listed[0]["rules"][0]["access"], "read-only");
    assert_eq!(listed[0]["problem"], Value::Null);
    assert_eq!(mode(&store.path("hosts/laptop.json")), 0o600);
    let keys = store.json(&["key", "list", "--json"]);
    assert_eq!(keys[0]["kind"], "tls");
    assert_eq!(keys[0]["used_by"], serde_json::json!(["laptop"]));
}

#[test]
fn allowing_md5_keeps_what_an_initiator_may_have() {
    const IQN: &str = "iqn.1991-05.com.microsoft:laptop";
    let store = StateDir::new();
    let message = store.run_ok(&["host", "add", IQN, "--disk", "sdb", "--expires", "7d"]);
    assert!(message.contains("--chap-md5 --replace"), "{message}");
    let before = store.json(&["host", "list", "--json"]);
    assert_eq!((&before[0]["id"], &before[0]["proves_by"][0]), (&IQN.into(), &"iscsi".into()));
    let message = store.run_ok(&["host", "add", IQN, "--chap-md5", "--replace"]);
    assert!(!message.contains("--chap-md5"), "{message}");
    let after = store.json(&["host", "list", "--json"]);
    assert_eq!((&after[0]["rules"], &after[0]["keys"]), (&before[0]["rules"], &before[0]["keys"]));
    let secret = store.run_ok(&["key", "export", "laptop"]);
    assert_eq!(secret.trim_end().len(), 16);
    for line in [
        &["host", "add", IQN, "--replace", "--tls-key", "laptop"][..],
        &["host", "add", NQN, "--chap-md5"],
    ] {
        assert_eq!(store.run_failing(line).0, Some(2));
    }
}

#[test]
fn next_steps_contain_the_named_state_directory() {
    let store = StateDir::new();
    let message = store.run_ok(&["host", "add", NQN]);
    let export = "storagetm key export host-11111111 --for-host host-11111111";
    let keys = format!(" --keys {}\n", store.state().display());
    assert!(message.contains(export) && message.contains(&keys), "{message}");
    assert!(message.contains("nvme keys import --keyfile host-11111111.keys"), "{message}");
}

/// Runs the command that the program printed.
#[test]
fn what_the_host_needs_is_written_for_nvme_cli() {
    let store = StateDir::with_keys();
    store.run_ok(&["host", "add", NQN, "--name", "laptop", "--tls-key", "tls"]);
    let file = store.0.0.join("laptop.keys");
    let export = ["key", "export", "tls", "--for-host", "laptop", "--disk", DISK];
    assert_eq!(store.run_ok(&[&export[..], &["--to", file.to_str().unwrap()]].concat()), "");
    assert_eq!(mode(&file), 0o600);
    let lines = fs::read_to_string(&file).unwrap();
    assert_eq!(store.run_ok(&export), lines);
    let lines: Vec<&str> = lines.lines().collect();
    let discovery = "nqn.2014-08.org.nvmexpress.discovery";
    assert_eq!(lines.len(), 2);
    for (line, subsystem) in lines.iter().zip([discovery, DISK]) {
        assert!(line.starts_with(&format!("NVMe1R01 {NQN} {subsystem} ")), "{line}");
        assert!(
            line.len() < 511 && line.contains(" NVMeTLSkey-1:01:") && !line.contains(TLS),
            "{line}"
        );
    }
    let by_nqn = ["key", "export", "tls", "--for-host", NQN, "--disk", DISK];
    assert_eq!(store.run_ok(&by_nqn), store.run_ok(&export));
    assert_eq!(
        store.run_failing(&["key", "export", "tls", "--for-host", "nobody", "--disk", DISK]).0,
        Some(1)
    );
    assert_eq!(
        store.run_failing(&["key", "export", "chap", "--for-host", NQN, "--disk", DISK]).0,
        Some(1)
    );
    assert_eq!(store.run_failing(&["key", "export", "tls", "--for-host", NQN]).0, Some(2));
}

#[test]
fn known_host_keeps_its_key_when_rules_change() {
    let store = StateDir::new();
    store.run_ok(&["host", "add", NQN, "--name", "laptop"]);
    let key = store.run_ok(&["key", "export", "laptop"]);
    let (status, message) = store.run_failing(&["host", "add", NQN]);
    assert!(
        status == Some(1) && message.contains("as laptop") && message.contains("--replace"),
        "{message}"
    );
    let change = [
        "host",
        "add",
        NQN,
        "--replace",
        "--writable",
        "--disk",
        "sda",
        "--disk",
        "sdb",
        "--expires",
        "7d",
    ];
    let message = store.run_ok(&change);
    assert!(message.contains("change where it is lent writable, sda, sdb until 2"), "{message}");
    assert_eq!(store.run_ok(&["key", "export", "laptop"]), key);
    let listed = store.json(&["host", "list", "--json"]);
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!(listed[0]["rules"][1]["disk"], "sdb");
    assert_eq!(listed[0]["rules"][1]["access"], "writable");
    assert_eq!(listed[0]["rules"][1]["expired"], false);
    // Under another name it is the same host, with the same access; and with --tls-compat, too.
    let rules = listed[0]["rules"].clone();
    store.run_ok(&["host", "add", NQN, "--replace", "--name", "desk"]);
    let listed = store.json(&["host", "list", "--json"]);
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["name"]), (1, &Value::from("desk")));
    assert_eq!(listed[0]["rules"], rules);
    assert_eq!(store.run_ok(&["key", "export", "laptop"]), key);
    store.run_ok(&["host", "add", NQN, "--replace", "--tls-compat"]);
    let listed = store.json(&["host", "list", "--json"]);
    assert_eq!((&listed[0]["tls_compat"], &listed[0]["rules"]), (&Value::from(true), &rules));
}

/// Without a disk named, new rules would allow all disks, for ever.
#[test]
fn replace_does_not_widen_access_by_omission() {
    let store = StateDir::new();
    let add =
        ["host", "add", NQN, "--disk", "sda", "--disk", "sdb", "--writable", "--expires", "7d"];
    store.run_ok(&add);
    let rules = || store.json(&["host", "list", "--json"])[0]["rules"].clone();
    let before = rules();
    for (more, word) in [
        (&[][..], "nothing to change"),
        (&["--writable"], "--all-disks"),
        (&["--expires", "9d"], "--all-disks"),
        (&["--disk", "sda", "--all-disks"], "cannot be used with"),
    ] {
        let line = [&["host", "add", NQN, "--replace"][..], more].concat();
        let (status, message) = store.run_failing(&line);
        assert!(status == Some(2) && message.contains(word), "{more:?}: {message}");
        assert_eq!(rules(), before, "{more:?}");
    }
    store.run_ok(&["host", "add", NQN, "--replace", "--all-disks"]);
    let all = |access: &str| serde_json::json!([{"disk": null, "access": access, "expires": null, "expired": false}]);
    assert_eq!(rules(), all("read-only"));
    store.run_ok(&["host", "add", NQN, "--replace", "--writable"]);
    assert_eq!(rules(), all("writable"));
}

#[test]
fn host_needs_existing_keys_of_the_right_kind() {
    let store = StateDir::with_keys();
    for (rest, status, word) in [
        (&["--tls-key", "none"][..], 1, "no key none"),
        (&["--tls-key", "chap"], 1, "is for DH-HMAC-CHAP"),
        (&["--chap-key", "tls"], 1, "is for TLS"),
        (&["--chap-controller-key", "chap"], 2, "--chap-key"),
        (&["--expires", "2020-01-01"], 2, "over already"),
        (&["--expires", "soon"], 2, "2026-12-01"),
        (&["--disk", ""], 2, ""),
    ] {
        let (code, message) = store.run_failing(&[&["host", "add", NQN][..], rest].concat());
        assert!(code == Some(status) && message.contains(word), "{rest:?}: {message}");
    }
    assert_eq!(store.run_ok(&["host", "list"]).lines().count(), 1, "only the headings");
    let message =
        store.run_ok(&["host", "add", NQN, "--chap-key", "chap", "--chap-controller-key", "chap"]);
    assert!(message.contains("dhchap_key") && !message.contains("tls-key"), "{message}");
    let listed = store.json(&["host", "list", "--json"]);
    assert_eq!(listed[0]["proves_by"], serde_json::json!(["chap"]));
}

#[test]
fn a_key_in_use_is_not_removed_and_a_removed_host_is_gone() {
    let store = StateDir::with_keys();
    store.run_ok(&["host", "add", NQN, "--name", "laptop", "--tls-key", "tls"]);
    let (status, message) = store.run_failing(&["key", "remove", "tls"]);
    assert!(status == Some(1) && message.contains("used by laptop"), "{message}");
    assert_eq!(store.run_ok(&["host", "remove", NQN]), "laptop is not authorized any more.\n");
    assert_eq!(store.run_failing(&["host", "remove", NQN]).0, Some(1));
    assert_eq!(store.run_ok(&["key", "remove", "tls"]), "");
    assert_eq!(store.run_failing(&["key", "remove", "tls"]).0, Some(1));
    store.run_ok(&["host", "add", NQN, "--name", "laptop"]);
    assert!(
        store.run_ok(&["host", "remove", "laptop"]).contains("Its key laptop is removed, too.")
    );
    assert!(!store.path("keys/laptop").exists());
}

#[test]
fn world_readable_files_are_rejected_with_advice() {
    let store = StateDir::with_keys();
    fs::set_permissions(store.path("keys/tls"), fs::Permissions::from_mode(0o644)).unwrap();
    let (status, message) = store.run_failing(&["key", "export", "tls"]);
    assert!(status == Some(1) && message.contains("chmod 600"), "{message}");
    let listed = store.json(&["key", "list", "--json"]);
    assert!(listed[1]["problem"].as_str().unwrap().contains("chmod 600"));
    fs::set_permissions(store.path("keys"), fs::Permissions::from_mode(0o777)).unwrap();
    let (status, message) = store.run_failing(&["key", "list"]);
    assert!(status == Some(1) && message.contains("chmod 700"), "{message}");
}

/// X53: only requested output contains a key, and files with keys are accessible by their owner
/// only.
#[test]
fn x53_keys_are_printed_only_on_request() {
    let store = StateDir::with_keys();
    let mut message = String::new();
    for line in [
        &["host", "add", NQN, "--name", "laptop", "--tls-key", "tls", "--chap-key", "chap"][..],
        &["host", "list"],
        &["host", "list", "--json"],
        &["key", "list"],
        &["key", "list", "--json"],
        &["key", "remove", "tls"],
        &["host", "remove", "laptop"],
        &["key", "remove", "tls"],
        &["key", "export", "tls"],
        &["help"],
    ] {
        let output = store.run(line);
        message += &String::from_utf8(output.stdout).unwrap();
        message += &String::from_utf8(output.stderr).unwrap();
    }
    for secret in ["VRLbtnN9AQb2", "AAECAwQFBgcI"] {
        assert!(!message.contains(secret), "{message}");
    }
    let holds_one =
        |path: &Path| fs::read_to_string(path).is_ok_and(|text| text.contains("AAECAwQFBgcI"));
    for file in files(&store.state()).iter().filter(|path| holds_one(path)) {
        assert_eq!(mode(file), 0o600, "{}", file.display());
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// An unreachable machine and an invalid code are reported at once.
#[test]
fn impossible_pairing_is_reported() {
    let store = StateDir::new();
    for (line, input, status, word) in [
        (&["pair"][..], "", 2, "HOST"),
        (&["pair", "a b"], "12345678\n", 2, "a machine is"),
        (&["pair", "fe80::1"], "12345678\n", 2, "behind which interface"),
        (&["pair", "127.0.0.1:1"], "1234\n", 2, "not a code"),
        (&["pair", "127.0.0.1:1"], "1234 5678\n", 1, "cannot be reached"),
        (&["pair", "127.0.0.1:1", "--hostnqn", "laptop"], "12345678\n", 2, "not a host NQN"),
        (&["pair", "127.0.0.1:1", "--code-file", "/nonexistent/code"], "", 1, "cannot be read"),
    ] {
        let output = store.run_with_input(line, input);
        let message = error(&output);
        assert!(
            output.status.code() == Some(status) && message.contains(word),
            "{line:?}: {message}"
        );
        assert!(!message.contains("5678"), "{message}");
    }
}

/// The format of other tools: the name of the host, and the NBD PSK derived from its key.
#[test]
fn a_key_is_handed_over_as_nbd_clients_read_it() {
    let store = StateDir::with_keys();
    let (status, message) = store.run_failing(&["key", "export", "tls", "--nbd"]);
    assert!(status == Some(1) && message.contains("--for-host"), "{message}");
    store.run_ok(&["host", "add", NQN, "--name", "laptop", "--tls-key", "tls"]);
    let line = store.run_ok(&["key", "export", "tls", "--nbd"]);
    let (name, hex) = line.trim_end().split_once(':').unwrap();
    assert_eq!((name, hex.len()), ("laptop", 64));
    assert!(hex.chars().all(|c| c.is_ascii_hexdigit()), "{line}");
    // By each name, and for a host that is known by its NQN, the key is the same.
    let other = store.run_ok(&["key", "export", "tls", "--nbd", "--for-host", "other"]);
    assert_eq!(other, format!("other:{hex}\n"));
    assert_eq!(store.run_ok(&["key", "export", "tls", "--nbd", "--for-host", NQN]), line);
    let file = store.0.0.join("laptop.psk");
    store.run_ok(&["key", "export", "tls", "--nbd", "--to", file.to_str().unwrap()]);
    assert_eq!((fs::read_to_string(&file).unwrap(), mode(&file)), (line, 0o600));
    assert_eq!(store.run_failing(&["key", "export", "chap", "--nbd"]).0, Some(1));
    assert_eq!(
        store.run_failing(&["key", "export", "tls", "--nbd", "--for-host", DISK]).0,
        Some(1)
    );
    for line in [
        &["key", "export", "tls", "--for-host", "laptop"][..],
        &["key", "export", "tls", "--nbd", "--disk", DISK, "--for-host", "laptop"],
    ] {
        assert_eq!(store.run_failing(line).0, Some(2), "{line:?}");
    }
}
