//! What initiators of other projects find, read and write.

use std::process::Command;

use crate::server::Server;

/// Runs a program that must succeed, and returns what it printed.
fn output_of(program: &str, arguments: &[&str]) -> String {
    let ran = Command::new("timeout").arg("60").arg(program).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        ran.status.success(),
        "{program} {arguments:?}: {}{}",
        text(&ran.stdout),
        text(&ran.stderr)
    );
    text(&ran.stdout)
}

#[test]
fn iscsi_ls_lists_each_disk_as_lun_0_of_a_target() {
    if programs::lacks("discovery by an iSCSI initiator", &["iscsi-ls"]) {
        return;
    }
    let server = Server::of_zeros(&[64 << 20, 128 << 20], true);
    let list = output_of("iscsi-ls", &["-s", &format!("iscsi://{}", server.portal())]);
    for disk in [0, 1] {
        let target = format!("Target:{} Portal:{},1", server.iqn(disk), server.portal());
        assert!(list.contains(&target), "{list}");
    }
    assert_eq!(list.matches("Lun:0    Type:DIRECT_ACCESS").count(), 2, "{list}");
    // It shows the offset of the last block, in whole MiB.
    assert!(list.contains("(Size:63M)") && list.contains("(Size:127M)"), "{list}");
}

#[test]
fn iscsi_inq_shows_the_disk_and_its_identity() {
    if programs::lacks("INQUIRY by an iSCSI initiator", &["iscsi-inq"]) {
        return;
    }
    let server = Server::of_zeros(&[64 << 20], true);
    let shown = output_of("iscsi-inq", &[&server.uri(0)]);
    assert!(shown.contains("Peripheral Device Type:DIRECT_ACCESS"), "{shown}");
    let identity = output_of("iscsi-inq", &["-e", "1", "-c", "131", &server.uri(0)]);
    assert!(identity.contains("NAA") || identity.contains("EUI"), "{identity}");
}
