//! `storagetm provider`: volumes for systemd, asked as its programs ask.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "serve/loop_device.rs"]
mod loop_device;
#[path = "serve/process.rs"]
#[allow(dead_code, reason = "shared with the tests of serve")]
mod process;

use std::fs::{self, File};
use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use loop_device::Loop;
use process::{PROGRAM, Running, find};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::Scratch;
use varlink::client::{CallError, Client};
use varlink::message::{Call, frame};

const INTERFACE: &str = "io.systemd.StorageProvider";

/// A provider without paired machines that listens in a folder.
struct Provider {
    running: Running,
    socket: PathBuf,
    _folder: Scratch,
}

impl Provider {
    fn start() -> Self {
        let folder = Scratch::new();
        let socket = folder.0.join("run/storagetm");
        let keys = folder.0.join("keys");
        fs::create_dir_all(&keys).unwrap();
        fs::set_permissions(&keys, fs::Permissions::from_mode(0o700)).unwrap();
        let mut command = Command::new(PROGRAM);
        command.arg("provider").arg("--listen").arg(&socket).arg("--keys").arg(&keys);
        let running = Running::start(command.env_remove("LISTEN_FDS").stderr(Stdio::null()));
        find(|| UnixStream::connect(&socket).ok()).expect("it listens");
        Self { running, socket, _folder: folder }
    }

    fn client(&self) -> Client {
        let client = Client::connect(&self.socket).unwrap();
        client.set_timeout(Some(Duration::from_secs(60))).unwrap();
        client
    }

    /// Returns the name of the error of a call.
    fn error(&self, method: &str, parameters: Value) -> String {
        let method = format!("{INTERFACE}.{method}");
        match self.client().call_more(&method, parameters, |_| true) {
            Err(CallError::Service { name, .. }) => name,
            other => panic!("{method}: {other:?}"),
        }
    }

    fn volumes(&self) -> Vec<Value> {
        let mut volumes = Vec::new();
        let method = format!("{INTERFACE}.ListVolumes");
        let listed = self.client().call_more(&method, json!({}), |volume| {
            volumes.push(Value::Object(volume));
            true
        });
        match listed {
            Err(CallError::Service { name, .. }) if name.ends_with(".NoSuchVolume") => {}
            other => other.unwrap(),
        }
        volumes
    }

