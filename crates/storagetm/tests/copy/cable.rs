//! A link between two network namespaces that is down for some time during a copy.

use std::fs;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::alone::{Cable, is_alone};
use crate::scene::{Folder, MIB, allocated, assert_equal, copy};
use crate::target::Target;

/// R24: a link that is down for some seconds delays a copy by about that time.
#[test]
fn r24_a_copy_goes_on_when_the_cable_is_plugged_in_again() {
    if !is_alone("cable::r24_a_copy_goes_on_when_the_cable_is_plugged_in_again") {
        return;
    }
    let (folder, cable) = (Folder::new(), Cable::lay());
    let image = folder.image("disk.img", 64 * MIB);
    let args = ["--open", "--listen", "nvme:10.98.0.1:0", "--listen", "nbd:10.98.0.1:0", &image];
    let target = Target::serve(&args);
    for protocol in ["nvme", "nbd"] {
        let source = format!("{protocol}://10.98.0.1:{}/disk", target.port(protocol));
        let (destination, map) = (folder.path(protocol), folder.path(&format!("{protocol}.map")));
        let mut far = cable.there(|| start(&source, &destination, &map));
        until_it_has(&destination, 4 * MIB);
        cable.pull();
        sleep(Duration::from_secs(3));
        let (before, ended) = (allocated(&destination), far.try_wait().unwrap());
        assert!(ended.is_none(), "the cable was pulled when all was over");
        assert!(before < 32 * MIB, "the cable was pulled when all had come");
        cable.plug();
        assert!(far.wait().unwrap().success());
        assert_equal(&image, &destination);
    }
}

/// Half of the disk is data, for six seconds.
fn start(source: &str, destination: &str, map: &str) -> Child {
    let mut command = copy(&["--rate", "6M", "--map", map, source, destination]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn until_it_has(path: &str, bytes: u64) {
    let end = Instant::now() + Duration::from_secs(60);
    while fs::metadata(path).is_err() || allocated(path) < bytes {
        assert!(Instant::now() < end, "nothing comes");
        sleep(Duration::from_millis(20));
    }
}
