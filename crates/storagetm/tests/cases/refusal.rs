//! What a host cannot access beyond its rules, or under another name: X15, X17, X18.

use std::fs;

use nvme::command::IoCommand;
use nvme::wire::Sqe;
use serde_json::Value;

use crate::alone::{ELSEWHERE, is_alone};
use crate::host::{NvmeClient, connect_tls, disk_psk, pairing_psk};
use crate::scene::{DESK, Folder, KEYED, LAPTOP, Running, SIZE, find, run_ok};

/// X15: a host NQN is not accepted without its key.
#[test]
fn x15_another_hosts_name_without_its_key_is_refused() {
    if !is_alone("refusal::x15_another_hosts_name_without_its_key_is_refused") {
        return;
    }
    let folder = Folder::new();
    let laptop = folder.authorize(LAPTOP, "laptop", "tls", &[]);
    let desk = folder.authorize(DESK, "desk", "tls", &[]);
    let prover = "nqn.2024-01.test:prover";
    let chap = folder.authorize(prover, "prover", "chap", &[]);
    let other = folder.authorize("nqn.2024-01.test:other", "other", "chap", &[]);
    let image = folder.image("disk.img", 5);
    let running = Running::serve(&["--pair", "--listen", KEYED, "--keys", &folder.keys(), &image]);
    let (address, names, _) = running.settled();
    let disk = &names[0];
    let spoofed = NvmeClient::new(LAPTOP, disk);
    // In plaintext, with the pairing PSK, with an unknown key, and with another host's key.
    assert!(spoofed.attach_plain(address).is_err());
    assert!(spoofed.attach(|| connect_tls(address, disk_psk(&desk, DESK, disk))).is_err());
    assert!(spoofed.attach(|| connect_tls(address, pairing_psk())).is_err());
    assert!(spoofed.attach_tls(address, &desk).is_err());
    // In the TLS channel of the laptop no other host can attach, with or without its own CHAP key.
    let channel = || connect_tls(address, disk_psk(&laptop, LAPTOP, disk));
    assert!(NvmeClient::new(DESK, disk).attach(channel).is_err());
    assert!(NvmeClient::new(prover, disk).attach(channel).is_err());
    // A host with a DH-HMAC-CHAP key is refused without it or with another one.
    assert!(NvmeClient::new(prover, disk).attach_plain(address).is_err());
    assert!(NvmeClient::new(prover, disk).with_credentials(&other).attach_plain(address).is_err());
    assert!(NvmeClient::new(LAPTOP, disk).with_credentials(&chap).attach_plain(address).is_err());
    // With its own key each host is accepted.
    let mut right = spoofed.attach_tls(address, &laptop).unwrap();
    assert_eq!(right.read(0).unwrap(), vec![5; 4096]);
    let events = running.until("attached");
    let attached: Vec<&Value> = events.iter().filter(|one| one["event"] == "attached").collect();
    assert_eq!((attached.len(), &attached[0]["key"]), (1, &Value::from("laptop")));
    assert!(events.iter().filter(|one| one["event"] == "refused").count() >= 5, "{events:#?}");
    assert!(NvmeClient::new(prover, disk).with_credentials(&chap).attach_plain(address).is_ok());
}

/// I/O commands that only read, or do nothing to the disk and to other hosts: Flush, Read, Compare,
/// Verify, Reservation Register, Reservation Report (NVMe Base 2.0 figure 88, NVM Command Set 1.0 figure
/// 15).
const HARMLESS: [u8; 6] = [0x00, 0x02, 0x05, 0x0c, 0x0d, 0x0e];

/// Admin commands that change something permanently: Namespace Management, Firmware Commit and
/// Download, Namespace Attachment, Virtualization, Directive Send, NVMe-MI Send, Lockdown, Format
/// NVM, Security Send, Sanitize; and those of vendors (NVMe Base 2.0 figure 87).
const GRAVE: [u8; 11] = [0x0d, 0x10, 0x11, 0x15, 0x1c, 0x19, 0x1d, 0x24, 0x80, 0x81, 0x84];

fn command(opcode: u8) -> Sqe {
    Sqe { opcode, ..IoCommand::Flush { nsid: 1 }.emit() }
}

