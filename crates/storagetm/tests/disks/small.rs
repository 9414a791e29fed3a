//! A small file system that can be filled.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// A file system in memory. Unmounted when dropped.
pub(crate) struct Small(pub(crate) PathBuf);

impl Small {
    /// Mounts it with these options, which have its size. Returns `None` if that is not allowed.
    pub(crate) fn mount(at: PathBuf, options: &CStr) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        let mounted = mount("tmpfs", &at, "tmpfs", MountFlags::empty(), Some(options));
        mounted.is_ok().then_some(Self(at))
    }

    #[allow(dead_code, reason = "not all tests have files of their own in it")]
    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn fill(&self) {
        let mut file = File::create(self.0.join("fill")).unwrap();
        let error = loop {
            if let Err(error) = file.write_all(&[0; 4096]) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::StorageFull);
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}
