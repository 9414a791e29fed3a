//! The program as an iSCSI target.

use std::fs::File;

use serde_json::Value;
use testkit::Scratch;

use crate::process::Running;

/// The program, with images in a temporary folder; killed when dropped.
pub(crate) struct Server {
    _running: Running,
    _folder: Scratch,
    /// Events up to `ready`.
    pub(crate) events: Vec<Value>,
}

impl Server {
    /// Serves images of zeros of these lengths at a free port of the loopback interface.
    pub(crate) fn of_zeros(lengths: &[u64], writable: bool) -> Self {
        Self::of_images(lengths, writable, &[], |_| {})
    }

    /// Serves images of these lengths, which `fill` writes to before, with more options.
    pub(crate) fn of_images(
        lengths: &[u64],
        writable: bool,
        options: &[&str],
        fill: impl Fn(&File),
    ) -> Self {
        let folder = Scratch::new();
        let images = lengths.iter().enumerate().map(|(at, length)| {
            let path = folder.0.join(format!("disk{at}"));
            let image = File::create(&path).unwrap();
            image.set_len(*length).unwrap();
            fill(&image);
            path.to_str().unwrap().to_owned()
        });
        let images: Vec<String> = images.collect();
        let access = writable.then_some("--writable");
        let disks: Vec<&str> =
            images.iter().flat_map(|image| access.into_iter().chain([image.as_str()])).collect();
        let own =
            ["--json", "--no-announce", "--protocol", "iscsi", "--listen", "iscsi:127.0.0.1:0"];
        let running = Running::serve(&[&own[..], options, &disks].concat());
        let events = running.until("ready");
        Self { _running: running, _folder: folder, events }
    }

    /// Returns `127.0.0.1:PORT`.
    pub(crate) fn portal(&self) -> String {
        let port = self.events.iter().find_map(|event| event["port"].as_u64());
        format!("127.0.0.1:{}", port.expect("a port"))
    }

    /// Returns the URI of a disk, as the events have it.
    pub(crate) fn uri(&self, disk: usize) -> String {
        let lent = self.events.iter().filter(|event| event["event"] == "lent").nth(disk).unwrap();
        lent["iscsi"][0].as_str().unwrap().to_owned()
    }

    /// Returns the target name of a disk.
    pub(crate) fn iqn(&self, disk: usize) -> String {
        let lent = self.events.iter().filter(|event| event["event"] == "lent").nth(disk).unwrap();
        lent["iqn"].as_str().unwrap().to_owned()
    }
}
