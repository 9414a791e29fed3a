//! Block devices that fail, or stop answering on request.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::foreign::{Background, Folder, lacks, program, run, wait_for};

/// The size of each device, in bytes.
pub(crate) const BYTES: u64 = 16 << 20;

/// Script for nbdkit that fails reads before offset `$BAD`; `$3` is the length and `$4` the offset.
const FAIL_BELOW: &str =
    r#"if [ "$4" -lt BAD ]; then echo EIO bad >&2; exit 1; fi; head -c "$3" /dev/zero"#;

/// A loop device and the processes behind it; all end when dropped.
pub(crate) struct Device {
    pub(crate) path: String,
    fuse: Option<Background>,
    server: Option<Background>,
    /// Socket of the pause filter of nbdkit.
    control: Option<UnixStream>,
}

impl Device {
    /// Returns a read-only device whose first `bad` bytes cannot be read; `None` if there is no
    /// free loop device.
    pub(crate) fn failing(folder: &Folder, name: &str, bad: u64) -> Option<Self> {
        let pread = format!("pread={}", FAIL_BELOW.replace("BAD", &bad.to_string()));
        let size = format!("get_size=echo {BYTES}");
        let read_only = "can_write=exit 3";
        Self::new(folder, name, &["eval", &size, &pread, read_only], &["--read-only"])
    }

    /// Returns a read-only device with the contents of `image`, of which these bytes cannot be read. What its
    /// server is asked for is in the file `NAME.log`.
    pub(crate) fn with_bad(
        folder: &Folder,
        name: &str,
        image: &str,
        bad: &[Range<usize>],
    ) -> Option<Self> {
        let mut map = "0x0 + 1\n".to_owned();
        let size = usize::try_from(fs::metadata(image).unwrap().len()).unwrap();
        let mut at = 0;
        for bad in bad.iter().chain([&(size..size)]) {
            map.push_str(&format!("{at:#x} {:#x} +\n", bad.start - at));
            if !bad.is_empty() {
                map.push_str(&format!("{:#x} {:#x} -\n", bad.start, bad.len()));
            }
            at = bad.end;
        }
        let (filter, log) =
            (folder.path(&format!("{name}.bad")), folder.path(&format!("{name}.log")));
        fs::write(&filter, map).unwrap();
        let (filter, log) = (format!("ddrescue-mapfile={filter}"), format!("logfile={log}"));
        let plugin = ["--filter=log", "--filter=ddrescue", "file", image, &filter, &log];
        Self::new(folder, name, &plugin, &["--read-only"])
    }

    /// Returns a device that discards writes and whose first `bad` bytes cannot be read.
    pub(crate) fn failing_writable(folder: &Folder, name: &str, bad: u64) -> Option<Self> {
        let pread = format!("pread={}", FAIL_BELOW.replace("BAD", &bad.to_string()));
        let size = format!("get_size=echo {BYTES}");
        Self::new(folder, name, &["eval", &size, &pread, "pwrite=cat >/dev/null"], &[])
    }

    /// Returns a device with the contents of `image` that can be paused.
    pub(crate) fn pausing(folder: &Folder, name: &str, image: &str) -> Option<Self> {
        Self::pausing_with(folder, name, image, &[])
    }

    /// Returns the same with options for losetup.
    pub(crate) fn pausing_with(
        folder: &Folder,
        name: &str,
        image: &str,
        options: &[&str],
    ) -> Option<Self> {
        let control = folder.path(&format!("{name}.control"));
        let pause = format!("pause-control={control}");
        let plugin = ["--filter=pause", "file", image, &pause];
        let mut device = Self::new(folder, name, &plugin, options)?;
        device.control = Some(UnixStream::connect(control).unwrap());
        Some(device)
    }

    /// Suspends all requests.
    pub(crate) fn pause(&mut self) {
        self.control(*b"p", *b"P");
    }

    /// Resumes requests, also those that arrived meanwhile.
    pub(crate) fn resume(&mut self) {
        self.control(*b"r", *b"R");
    }

    fn control(&mut self, command: [u8; 1], expected: [u8; 1]) {
        let control = self.control.as_mut().unwrap();
        let mut reply = [0];
        control.write_all(&command).unwrap();
        control.read_exact(&mut reply).unwrap();
        assert_eq!(reply, expected);
    }

    fn new(folder: &Folder, name: &str, plugin: &[&str], options: &[&str]) -> Option<Self> {
        let socket = folder.path(&format!("{name}.sock"));
        let args = ["--foreground", "--exit-with-parent", "--unix", &socket];
        let server = Background::start(program("nbdkit").args(args).args(plugin));
        wait_for("nbdkit's socket", || Path::new(&socket).exists().then_some(()));
        let file = folder.path(name);
        File::create(&file).unwrap();
        let uri = format!("nbd+unix:///?socket={socket}");
        let fuse = Background::start(program("nbdfuse").args([&file, &uri]));
        wait_for("a mounted disk", || fs::metadata(&file).ok().filter(|it| it.len() != 0));
        let line = ["--find", "--show", &file];
        let output = run(program("losetup").args(options).args(line));
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let device = Self { path, fuse: Some(fuse), server: Some(server), control: None };
        if message.contains("unused loop device") || message.contains("not permitted") {
            return None;
        }
        assert!(output.status.success(), "{message}");
        Some(device)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.control.is_some() {
            self.resume();
        }
        if !self.path.is_empty() {
            run(program("losetup").args(["-d", &self.path]));
        }
        let _ = self.fuse.take().map(Background::end);
        drop(self.server.take());
    }
}

/// Returns whether loop devices cannot be made here, and prints the reason.
pub(crate) fn skip_without_loop_devices(test: &str) -> bool {
    if lacks(test, &["nbdkit", "nbdfuse", "losetup"]) {
        return true;
    }
    let reason = match () {
        () if !rustix::process::geteuid().is_root() => "only root can make loop devices",
        () if !Path::new("/dev/fuse").exists() => "no /dev/fuse here",
        () if !Path::new("/dev/loop-control").exists() => "no loop devices here",
        () => return false,
    };
    println!("skip {test}: {reason}");
    true
}
