//! The JSON that `nvmetcli save` writes: the tree below `/sys/kernel/config/nvmet`. Attributes of the kernel are texts there;
//! other programs write numbers. [`Saved::unknown`] names the members that are not listed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

/// Longest file in bytes: some thousand namespaces.
const MAX_LEN: u64 = 4 << 20;

/// Attributes of one group, as `device` in `device_path`.
pub(super) type Attributes = BTreeMap<String, Value>;

/// Members that are not listed.
type Others = BTreeMap<String, IgnoredAny>;

/// Attributes of the kernel and nvmetcli that are known, by their groups: not all of them are taken over.
const SUBSYSTEM: [&str; 10] = [
    "allow_any_host",
    "cntlid_max",
    "cntlid_min",
    "firmware",
    "ieee_oui",
    "model",
    "pi_enable",
    "qid_max",
    "serial",
    "version",
];
const DEVICE: [&str; 3] = ["nguid", "path", "uuid"];
const ADDR: [&str; 6] = ["adrfam", "traddr", "treq", "trsvcid", "trtype", "tsas"];

/// Members of namespaces and ports that are known and not taken over.
const NAMESPACE: [&str; 5] = ["ana", "ana_grpid", "buffered_io", "p2pmem", "resv"];
const PORT: [&str; 1] = ["param"];

/// The configuration.
#[derive(Debug, Deserialize)]
pub(super) struct Saved {
    pub(super) subsystems: Vec<Subsystem>,
    #[serde(default)]
    pub(super) ports: Vec<Port>,
    #[serde(default)]
    pub(super) hosts: Vec<Host>,
    #[serde(flatten)]
    others: Others,
}

