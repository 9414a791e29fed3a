//! Disks of the kernel's NVMe target, as nvmetcli has saved them.

use std::fs;

use serde_json::{Value, json};

use crate::{Folder, Running, run, sentence, text};

const NQN: &str = "nqn.2026-12.com.example:storage";
const UUID: &str = "6f2c0e5e-0f4c-4f3a-9a8e-7d1a5a8e2b01";

/// What nvmetcli saves of two namespaces at any free port of the loopback address.
fn saved(folder: &Folder, images: [&str; 2]) -> String {
    let namespace = |nsid: u32, path: &str| {
        let nguid = "00000000-0000-0000-0000-000000000000";
        let uuid = if nsid == 1 { UUID } else { "6f2c0e5e-0f4c-4f3a-9a8e-7d1a5a8e2b02" };
        let device = json!({"nguid": nguid, "path": path, "uuid": uuid});
        json!({"ana_grpid": 1, "device": device, "enable": 1, "nsid": nsid})
    };
    let addr = json!({"adrfam": "ipv4", "traddr": "127.0.0.1", "treq": "not specified", "trsvcid": "0", "trtype": "tcp"});
    let config = json!({
        "hosts": [{"nqn": "nqn.2026-12.com.example:host"}],
        "ports": [{
            "addr": addr,
            "ana_groups": [{"ana": {"state": "optimized"}, "grpid": 1}],
            "param": {"inline_data_size": "16384", "pi_enable": "0"},
            "portid": 1,
            "referrals": [],
            "subsystems": [NQN],
        }],
        "subsystems": [{
            "allowed_hosts": ["nqn.2026-12.com.example:host"],
            "attr": {"allow_any_host": "0", "cntlid_max": "65519", "model": "Linux", "serial": "0f1e2d3c4b5a"},
            "namespaces": [namespace(1, images[0]), namespace(2, images[1])],
            "nqn": NQN,
        }],
    });
    let path = folder.0.0.join("config.json");
    fs::write(&path, config.to_string()).unwrap();
    text(&path)
}

#[test]
fn disks_of_nvmetcli_are_lent_under_their_names() {
    let folder = Folder::new();
    let images = ["one.img", "two.img"].map(|name| folder.image(name, 1 << 20));
    fs::write(&images[0], [7; 1 << 20]).unwrap();
    let config = saved(&folder, [&images[0], &images[1]]);
    let control = text(&folder.0.0.join("control"));
    // The way to a disk does not matter.
    let link = text(&folder.0.0.join("a link"));
    std::os::unix::fs::symlink(&images[1], &link).unwrap();
    let line = ["--json", "--control", &control, "--nvmet-config", &config, "--writable", &link];
    let running = Running::serve(&line);
    let events = running.until("ready");
    let second = format!("{NQN}-ns2");
    let lent = |nqn: &str| {
        let is_it = |event: &&Value| event["event"] == "lent" && event["nqn"] == nqn;
        events.iter().find(is_it).unwrap_or_else(|| panic!("{nqn}: {events:?}"))
    };
    let first = lent(NQN);
    assert_eq!(
        (&first["access"], &lent(&second)["access"]),
        (&json!("read-only"), &json!("writable"))
    );
    assert_eq!((&first["serial"], &first["model"]), (&json!("0f1e2d3c4b5a"), &json!("Linux")));
    let listening: Vec<&Value> = events.iter().filter(|it| it["event"] == "listening").collect();
    assert!(matches!(listening[..], [one] if one["protocol"] == "nvme-tcp"), "{listening:?}");
    let status = run(&["status", "--json", "--socket", &control]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    let notes = status[0]["notes"].as_array().unwrap();
    for said in [
        "storagetm host add nqn.2026-12.com.example:host",
        "hosts connect to",
        "hosts could write to",
    ] {
        assert!(
            notes.iter().any(|note| note.as_str().unwrap().contains(said)),
            "{said}: {notes:?}"
        );
    }
    let at = format!("nvme://127.0.0.1:{}", listening[0]["port"]);
    let copied = text(&folder.0.0.join("copied"));
    let copy = |from: &str, to: &str| run(&["copy", "--yes", "--force", from, to]);
    let output = copy(&format!("{at}/{NQN}"), &copied);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::read(&copied).unwrap(), fs::read(&images[0]).unwrap());
    let output = copy(&copied, &format!("{at}/{second}"));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::read(&images[1]).unwrap(), fs::read(&images[0]).unwrap());
    let refused = copy(&copied, &format!("{at}/{NQN}"));
    assert!(!refused.status.success(), "{refused:?}");
}

#[test]
fn printed_line_authorizes_the_host_as_pasted() {
    let folder = Folder::new();
    let images = ["one.img", "two.img"].map(|name| folder.image(name, 1 << 20));
    let config = saved(&folder, [&images[0], &images[1]]);
    let (control, keys) = (text(&folder.0.0.join("control")), text(&folder.0.0.join("my keys")));
    fs::create_dir(&keys).unwrap();
    let line = ["--json", "--control", &control, "--nvmet-config", &config, "--keys", &keys];
    let running = Running::serve(&line);
    running.until("ready");
    let status = run(&["status", "--json", "--socket", &control]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    let notes = status[0]["notes"].as_array().unwrap().iter().filter_map(Value::as_str);
    let mut lines = notes.filter_map(|note| Some(note.split_once("here: storagetm ")?.1));
    let line = format!("{} {}", env!("CARGO_BIN_EXE_storagetm"), lines.next().unwrap());
    let pasted = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
    assert!(pasted.status.success(), "{line}: {pasted:?}");
    let hosts = run(&["host", "list", "--json", "--keys", &keys]);
    let hosts: Value = serde_json::from_slice(&hosts.stdout).unwrap();
    let rules = hosts[0]["rules"].as_array().unwrap();
    let of = |rule: &Value| (rule["disk"].clone(), rule["access"].clone());
    let wanted = [json!(NQN), json!(format!("{NQN}-ns2"))].map(|disk| (disk, json!("read-only")));
    assert_eq!(rules.iter().map(of).collect::<Vec<_>>(), wanted, "{hosts}");
}

#[test]
fn nvmet_config_is_refused_without_nvme() {
    let folder = Folder::new();
    let image = folder.image("one.img", 1 << 20);
    let config = saved(&folder, [&image, &image]);
    let message = sentence(&run(&["serve", "--protocol", "nbd", "--nvmet-config", &config]), 2);
    assert!(message.contains("--nvmet-config needs nvme among those of --protocol"), "{message}");
}

#[test]
fn other_files_than_those_of_nvmetcli_are_refused() {
    let folder = Folder::new();
    let path = folder.0.0.join("config.json");
    for (content, said) in [
        ("{\"hosts\": []}", "is not what nvmetcli saves: line 1"),
        ("{\"subsystems\": []}", "has no disk to lend"),
        ("nothing", "is not what nvmetcli saves"),
    ] {
        fs::write(&path, content).unwrap();
        let message = sentence(&run(&["serve", "--nvmet-config", &text(&path)]), 1);
        assert!(message.contains(said), "{message}");
    }
}
