//! A storagetm target as a process.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::scene::PROGRAM;

/// A process; ended when dropped.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A storagetm target.
pub(crate) struct Target {
    running: Running,
    ports: Vec<(String, u16)>,
    pub(crate) lent: Vec<Value>,
    code: Option<String>,
}

impl Target {
    pub(crate) fn serve(args: &[&str]) -> Self {
        let mut child = Command::new(PROGRAM)
            .args(["serve", "--json", "--no-announce"])
            .args(args)
            .env_remove("NOTIFY_SOCKET")
            .env_remove("CREDENTIALS_DIRECTORY")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let running = Running(child);
        let (mut ports, mut lent, mut code) = (Vec::new(), Vec::new(), None);
        let pairs = args.contains(&"--pair");
        let mut ready = false;
        while !ready || (pairs && code.is_none()) {
            let event: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
            match event["event"].as_str().unwrap() {
                "listening" => {
                    let port = u16::try_from(event["port"].as_u64().unwrap_or(0)).unwrap();
                    ports.push((event["protocol"].as_str().unwrap().to_owned(), port));
                }
                "lent" => lent.push(event),
                "pairing" => code = event["code"].as_str().map(str::to_owned),
                "ready" => ready = true,
                _ => {}
            }
        }
        // Keeps the pipe open: a target without a reader of its events ends.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { running, ports, lent, code }
    }

    /// Sends SIGINT and waits for the end.
    pub(crate) fn interrupt(mut self) {
        let child = &mut self.running.0;
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        child.wait().unwrap();
    }

    /// The pairing code.
    pub(crate) fn code(&self) -> &str {
        self.code.as_deref().unwrap()
    }

    pub(crate) fn port(&self, protocol: &str) -> u16 {
        self.ports.iter().find(|(of, _)| of.starts_with(protocol)).unwrap().1
    }
}