#[derive(Debug, Deserialize)]
pub(super) struct Subsystem {
    pub(super) nqn: String,
    #[serde(default)]
    pub(super) attr: Attributes,
    #[serde(default)]
    pub(super) allowed_hosts: Vec<String>,
    #[serde(default)]
    pub(super) namespaces: Vec<Namespace>,
    #[serde(default)]
    pub(super) passthru: Passthru,
    #[serde(flatten)]
    others: Others,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Passthru {
    #[serde(default)]
    pub(super) enable: Value,
}

#[derive(Debug, Deserialize)]
pub(super) struct Namespace {
    #[serde(default)]
    pub(super) nsid: Value,
    #[serde(default)]
    pub(super) device: Attributes,
    #[serde(default)]
    pub(super) enable: Value,
    #[serde(flatten)]
    others: Others,
}

#[derive(Debug, Deserialize)]
pub(super) struct Port {
    #[serde(default)]
    pub(super) portid: Value,
    #[serde(default)]
    pub(super) addr: Attributes,
    #[serde(default)]
    pub(super) subsystems: Vec<String>,
    #[serde(default)]
    pub(super) ana_groups: Vec<AnaGroup>,
    #[serde(default)]
    pub(super) referrals: Vec<IgnoredAny>,
    #[serde(flatten)]
    others: Others,
}

#[derive(Debug, Deserialize)]
pub(super) struct AnaGroup {
    #[serde(default)]
    ana: Attributes,
}

impl AnaGroup {
    pub(super) fn is_optimized(&self) -> bool {
        self.ana.get("state").and_then(text).is_none_or(|state| state == "optimized")
    }
}

/// A host. nvmetcli saves its name only; a key that another program has added is not kept in memory.
#[derive(Debug, Deserialize)]
#[serde(from = "BTreeMap<String, IgnoredAny>")]
pub(super) struct Host {
    pub(super) has_key: bool,
    others: Others,
}

impl From<BTreeMap<String, IgnoredAny>> for Host {
    fn from(mut others: BTreeMap<String, IgnoredAny>) -> Self {
        let has_key = others.extract_if(.., |name, _| name.starts_with("dhchap")).count() > 0;
        others.remove("nqn");
        Self { has_key, others }
    }
}

impl Saved {
    /// Returns the members that are not known, each once, as `ports.addr.NAME`.
    pub(super) fn unknown(&self) -> BTreeSet<String> {
        let mut unknown = BTreeSet::new();
        let mut add = |group: &str, names: &mut dyn Iterator<Item = &String>, known: &[&str]| {
            let names = names.filter(|name| !known.contains(&name.as_str()));
            unknown.extend(names.map(|name| format!("{group}{name}")));
        };
        add("", &mut self.others.keys(), &[]);
        for host in &self.hosts {
            add("hosts.", &mut host.others.keys(), &[]);
        }
        for port in &self.ports {
            add("ports.", &mut port.others.keys(), &PORT);
            add("ports.addr.", &mut port.addr.keys(), &ADDR);
        }
        for subsystem in &self.subsystems {
            add("subsystems.", &mut subsystem.others.keys(), &[]);
            add("subsystems.attr.", &mut subsystem.attr.keys(), &SUBSYSTEM);
            for namespace in &subsystem.namespaces {
                add("subsystems.namespaces.", &mut namespace.others.keys(), &NAMESPACE);
                add("subsystems.namespaces.device.", &mut namespace.device.keys(), &DEVICE);
            }
        }
        unknown
    }
}

/// Reads a configuration.
///
/// # Errors
/// Fails with the reason, which quotes nothing of the file.
pub(super) fn read(from: impl Read) -> Result<Saved, String> {
    let mut bytes = Vec::new();
    from.take(MAX_LEN + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_LEN {
        return Err(format!("it has more than {} MiB", MAX_LEN >> 20));
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| format!("line {}, column {}", error.line(), error.column()))
}

/// Returns an attribute as text; `None` if it is empty.
pub(super) fn text(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.trim().to_owned(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    (!text.is_empty()).then_some(text)
}

/// Returns whether an attribute is switched on.
pub(super) fn is_on(value: &Value) -> bool {
    *value == Value::Bool(true) || text(value).as_deref() == Some("1")
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn hostile_files_are_refused() {
        let deep = format!("{{\"subsystems\": {}", "[".repeat(100_000));
        let ignored = format!("{{\"subsystems\": [], \"x\": {}", "[".repeat(100_000));
        let texts = ["", "{}", "[]", "null", "{\"subsystems\": [1]}", "{\"subsystems\": [{}]}"];
        for bad in texts.into_iter().chain([deep.as_str(), ignored.as_str()]) {
            read(bad.as_bytes()).unwrap_err();
        }
        let long = format!("{{\"subsystems\": []}}{}", " ".repeat(5 << 20));
        assert_eq!(read(long.as_bytes()).unwrap_err(), "it has more than 4 MiB");
        let secret = r#"{"subsystems": [{"nqn": {"dhchap_key": "DHHC-1:00:secret"}}]}"#;
        assert!(!read(secret.as_bytes()).unwrap_err().contains("DHHC"));
        assert!(!read("{\"subsystems\": \"DHHC\"}".as_bytes()).unwrap_err().contains("DHHC"));
    }

    #[test]
    fn texts_numbers_and_missing_members_are_understood() {
        let saved = r#"{
            "hosts": [{"nqn": "a"}, {"nqn": "b", "dhchap_key": "DHHC-1:00:x"}],
            "ports": [{"portid": 1, "addr": {"trsvcid": 4420}, "ana_groups": [{"ana": {}}]}],
            "subsystems": [{"nqn": "n", "namespaces": [{"nsid": "1", "enable": "1"}, {"nsid": 2}]}]
        }"#;
        let saved = read(saved.as_bytes()).unwrap();
        assert_eq!(saved.hosts.iter().map(|it| it.has_key).collect::<Vec<_>>(), [false, true]);
        assert_eq!(saved.ports[0].addr.get("trsvcid").and_then(text).as_deref(), Some("4420"));
        assert!(saved.ports[0].ana_groups[0].is_optimized());
        let namespaces = &saved.subsystems[0].namespaces;
        assert_eq!(
            namespaces.iter().map(|it| is_on(&it.enable)).collect::<Vec<_>>(),
            [true, false]
        );
        assert!(saved.unknown().is_empty(), "{:?}", saved.unknown());
    }

    #[test]
    fn unknown_members_are_named_once() {
        let saved = r#"{
            "hosts": [{"nqn": "a", "alias": {"dhchap_key": "DHHC-1:00:x"}}], "more": [1],
            "ports": [{"portid": 1, "addr": {"trsvcid": 4420, "zone": 1}, "param": {"any": 1}}],
            "subsystems": [{"nqn": "n", "attr": {"serial": "1", "colour": 2},
                "namespaces": [{"nsid": 1, "lba": 1, "ana_grpid": 1, "device": {"eui": 1}}, {"lba": 2}]}]
        }"#;
        let saved = read(saved.as_bytes()).unwrap();
        let unknown: Vec<String> = saved.unknown().into_iter().collect();
        let wanted = [
            "hosts.alias",
            "more",
            "ports.addr.zone",
            "subsystems.attr.colour",
            "subsystems.namespaces.device.eui",
            "subsystems.namespaces.lba",
        ];
        assert_eq!(unknown, wanted);
    }
}
