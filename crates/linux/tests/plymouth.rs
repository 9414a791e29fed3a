//! Tests with a real plymouthd. They observe its terminal and its log.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use linux::plymouth::Plymouth;

const INSIDE: &str = "STORAGETM_TEST_PLYMOUTH";

/// The daemon takes the terminal of `script` for the machine's only console.
const DAEMON: &str = r#"
tty=$(tty) && echo "${tty#/dev/}" > console && mount --bind console /sys/class/tty/console/active
exec plymouthd --no-daemon --debug --mode=boot --no-boot-log --pid-file=pid --tty="$tty" \
    --kernel-command-line="plymouth.ignore-udev"
"#;

/// Abstract sockets belong to a network namespace, so that there is one daemon in each: the test
/// continues in a new one.
#[test]
fn interop_plymouthd_shows_the_newest_line_only() {
    if let Some(folder) = std::env::var_os(INSIDE) {
        return inside(Path::new(&folder));
    }
    if programs::lacks("plymouth", &["plymouthd", "plymouth", "script", "unshare"]) {
        return;
    }
    if let Some(reason) = forbidden() {
        println!("skip plymouth: {reason}");
        return;
    }
    let folder = std::env::temp_dir().join(format!("storagetm-plymouth-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let mut test = programs::command("unshare");
    test.args(["--net", "--mount", "--"]).arg(std::env::current_exe().unwrap());
    test.args(["--exact", "interop_plymouthd_shows_the_newest_line_only", "--nocapture"]);
    let output = test.env(INSIDE, &folder).output().unwrap();
    let _ = fs::remove_dir_all(&folder);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn forbidden() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("it needs root");
    }
    let mut probe = programs::command("unshare");
    probe.args(["--net", "--mount", "true"]).stdout(Stdio::null()).stderr(Stdio::null());
    let works = probe.status().is_ok_and(|status| status.success());
    (!works).then_some("namespaces are not allowed here")
}

fn inside(folder: &Path) {
    let mut plymouth = Plymouth::open();
    plymouth.show("not shown");
    let mut daemon = Daemon::start(folder);
    plymouth.show("the first line");
    client(&["show-splash"]);
    daemon.wait_for("the first line");
    plymouth.show("the second line");
    daemon.wait_for("the second line");
    // A splash that is shown again shows all messages that the daemon has.
    client(&["hide-splash"]);
    let before = daemon.screen().len();
    let shown = |daemon: &Daemon| daemon.screen().get(before..).unwrap_or_default().to_owned();
    client(&["show-splash"]);
    daemon.wait(|daemon| shown(daemon).contains("the second line"));
    assert!(!shown(&daemon).contains("the first line"));
    daemon.end();
    let mut daemon = Daemon::start(folder);
    client(&["show-splash"]);
    plymouth.show("the second line");
    daemon.wait_for("the second line");
    drop(plymouth);
    daemon.wait(|daemon| daemon.log().contains("hiding message the second line"));
    assert!(!daemon.screen().contains("not shown"));
    daemon.end();
}

fn client(arguments: &[&str]) {
    assert!(programs::command("plymouth").args(arguments).status().unwrap().success());
}

struct Daemon {
    child: Child,
    folder: PathBuf,
}

impl Daemon {
    fn start(folder: &Path) -> Self {
        let _ = fs::remove_file(folder.join("screen"));
        let mut script = programs::command("script");
        script.args(["--quiet", "--flush", "--return", "--command", DAEMON, "screen"]);
        script.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null());
        let child = script.spawn().unwrap();
        let daemon = Self { child, folder: folder.to_owned() };
        daemon.wait(|_| {
            programs::command("plymouth")
                .arg("--ping")
                .status()
                .is_ok_and(|status| status.success())
        });
        daemon
    }

    fn wait_for(&self, text: &str) {
        self.wait(|daemon| daemon.screen().contains(text));
    }

    fn wait(&self, until: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !until(self) {
            assert!(Instant::now() < end, "screen:\n{}\nlog:\n{}", self.screen(), self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The text on the screen.
    fn screen(&self) -> String {
        self.lines(|line| !line.contains(".c:"))
    }

    /// The daemon's debug log, on the same terminal.
    fn log(&self) -> String {
        self.lines(|line| line.contains(".c:"))
    }

    fn lines(&self, wanted: impl Fn(&&str) -> bool) -> String {
        let bytes = fs::read(self.folder.join("screen")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        text.lines().filter(wanted).collect::<Vec<_>>().join("\n")
    }

    fn end(&mut self) {
        client(&["quit"]);
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
