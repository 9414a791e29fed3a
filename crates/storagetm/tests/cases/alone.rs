//! A network namespace with a veth pair to a second namespace. Root may create it, other users in a
//! user namespace.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::geteuid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::os::fd::AsFd;

/// Environment variable that is set in the run of a test in its own network namespace.
const ALONE: &str = "STORAGETM_TEST_ALONE";
/// Hostname in that namespace.
pub(crate) const MACHINE: &str = "quartz-machine";
/// An address on the loopback interface of that namespace that is not a loopback address.
pub(crate) const ELSEWHERE: &str = "10.77.0.1";

/// Runs the test of that name (with its module) again in its own network namespace. Returns whether
/// this is that run.
pub(crate) fn is_alone(test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    if programs::lacks(test, &["unshare", "ip", "nsenter"]) {
        return false;
    }
    let up = format!(
        "PATH=$PATH:/usr/sbin:/sbin && hostname {MACHINE} && ip link set lo up && \
         ip address add {ELSEWHERE}/32 dev lo && exec \"$0\" --exact \"$1\" --nocapture"
    );
    let mut run = programs::command("unshare");
    if !geteuid().is_root() {
        run.arg("--map-root-user");
    }
    let this = std::env::current_exe().unwrap();
    run.args(["--net", "--uts", "sh", "-c", &up]).arg(this).arg(test).env(ALONE, "1");
    let output = run.output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if text.contains("unshare failed") {
        println!("skip {test}: no network namespace can be created: {text}");
    } else {
        // An unknown test name would run nothing and succeed.
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        // The output of the test, without the harness's own lines.
        text.lines().filter(|line| !line.starts_with("test ")).for_each(|line| println!("{line}"));
    }
    false
}

/// A veth pair from this namespace to another one. The near end has 169.254.7.9, fe80::1, 10.98.0.1
/// and 2001:db8::1; the far end .8, ::2, .2 and ::2, as well as 10.99.0.2, which is reached by a
/// route. Removed when dropped.
pub(crate) struct Cable {
    far: Child,
}

impl Cable {
    pub(crate) fn lay() -> Self {
        let mut far = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up; echo; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut there = String::new();
        BufReader::new(far.stdout.take().unwrap()).read_line(&mut there).unwrap();
        let cable = Self { far };
        let id = cable.far.id().to_string();
        ip(&["link", "add", "near", "type", "veth", "peer", "name", "far", "netns", &id]);
        let inside = ["-t", &id, "-n", "ip"];
        end(&["ip"], "near", ["169.254.7.9/16", "fe80::1/64", "10.98.0.1/24", "2001:db8::1/64"]);
        let there = [&["nsenter"][..], &inside].concat();
        end(&there, "far", ["169.254.7.8/16", "fe80::2/64", "10.98.0.2/24", "2001:db8::2/64"]);
        run(&there, &["address", "add", "10.99.0.2/32", "dev", "lo"]);
        ip(&["route", "add", "10.99.0.0/24", "via", "10.98.0.2"]);
        cable
    }

    /// Sets the near end down.
    pub(crate) fn pull(&self) {
        ip(&["link", "set", "near", "down"]);
    }

    /// Sets the near end up again.
    pub(crate) fn plug(&self) {
        ip(&["link", "set", "near", "up"]);
    }

    /// Runs `work` in the other namespace, on a new thread.
    pub(crate) fn there<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let network = Path::new("/proc").join(self.far.id().to_string()).join("ns/net");
        let network = File::open(network).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
                    .unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        let _ = self.far.kill();
        let _ = self.far.wait();
    }
}

fn end(ip: &[&str], name: &str, addresses: [&str; 4]) {
    run(ip, &["link", "set", name, "addrgenmode", "none"]);
    run(ip, &["link", "set", name, "up"]);
    for address in addresses {
        let certain: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
        run(ip, &[&["address", "add", address, "dev", name][..], certain].concat());
    }
}

pub(crate) fn ip(args: &[&str]) {
    run(&["ip"], args);
}

fn run(program: &[&str], args: &[&str]) {
    let output = Command::new(program[0]).args(&program[1..]).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}
