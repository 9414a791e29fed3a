//! Whole copies from and to another machine, by every protocol, also with restarts of the target.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use client::ignoring_subsystem;
use copy::{
    CopyError, End, Endpoint, FileEndpoint, Job, NbdEndpoint, NvmeEndpoint, NvmeHost, OpenMode,
    Outcome, Report, Settings,
};

use crate::driver::pattern;
use crate::machine::{BYTES, Machine, dial, eventually};

/// The protocol.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wire {
    Nvme,
    Nbd,
    Iscsi,
}

pub(crate) const WAYS: [Wire; 3] = [Wire::Nvme, Wire::Nbd, Wire::Iscsi];

fn endpoint(machine: &Machine, way: Wire) -> Box<dyn Endpoint> {
    match way {
        Wire::Nvme => {
            let nqn = "nqn.2014-08.org.nvmexpress:uuid:host".to_owned();
            let host = NvmeHost { nqn, id: [3; 16], credentials: None };
            Box::new(NvmeEndpoint::new(
                "nvme://there",
                "disk1",
                host,
                ignoring_subsystem(machine.dial()),
            ))
        }
        Wire::Nbd => Box::new(NbdEndpoint::new("nbd://there", "disk1", dial(machine.nbd))),
        Wire::Iscsi => Box::new(crate::iscsi::endpoint(machine, crate::iscsi::TARGET, 0)),
    }
}

/// A file that is removed at the end of the test.
pub(crate) struct Image(pub(crate) PathBuf);

impl Image {
    pub(crate) fn new(test: &str) -> Self {
        Self(std::env::temp_dir().join(format!("copy-{}-{test}", std::process::id())))
    }

    pub(crate) fn destination(&self) -> End {
        End::Disk(Box::new(FileEndpoint::destination(&self.0, OpenMode::Replace, "")))
    }

    /// Bytes of the file that are allocated on disk.
    fn arrived(&self) -> Option<u64> {
        std::fs::metadata(&self.0).ok().map(|metadata| metadata.blocks() * 512)
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.0).unwrap()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

pub(crate) fn run(source: End, destination: End, settings: Settings) -> Report {
    Job { source, destination, settings, check: None }.run(&AtomicBool::new(false), &mut |_| {})
}

pub(crate) fn machine() -> (Machine, Vec<u8>) {
    let mut machine = Machine::new();
    let bytes = machine.export_disk(1);
    (machine, bytes)
}

#[test]
fn remote_disk_is_copied_and_verified() {
    for way in WAYS {
        let ((machine, bytes), image) = (machine(), Image::new(&format!("over{way:?}")));
        let source = End::Disk(endpoint(&machine, way));
        let report = run(source, image.destination(), Settings::default());
        assert!(matches!(report.outcome, Outcome::Success), "{way:?} {report:?}");
        assert_eq!(report.verified, BYTES as u64);
        assert!(image.bytes() == bytes, "{way:?}");
    }
}

#[test]
fn file_is_copied_to_remote_disk_and_verified() {
    for way in WAYS {
        let ((machine, _), image) = (machine(), Image::new(&format!("back{way:?}")));
        let mut bytes = pattern(5, BYTES);
        bytes[1 << 20..4 << 20].fill(0);
        std::fs::write(&image.0, &bytes).unwrap();
        let source = End::Disk(Box::new(FileEndpoint::source(&image.0, "")));
        let report = run(source, End::Disk(endpoint(&machine, way)), Settings::default());
        assert!(matches!(report.outcome, Outcome::Success), "{way:?} {report:?}");
        assert!(machine.bytes(0) == bytes, "{way:?}");
    }
}

/// Copies slowly; in the middle the target is stopped, changed and restarted.
fn interrupted(way: Wire, image: &Image, meanwhile: fn(&mut Machine)) -> (Report, Vec<u8>) {
    let (mut machine, bytes) = machine();
    let (source, destination) = (End::Disk(endpoint(&machine, way)), image.destination());
    let settings = Settings {
        rate: Some(4 << 20),
        connections: 2,
        chunk: 64 << 10,
        reconnect_timeout: Duration::from_secs(20),
        ..Settings::default()
    };
    let copy = thread::spawn(move || run(source, destination, settings));
    eventually(|| image.arrived().filter(|bytes| *bytes >= 1 << 20));
    machine.stop();
    meanwhile(&mut machine);
    thread::sleep(Duration::from_millis(400));
    machine.start();
    (copy.join().unwrap(), bytes)
}

/// R24: little is sent again, and the result is correct.
#[test]
fn r24_copy_continues_after_target_restart() {
    for way in WAYS {
        let image = Image::new(&format!("resumed{way:?}"));
        let (report, bytes) = interrupted(way, &image, |_| {});
        assert!(matches!(report.outcome, Outcome::Success), "{way:?} {report:?}");
        assert!(report.resent <= BYTES as u64 / 2, "{way:?} {report:?}");
        assert!(image.bytes() == bytes, "{way:?}");
    }
}

/// X41: a smaller disk is another disk.
#[test]
fn x41_smaller_disk_after_reconnect_fails_copy() {
    for way in WAYS {
        let image = Image::new(&format!("shrunk{way:?}"));
        let (report, _) = interrupted(way, &image, |machine| {
            let export =
                machine.catalogue.find(&"nqn.2014-08.org.nvmexpress:uuid:1".into()).unwrap();
            export.resize(BYTES as u64 / 2);
        });
        let changed = matches!(report.outcome, Outcome::Failed(CopyError::DifferentDisk { .. }));
        assert!(changed, "{way:?} {report:?}");
    }
}
