//! The events that `storagetm serve --json` prints, as far as the tests use them.

use serde_json::Value;

use crate::cargo::{list, text};

/// An exported disk.
#[derive(Debug, Clone)]
pub(super) struct Lent {
    /// The path.
    pub(super) disk: String,
    /// The subsystem NQN.
    pub(super) nqn: String,
    /// The name of its iSCSI target.
    pub(super) iqn: String,
    pub(super) model: String,
    pub(super) serial: String,
    /// `read-only` or `writable`.
    pub(super) access: String,
    /// The attach commands.
    pub(super) attach: Vec<String>,
}

/// All events of one run of storagetm.
#[derive(Debug, Default)]
pub(super) struct Events {
    seen: Vec<Value>,
}

impl Events {
    /// Parses a line of output.
    ///
    /// # Errors
    /// Fails if the line is not an event.
    pub(super) fn receive(&mut self, line: &str) -> anyhow::Result<()> {
        let event: Value = serde_json::from_str(line)?;
        anyhow::ensure!(!text(&event, "event").is_empty(), "no event: {line}");
        self.seen.push(event);
        Ok(())
    }

    /// Returns whether an event of this name was printed.
    pub(super) fn has(&self, name: &str) -> bool {
        self.named(name).next().is_some()
    }

    /// Returns whether an event of this name was printed for this disk.
    pub(super) fn has_of(&self, name: &str, nqn: &str) -> bool {
        self.named(name).any(|event| text(event, "nqn") == nqn)
    }

    /// Returns the first port that is listened on.
    pub(super) fn port(&self) -> Option<u64> {
        self.ports().next()
    }

    /// Returns the ports that are listened on, in order.
    pub(super) fn ports(&self) -> impl Iterator<Item = u64> {
        self.named("listening").filter_map(|event| event.get("port")?.as_u64())
    }

    /// Returns the exported disks, in order.
    pub(super) fn lent(&self) -> Vec<Lent> {
        self.named("lent").map(lent).collect()
    }

    fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Value> {
        self.seen.iter().filter(move |event| text(event, "event") == name)
    }
}

fn lent(event: &Value) -> Lent {
    let field = |key| text(event, key).to_owned();
    let lines = list(event, "attach").iter().filter_map(Value::as_str);
    Lent {
        disk: field("disk"),
        nqn: field("nqn"),
        iqn: field("iqn"),
        model: field("model"),
        serial: field("serial"),
        access: field("access"),
        attach: lines.map(str::to_owned).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_parsed() {
        let mut events = Events::default();
        let listening =
            r#"{"event":"listening","protocol":"nvme-tcp","address":"127.0.0.1","port":4420}"#;
        let disk = r#"{"event":"lent","disk":"/a","nqn":"nqn.a","nsid":1,"bytes":512,"block_size":512,
            "access":"read-only","model":"M","serial":"S","attach":["nvme connect -n nqn.a"]}"#;
        events.receive(listening).unwrap();
        events.receive(disk).unwrap();
        assert!(events.receive("hello").is_err() && events.receive("{}").is_err());
        assert_eq!(events.port(), Some(4420));
        assert_eq!(events.lent()[0].attach, ["nvme connect -n nqn.a"]);
        assert!(events.has_of("lent", "nqn.a") && !events.has("ready"));
    }
}
