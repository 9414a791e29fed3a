//! The screen in a terminal.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::process::{field, find, proc};
use crate::{Folder, PROGRAM};

/// The program in a terminal of its own; killed when dropped.
struct Terminal {
    child: Child,
    /// What was written to the terminal.
    written: Arc<Mutex<Vec<u8>>>,
    _near: OwnedFd,
}

impl Terminal {
    /// Starts `storagetm serve` with these arguments in a terminal of 80 columns and 25 rows.
    fn serve(args: &[&str]) -> Self {
        let near = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&near).unwrap();
        unlockpt(&near).unwrap();
        let size = Winsize { ws_row: 25, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&near, size).unwrap();
        let path = ptsname(&near, Vec::new()).unwrap().into_string().unwrap();
        let far = || OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let child = Command::new("setsid")
            .args(["--ctty", PROGRAM, "serve", "--no-announce"])
            .args(args)
            .env("TERM", "xterm")
            .env_remove("NOTIFY_SOCKET")
            .stdin(far())
            .stdout(far())
            .stderr(far())
            .spawn()
            .unwrap();
        let written = Arc::<Mutex<Vec<u8>>>::default();
        let (mut reader, all) = (File::from(near.try_clone().unwrap()), written.clone());
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            // Ends with an error when no process has the terminal any more.
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                all.lock().unwrap().extend_from_slice(&bytes[..count]);
            }
        });
        Self { child, written, _near: near }
    }

    /// Waits until the screen is drawn, and forgets what was written.
    fn drawn(&self) {
        let has = |text: &str| {
            let written = self.written.lock().unwrap();
            String::from_utf8_lossy(&written).contains(text)
        };
        let drawn = find(|| (has("storagetm:") && has("? keys")).then_some(()));
        let mut written = self.written.lock().unwrap();
        assert!(drawn.is_some(), "{}", String::from_utf8_lossy(&written));
        written.clear();
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// As by `fg` in a shell, which has written to the terminal in the meantime.
#[test]
fn screen_is_drawn_again_after_sigcont() {
    if programs::lacks("the screen in a terminal", &["setsid"]) {
        return;
    }
    let folder = Folder::new();
    let disk = folder.image("disk.img", 1 << 20);
    let terminal = Terminal::serve(&["--listen", "nvme:127.0.0.1:0", &disk]);
    terminal.drawn();
    terminal.signal(Signal::STOP);
    let status = proc(Pid::from_child(&terminal.child)).join("status");
    let state = || field(&std::fs::read_to_string(&status).unwrap(), "State");
    find(|| state()?.starts_with('T').then_some(())).expect("it is stopped");
    terminal.written.lock().unwrap().clear();
    terminal.signal(Signal::CONT);
    terminal.drawn();
}
