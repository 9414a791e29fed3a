//! Loop devices for tests.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use programs::is_installed;
use testkit::Scratch;

/// A loop device over a file, detached when dropped.
pub(crate) struct Loop(pub(crate) PathBuf, Scratch);

impl Loop {
    pub(crate) fn new(test: &str) -> Option<Self> {
        let reason = match () {
            () if !is_installed("losetup") => "not installed: losetup",
            () if !rustix::process::geteuid().is_root() => "only root can make loop devices",
            () if !Path::new("/dev/loop-control").exists() => "no loop devices here",
            () => "",
        };
        if !reason.is_empty() {
            println!("skip {test}: {reason}");
            return None;
        }
        let folder = Scratch::new();
        let image = folder.0.join("image");
        let file = File::create(&image).unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_at(b"a volume", 4096).unwrap();
        let output = Command::new("losetup").args(["--find", "--show"]).arg(&image).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
        Some(Self(String::from_utf8(output.stdout).unwrap().trim().into(), folder))
    }

    pub(crate) fn name(&self) -> &str {
        self.0.file_name().unwrap().to_str().unwrap()
    }

    pub(crate) fn image(&self) -> Vec<u8> {
        fs::read(self.1.0.join("image")).unwrap()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}