/// X17: a read-only host cannot write by any command, and cannot attach other disks.
#[test]
fn x17_read_only_host_cannot_write_or_use_other_disks() {
    if !is_alone("refusal::x17_read_only_host_cannot_write_or_use_other_disks") {
        return;
    }
    let folder = Folder::new();
    let (one, other) = (folder.image("one.img", 1), folder.image("other.img", 2));
    let writable = ["--writable", &one, "--writable", &other];
    let keys = folder.keys();
    let line = [&["--listen", KEYED, "--keys", &keys][..], &writable].concat();
    let running = Running::serve(&line);
    let (address, names) = running.ready();
    let key = folder.authorize(LAPTOP, "laptop", "tls", &["--disk", &names[0]]);
    let client = NvmeClient::new(LAPTOP, &names[0]);
    let mut disk = find(|| client.attach_tls(address, &key).ok()).unwrap();
    assert_eq!(disk.read(0).unwrap(), vec![1; 4096]);
    let anew = |disk: &mut _| *disk = client.attach_tls(address, &key).unwrap();
    for opcode in (0..=255).filter(|opcode| !HARMLESS.contains(opcode)) {
        match disk.execute_io(command(opcode)) {
            Ok(worked) => assert!(!worked, "I/O command {opcode:02x}h"),
            Err(_) => anew(&mut disk),
        }
    }
    for opcode in GRAVE.into_iter().chain(0xc0..=0xff) {
        match disk.execute_admin(command(opcode)) {
            Ok(worked) => assert!(!worked, "admin command {opcode:02x}h"),
            Err(_) => anew(&mut disk),
        }
    }
    // Set Features, Namespace Write Protection Config: no write protection (NVMe Base 2.0
    // §5.27.1.31).
    let unlock = Sqe { cdw10: 0x84.into(), ..command(0x09) };
    assert!(!disk.execute_admin(unlock).unwrap_or(false));
    assert!(!disk.write(0).unwrap());
    assert_eq!(disk.read(0).unwrap(), vec![1; 4096]);
    // Neither with a key derived for that disk nor with its own.
    let second = NvmeClient::new(LAPTOP, &names[1]);
    assert!(second.attach_tls(address, &key).is_err());
    assert!(second.attach(|| connect_tls(address, disk_psk(&key, LAPTOP, &names[0]))).is_err());
    assert_eq!(running.next("refused")["event"], "refused");
    drop(disk);
    assert_eq!(running.next("detached")["written"], 0);
    assert_eq!(fs::read(&one).unwrap(), vec![1; SIZE]);
    assert_eq!(fs::read(&other).unwrap(), vec![2; SIZE]);
    // The host is read-only, not the disk.
    let change = ["host", "add", LAPTOP, "--replace", "--disk", &names[0], "--writable"];
    folder.run_command(&change);
    assert!(find(|| client.attach_tls(address, &key).ok()?.write(0).ok()?.then_some(())).is_some());
    assert_eq!(fs::read(&one).unwrap()[..512], [0xaa; 512]);
}

/// X18: a host that knows the code and requests write access gets read access, unless the user
/// confirms on the screen.
#[test]
fn x18_write_access_needs_confirmation_on_a_screen() {
    if !is_alone("refusal::x18_write_access_needs_confirmation_on_a_screen") {
        return;
    }
    let (folder, guests) = (Folder::new(), Folder::new());
    let image = folder.image("disk.img", 3);
    let line = ["--pair", "--listen", KEYED, "--keys", &folder.keys(), "--writable", &image];
    let running = Running::serve(&line);
    let (address, names, code) = running.settled();
    // Also a host that had write access before.
    folder.authorize(LAPTOP, "laptop", "tls", &["--writable"]);
    let place = format!("{ELSEWHERE}:{}", address.port());
    let args = ["--writable", "--json", "--code-file", "-", "--hostnqn", LAPTOP];
    let kept = guests.keys();
    let line = [&["pair", &place, "--name", "guest", "--keys", &kept][..], &args].concat();
    let reported = run_ok(&line, &format!("{code}\n"));
    let reported: Value = serde_json::from_str(&reported).unwrap();
    assert_eq!(reported["access"], "read-only", "{reported}");
    let events = running.until("paired");
    assert_eq!(events.last().unwrap()["access"], "read-only");
    let message =
        |event: &Value| event["message"].as_str().is_some_and(|it| it.contains("no screen"));
    assert!(events.iter().any(message), "{events:#?}");
    let listed: Value =
        serde_json::from_str(&folder.run_command(&["host", "list", "--json"])).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!(listed[0]["rules"][0]["access"], "read-only", "{listed}");
    let key = folder.key("laptop");
    let client = NvmeClient::new(LAPTOP, &names[0]);
    let mut disk = find(|| client.attach_tls(address, &key).ok()).unwrap();
    assert_eq!(disk.read(0).unwrap(), vec![3; 4096]);
    assert!(!disk.write(0).unwrap());
    assert_eq!(fs::read(&image).unwrap(), vec![3; SIZE]);
}