    /// Acquires a volume as sd-varlink does. Returns the reply and the descriptor.
    fn acquire(&self, parameters: Value) -> (Value, Option<OwnedFd>) {
        let mut socket = UnixStream::connect(&self.socket).unwrap();
        let call = Call::new(&format!("{INTERFACE}.Acquire"), parameters);
        socket.write_all(&frame(&call).unwrap()).unwrap();
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut pieces = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let got = recvmsg(&socket, &mut pieces, &mut control, flags).unwrap().bytes;
        let passed = control.drain().find_map(|part| match part {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        assert_eq!(bytes[got - 1], 0);
        (serde_json::from_slice(&bytes[..got - 1]).unwrap(), passed)
    }
}

#[test]
fn volume_is_acquired_read_only_unless_asked_for() {
    let Some(device) = Loop::new("volume_is_acquired_read_only_unless_asked_for") else { return };
    let provider = Provider::start();
    let volumes = provider.volumes();
    let volume = volumes.iter().find(|volume| volume["name"] == device.name());
    let volume = volume.unwrap_or_else(|| panic!("{volumes:?}"));
    assert_eq!((&volume["type"], &volume["sizeBytes"]), (&json!("blk"), &json!(1 << 20)));
    assert_eq!(volume["readOnly"], false);
    for (asked, read_only) in [(json!(null), true), (json!(true), true), (json!(false), false)] {
        let (reply, descriptor) =
            provider.acquire(json!({"name": device.name(), "readOnly": asked}));
        let expected = json!({"fileDescriptorIndex": 0, "type": "blk", "readOnly": read_only});
        assert_eq!(reply["parameters"], expected, "{reply}");
        let disk = File::from(descriptor.unwrap());
        let mut bytes = [0; 8];
        disk.read_exact_at(&mut bytes, 4096).unwrap();
        assert_eq!(&bytes, b"a volume");
        assert_eq!(disk.write_at(&[7; 512], 0).is_err(), read_only);
        disk.sync_all().unwrap();
    }
    assert_eq!(device.image()[..512], [7; 512]);
    let (reply, _) = provider.acquire(json!({"name": device.name(), "requestAs": "reg"}));
    assert_eq!(reply["error"], format!("{INTERFACE}.TypeNotSupported"));
}

#[test]
fn volume_has_one_writer() {
    let Some(device) = Loop::new("volume_has_one_writer") else { return };
    let provider = Provider::start();
    let acquire = |read_only| {
        let asked = json!({"name": device.name(), "readOnly": read_only});
        let (reply, descriptor) = provider.acquire(asked);
        descriptor.ok_or_else(|| reply["parameters"]["errno"].clone())
    };
    let writer = acquire(false).unwrap();
    let busy = json!(rustix::io::Errno::BUSY.raw_os_error());
    assert_eq!(acquire(false).unwrap_err(), busy);
    acquire(true).unwrap();
    // The right to write goes with the last descriptor.
    let copy = writer.try_clone().unwrap();
    drop(writer);
    assert_eq!(acquire(false).unwrap_err(), busy);
    drop(copy);
    acquire(false).unwrap();
}

#[test]
fn disk_in_use_is_no_volume() {
    let Some(device) = Loop::new("disk_in_use_is_no_volume") else { return };
    let provider = Provider::start();
    // As a file system that is mounted.
    let exclusively = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::EXCL;
    let _holder = rustix::fs::open(&device.0, exclusively, rustix::fs::Mode::empty()).unwrap();
    assert!(provider.volumes().iter().all(|volume| volume["name"] != device.name()));
    let (reply, descriptor) = provider.acquire(json!({"name": device.name()}));
    assert_eq!(reply["error"], "io.systemd.System", "{reply}");
    assert_eq!(reply["parameters"]["errno"], rustix::io::Errno::BUSY.raw_os_error());
    assert!(descriptor.is_none());
}

#[test]
fn errors_are_those_of_systemd() {
    if !rustix::process::geteuid().is_root() {
        println!("skip errors of a storage provider: only root acquires volumes without polkit");
        return;
    }
    let provider = Provider::start();
    let own = |name: &str| format!("{INTERFACE}.{name}");
    for (method, parameters, error) in [
        ("Acquire", json!({"name": "no-such-disk"}), own("NoSuchVolume")),
        ("Acquire", json!({"name": "/dev/no-such-disk"}), own("NoSuchVolume")),
        ("Acquire", json!({"name": "desk/"}), own("NoSuchVolume")),
        ("Acquire", json!({"name": "desk/a", "createMode": "new"}), own("CreateNotSupported")),
        ("Acquire", json!({"name": "desk/a", "requestAs": "dir"}), own("TypeNotSupported")),
        ("Acquire", json!({"name": "no-such-disk", "requestAs": "reg"}), own("NoSuchVolume")),
        ("Acquire", json!({}), "org.varlink.service.InvalidParameter".to_owned()),
        ("ListTemplates", json!({}), own("NoSuchTemplate")),
        ("Release", json!({}), "org.varlink.service.MethodNotFound".to_owned()),
    ] {
        assert_eq!(provider.error(method, parameters.clone()), error, "{method} {parameters}");
    }
    let once = provider.client().call(&own("ListVolumes"), json!({})).unwrap_err();
    assert_eq!(once.to_string(), "org.varlink.service.ExpectedMore");
}

#[test]
fn hostile_clients_do_not_end_the_provider() {
    let mut provider = Provider::start();
    for bytes in [&b"\0\0\0"[..], b"GET / HTTP/1.1\r\n\r\n\0", &[b'['; 70_000], &[0xff; 100_000]] {
        let mut client = UnixStream::connect(&provider.socket).unwrap();
        let _ = client.write_all(bytes);
    }
    // More than are served at a time for one user, and silent ones: the others are closed.
    let silent: Vec<UnixStream> =
        (0..40).map(|_| UnixStream::connect(&provider.socket).unwrap()).collect();
    drop(silent);
    // The places of these are free once their end is seen.
    let method = format!("{INTERFACE}.ListTemplates");
    let answer = || match provider.client().call_more(&method, json!({}), |_| true) {
        Err(CallError::Service { name, .. }) => Some(name),
        _ => None,
    };
    assert_eq!(find(answer).unwrap(), format!("{INTERFACE}.NoSuchTemplate"));
    provider.running.signal(Signal::TERM);
    assert!(provider.running.end().success());
    assert!(!provider.socket.exists());
}

#[test]
fn handed_over_connection_is_served_to_its_end() {
    let (mine, theirs) = UnixStream::pair().unwrap();
    let mut command = Command::new("sh");
    // The socket is standard input, and becomes descriptor 3 of the program.
    let line = r#"exec 3<&0 0</dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$0" provider"#;
    command.args(["-c", line, PROGRAM]).stdin(Stdio::from(OwnedFd::from(theirs)));
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    drop(command);
    let mut client = Client::over(mine);
    client.set_timeout(Some(Duration::from_secs(60))).unwrap();
    let info = client.call("org.varlink.service.GetInfo", json!({})).unwrap();
    assert_eq!(info["interfaces"], json!(["org.varlink.service", INTERFACE]));
    drop(client);
    assert!(child.wait().unwrap().success());
}
