//! Attaching and detaching with a directory in place of `/sys` and `/dev`: what is written to the
//! kernel.

use std::fs;
use std::net::IpAddr;

use super::*;
use keys::target::Target;
use testkit::Scratch;

/// A machine with an attached disk, mounted or not.
struct Machine(Scratch);

impl Machine {
    fn new() -> Self {
        let machine = Self(Scratch::new());
        machine.controller("nvme1", "traddr=10.0.0.1,trsvcid=4420", "nqn.2024-01.test:a");
        machine.disk("nvme1", "nvme1n1", "259:1");
        machine
    }

    fn tree(&self) -> Tree {
        Tree::at(&self.0.0)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn controller(&self, name: &str, address: &str, nqn: &str) {
        for (attribute, text) in [
            ("transport", "tcp"),
            ("address", address),
            ("subsysnqn", nqn),
            ("state", "live"),
            ("delete_controller", ""),
        ] {
            self.write(&format!("sys/class/nvme/{name}/{attribute}"), text);
        }
    }

    fn disk(&self, controller: &str, name: &str, number: &str) {
        self.write(&format!("sys/class/nvme/{controller}/{name}/size"), "2048\n");
        let place = format!("sys/devices/virtual/{controller}/{name}");
        self.write(&format!("{place}/dev"), number);
        self.write(&format!("{place}/size"), "2048\n");
        self.write(&format!("{place}/ro"), "1\n");
        self.write(&format!("dev/{name}"), "");
        for folder in ["sys/class/block", "sys/dev/block"] {
            fs::create_dir_all(self.0.0.join(folder)).unwrap();
        }
        let link = |from: &str| {
            std::os::unix::fs::symlink(self.0.0.join(&place), self.0.0.join(from)).unwrap();
        };
        link(&format!("sys/class/block/{name}"));
        link(&format!("sys/dev/block/{number}"));
    }

    fn mounted(&self, number: &str, at: &str) {
        let line = format!("1 0 {number} / {at} rw - ext4 /dev/root rw\n");
        self.write("proc/self/mountinfo", &line);
        self.write("proc/swaps", "Filename Type Size Used Priority\n");
    }

    fn is_let_go(&self, controller: &str) -> bool {
        self.tree().text(format!("sys/class/nvme/{controller}/delete_controller")).unwrap() == "1"
    }
}

#[test]
fn disk_is_detached_by_path_nqn_or_machine() {
    let known = [Target::sample("desk pc", "10.0.0.1")];
    for what in [
        "/dev/nvme1n1",
        "nvme1",
        "nqn.2024-01.test:a",
        "10.0.0.1",
        "10.0.0.1:4420",
        "nvme://10.0.0.1/nqn.2024-01.test:a",
        "10.0.0.1/a",
        "desk pc",
    ] {
        let machine = Machine::new();
        machine.mounted("8:1", "/");
        machine.controller("nvme2", "traddr=10.0.0.2,trsvcid=4421", "nqn.2024-01.test:b");
        let gone = detach_matching(&machine.tree(), Some(what), false, &known).unwrap();
        assert_eq!(gone.len(), 1, "{what}");
        assert_eq!(
            (gone[0].controller.as_str(), &gone[0].devices[0][..]),
            ("nvme1", "/dev/nvme1n1")
        );
        assert!(machine.is_let_go("nvme1") && !machine.is_let_go("nvme2"), "{what}");
    }
}

#[test]
fn unknown_disk_is_reported_and_nothing_detached() {
    let machine = Machine::new();
    machine.mounted("8:1", "/");
    for what in [
        "/dev/nvme0n1",
        "/dev/sda",
        "nqn.2024-01.test:x",
        "10.0.0.9",
        "10.0.0.1:5000",
        "10.0.0.1/b",
    ] {
        let failure = detach_matching(&machine.tree(), Some(what), true, &[]).unwrap_err();
        assert!(failure.to_string().contains("nothing is attached"), "{what}: {failure}");
    }
    assert!(!machine.is_let_go("nvme1"));
}

#[test]
fn a_disk_in_use_stays_unless_it_must_go() {
    let machine = Machine::new();
    machine.mounted("259:1", "/mnt");
    machine.controller("nvme2", "traddr=10.0.0.2,trsvcid=4421", "nqn.2024-01.test:b");
    let failure = detach_matching(&machine.tree(), None, false, &[]).unwrap_err().to_string();
    assert!(failure.contains("/dev/nvme1n1 is in use") && failure.contains("/mnt"), "{failure}");
    assert!(failure.contains("--force"), "{failure}");
    assert!(!machine.is_let_go("nvme1") && !machine.is_let_go("nvme2"), "all or none");
    let gone = detach_matching(&machine.tree(), None, true, &[]).unwrap();
    assert_eq!(gone.len(), 2);
    assert!(machine.is_let_go("nvme1") && machine.is_let_go("nvme2"));
}

#[test]
fn one_of_two_ways_to_a_disk_in_use_may_go() {
    let machine = Machine::new();
    machine.mounted("259:1", "/mnt");
    machine.controller("nvme3", "traddr=10.0.0.2,trsvcid=4420", "nqn.2024-01.test:a");
    machine.write("sys/class/nvme/nvme3/nvme1c3n1/size", "2048\n");
    assert!(detach_matching(&machine.tree(), Some("nqn.2024-01.test:a"), false, &[]).is_err());
    assert_eq!(detach_matching(&machine.tree(), Some("10.0.0.2"), false, &[]).unwrap().len(), 1);
    assert!(machine.is_let_go("nvme3") && !machine.is_let_go("nvme1"));
}

#[test]
fn attached_disk_is_printed_with_its_size() {
    let machine = Machine::new();
    let devices = kernel::devices(&machine.tree(), "nvme1");
    let device = kernel::Device {
        path: "/dev/nvme1n1".to_owned(),
        bytes: 1 << 20,
        access: Allowed::ReadOnly,
    };
    assert_eq!(devices, [device]);
    let nqn = "nqn.2024-01.test:a".to_owned();
    let mut attached = Attached { nqn, controller: "nvme1".to_owned(), devices, already: false };
    assert_eq!(lines(&attached), ["/dev/nvme1n1: 1 MB, read-only (nqn.2024-01.test:a)"]);
    attached.devices.clear();
    assert!(lines(&attached)[0].contains("has not come yet"));
}

#[test]
fn without_the_driver_nothing_is_asked_for() {
    let machine = Machine::new();
    let nowhere: IpAddr = "10.0.0.1".parse().unwrap();
    let connection = Connection {
        address: nowhere,
        port: 4420,
        interface: None,
        subsystem: "nqn.2024-01.test:a",
        host: "nqn.2024-01.test:host",
        host_id: "6b1c2f5e-30c4-4a6e-8d27-5b8f0a9c4d11",
        tls: false,
        chap: None,
        chap_controller: None,
        digests: false,
        loss_timeout: 1,
    };
    assert!(matches!(kernel::attach(&machine.tree(), &connection), Err(FabricsError::Absent)));
}

#[test]
fn only_a_secret_for_dh_hmac_chap_is_one() {
    let folder = Scratch::new();
    let path = folder.0.join("key");
    fs::create_dir_all(&folder.0).unwrap();
    let tls = Key::generate(KeyKind::Tls, None).unwrap();
    fs::write(&path, tls.text().bytes()).unwrap();
    assert_eq!(read_chap_key(Some(&path)).unwrap_err().status(), 2);
    let chap = Key::generate(KeyKind::Chap, None).unwrap();
    fs::write(&path, chap.text().bytes()).unwrap();
    let own = read_chap_key(Some(&path)).unwrap();
    assert!(credentials(own.as_ref(), None).unwrap().is_some_and(|it| it.controller.is_none()));
    assert!(
        read_chap_key(Some(&folder.0.join("none"))).is_err()
            && read_chap_key(None).unwrap().is_none()
    );
}

#[test]
fn a_failure_holds_up_no_other_disk() {
    let (well, failed) =
        try_each(&[1, 2, 3], |n| if n % 2 == 1 { Ok(*n) } else { Err(Failure::new(n)) });
    assert_eq!((well, failed.unwrap().to_string().as_str()), (vec![1, 3], "2"));
}

#[test]
fn detached_disks_or_none_are_printed() {
    assert_eq!(summary(&[]), "nothing was attached by NVMe/TCP\n");
    let detached = |devices: &[&str]| Detached {
        nqn: "nqn.x".to_owned(),
        controller: "nvme0".to_owned(),
        devices: devices.iter().map(|device| (*device).to_owned()).collect(),
    };
    assert_eq!(
        summary(&[detached(&["/dev/nvme0n1"]), detached(&[])]),
        "/dev/nvme0n1 is detached (nqn.x)\nnvme0 is detached (nqn.x)\n"
    );
}
