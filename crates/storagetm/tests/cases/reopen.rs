//! Wrong codes on a machine without a terminal: a signal unlocks pairing, and a restart of the
//! worker does not reset the counter (X62).

use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::alone::{ELSEWHERE, is_alone};
use crate::scene::{Folder, KEYED, LAPTOP, Running, run};

struct Scene {
    running: Running,
    place: String,
    guests: Folder,
    _folder: Folder,
}

impl Scene {
    /// Returns the server and the valid code.
    fn new() -> (Self, String) {
        let (folder, guests) = (Folder::new(), Folder::new());
        let image = folder.image("disk.img", 4);
        let running =
            Running::serve(&["--pair", "--listen", KEYED, "--keys", &folder.keys(), &image]);
        let (address, _, code) = running.settled();
        let place = format!("{ELSEWHERE}:{}", address.port());
        (Self { running, place, guests, _folder: folder }, code)
    }

    /// Tries a code. Returns the exit status and the output.
    fn pair(&self, code: &str) -> (Option<i32>, String) {
        let keys = self.guests.keys();
        let line = ["pair", &self.place, "--hostnqn", LAPTOP, "--name", "guest", "--keys", &keys];
        let output = run(&[&line[..], &["--code-file", "-"]].concat(), code);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Tries a wrong code. Returns the valid code afterwards.
    fn fail(&self, right: &str) -> String {
        let wrong = if right == "12345678" { "12345679" } else { "12345678" };
        assert_eq!(self.pair(wrong).0, Some(3));
        self.running.code()
    }
}

fn process(path: &std::path::Path) -> Pid {
    Pid::from_raw(path.file_name().unwrap().to_str().unwrap().parse().unwrap()).unwrap()
}

#[test]
fn x62_a_signal_lets_pairing_go_on() {
    if !is_alone("reopen::x62_a_signal_lets_pairing_go_on") {
        return;
    }
    let (scene, code) = Scene::new();
    let second = scene.fail(&code);
    kill_process(process(&scene.running.process()), Signal::USR1).unwrap();
    // The signal ends the pause after the wrong code and creates another code.
    let third = scene.running.code();
    assert_ne!(second, third);
    assert_eq!(scene.pair(&third).0, Some(0));
}

#[test]
fn x62_wrong_codes_outlive_the_process_that_counts_them() {
    if !is_alone("reopen::x62_wrong_codes_outlive_the_process_that_counts_them") {
        return;
    }
    let (scene, mut code) = Scene::new();
    for pause in [1, 2, 4, 0] {
        code = scene.fail(&code);
        thread::sleep(Duration::from_millis(pause * 1100));
    }
    kill_process(process(&scene.running.worker()), Signal::KILL).unwrap();
    // One more than four: sixteen seconds.
    let fresh = scene.running.code();
    assert_ne!(code, fresh);
    let (status, message) = scene.pair(&fresh);
    assert_eq!(status, Some(3), "{message}");
    assert!(message.contains("wrong code was tried recently: try again in 1"), "{message}");
}
