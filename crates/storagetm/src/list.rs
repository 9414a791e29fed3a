//! `storagetm list`: the disks of this machine, their contents, and whether they may be exported.

use std::collections::HashSet;
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use console::decimal;
use linux::block::Disk;
use linux::gadget;
use linux::in_use::{Machine, Probe};
use linux::partition::Scheme;
use linux::reason::{Asked, Verdict};
use linux::signature::{Contents, Signature};
use linux::transport::Transport;
use linux::tree::Tree;
use serde::Serialize;

use crate::options::list::List;
use crate::table;
use daemon::event::escaped;
use daemon::examine::{LIMIT, examine};
use daemon::lend::block_device;
use failure::Failure;

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    path: String,
    mapper_name: Option<String>,
    logical_volume: Option<String>,
    #[serde(skip)]
    called: String,
    bytes: u64,
    block_size: u32,
    model: Option<String>,
    serial: Option<String>,
    transport: &'static str,
    removable: bool,
    read_only: bool,
    partition_of: Option<String>,
    partition_table: Option<&'static str>,
    contents: Vec<Content>,
    lendable: bool,
    reasons: Vec<Reason>,
}

#[derive(Debug, Serialize)]
struct Content {
    kind: &'static str,
    label: Option<String>,
    uuid: Option<String>,
}

/// A reason against exporting a disk.
#[derive(Debug, Serialize)]
struct Reason {
    code: &'static str,
    text: String,
}

/// Lists the disks on standard output.
///
/// # Errors
/// Fails if the disks cannot be enumerated.
pub(crate) fn list(options: &List) -> Result<(), Failure> {
    let tree = Tree::machine();
    let machine = Machine::snapshot(&tree).map_err(|error| {
        Failure::new(format!(
            "the disks of this machine cannot be listed: {error}; is /sys mounted?"
        ))
    })?;
    let disks = selected(&machine, &options.disks)?;
    let examined = disks.iter().flat_map(|disk| machine.examined_for(disk));
    let findings = examine(&tree, examined, |_| LIMIT);
    let rows: Vec<Row> = disks.into_iter().map(|disk| row(&machine, disk, &findings)).collect();
    let text = match options.json {
        true => json(&rows)?,
        false if options.disks.is_empty() => table(&rows) + &usb_port(&tree),
        false => table(&rows),
    };
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("the list cannot be written to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Returns the named disks, each with its partitions; all usable disks if none is named.
///
/// # Errors
/// Fails if a disk does not exist.
fn selected<'a>(machine: &'a Machine, names: &[String]) -> Result<Vec<&'a Disk>, Failure> {
    if names.is_empty() {
        return Ok(machine.disks.iter().filter(|disk| !is_unused(disk)).collect());
    }
    let mut found = HashSet::new();
    for name in names {
        let number = block_device(Path::new(name));
        let is_it = |disk: &&Disk| Some(disk.number) == number || disk.has_name(name);
        let disk = machine.disks.iter().find(is_it).ok_or_else(|| {
            Failure::new(format!(
                "{name}: there is no such disk; \"storagetm list\" shows the disks of this machine"
            ))
        })?;
        found.insert(&disk.name);
    }
    let is_selected = |disk: &&Disk| {
        let whole = disk.part.as_ref().map(|part| &part.whole_disk);
        found.contains(&disk.name) || whole.is_some_and(|whole| found.contains(whole))
    };
    Ok(machine.disks.iter().filter(is_selected).collect())
}

/// Returns whether this is a preallocated device node without a disk (loop, nbd, ...).
fn is_unused(disk: &Disk) -> bool {
    let spare = [Transport::Loop, Transport::Nbd, Transport::Zram, Transport::Ram, Transport::Md];
    disk.bytes == 0 && spare.contains(&disk.transport)
}

fn row(machine: &Machine, disk: &Disk, probe: &dyn Probe) -> Row {
    let verdict = machine.judge(disk, probe);
    let readable = disk.bytes > 0 && disk.transport != Transport::Floppy;
    let contents =
        if readable { probe.contents(disk).unwrap_or_default() } else { Contents::default() };
    Row {
        name: disk.name.clone(),
        path: disk.node.display().to_string(),
        mapper_name: disk.stacking.dm_name.clone(),
        logical_volume: disk.stacking.volume(),
        called: disk.display_name(),
        bytes: disk.bytes,
        block_size: disk.logical_block,
        model: disk.hardware.model.clone(),
        serial: disk.hardware.serial.clone(),
        transport: disk.transport.word(),
        removable: disk.removable,
        read_only: disk.read_only,
        partition_of: disk.part.as_ref().map(|part| part.whole_disk.clone()),
        partition_table: contents.table.as_ref().map(|table| scheme(table.scheme)),
        contents: contents.signatures.into_iter().map(content).collect(),
        lendable: verdict.allows(Asked::ForAll),
        reasons: reasons(&verdict),
    }
}

fn scheme(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::Gpt => "gpt",
        Scheme::Mbr => "mbr",
    }
}

fn content(signature: Signature) -> Content {
    Content { kind: signature.kind.word(), label: signature.label, uuid: signature.uuid }
}

fn reasons(verdict: &Verdict) -> Vec<Reason> {
    let reason = |reason: &linux::reason::Reason| Reason {
        code: reason.code.word(),
        text: reason.text.clone(),
    };
    verdict.reasons.iter().map(reason).collect()
}

fn json(rows: &[Row]) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(rows);
    text.map(|text| escaped(&text) + "\n")
        .map_err(|error| Failure::new(format!("cannot write JSON: {error}")))
}

/// Returns a line about the USB port that can act as a device, or why there is none.
fn usb_port(tree: &Tree) -> String {
    let controllers = gadget::controllers(tree);
    let free = controllers.iter().find(|controller| controller.user.is_none());
    match (free, controllers.first()) {
        (Some(free), _) => {
            format!("\nUSB: storagetm serve --usb can serve disks at port {}.\n", free.name)
        }
        (None, Some(used)) => format!("\nUSB: another program uses port {}.\n", used.name),
        (None, None) if gadget::is_possible(tree) => {
            "\nUSB: a port can act as a device: storagetm serve --usb can serve disks there.\n"
                .to_owned()
        }
        (None, None) => format!("\nUSB: {}.\n", gadget::absence(tree)),
    }
}

const HEADINGS: [&str; 7] = ["NAME", "SIZE", "MODEL", "SERIAL", "TRANSPORT", "CONTENT", "LENDABLE"];

/// Columns as wide as their content, or as the terminal allows.
fn table(rows: &[Row]) -> String {
    table::table(HEADINGS, &rows.iter().map(columns).collect::<Vec<_>>())
}

fn columns(row: &Row) -> [String; 7] {
    let dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let indent = if row.partition_of.is_some() { "  " } else { "" };
    [
        format!("{indent}{}", row.called),
        decimal(row.bytes),
        dash(&row.model),
        dash(&row.serial),
        row.transport.to_owned(),
        content_column(row),
        lendable(row),
    ]
}

/// Partition table and signatures.
fn content_column(row: &Row) -> String {
    let table = row.partition_table.map(str::to_owned);
    let marks = row.contents.iter().map(|content| match &content.label {
        Some(label) => format!("{} \"{label}\"", content.kind),
        None => content.kind.to_owned(),
    });
    let words: Vec<String> = table.into_iter().chain(marks).collect();
    if words.is_empty() { "-".to_owned() } else { words.join(", ") }
}

fn lendable(row: &Row) -> String {
    match row.reasons.first() {
        Some(reason) if row.lendable => format!("yes, but {}", reason.text),
        None => "yes".to_owned(),
        Some(reason) => format!("no: {}", reason.text),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn example() -> Row {
        Row {
            name: "sda".to_owned(),
            path: "/dev/sda".to_owned(),
            mapper_name: None,
            logical_volume: None,
            called: "sda".to_owned(),
            bytes: 500_107_862_016,
            block_size: 512,
            model: Some("Example".to_owned()),
            serial: None,
            transport: "usb",
            removable: false,
            read_only: false,
            partition_of: None,
            partition_table: Some("gpt"),
            contents: Vec::new(),
            lendable: true,
            reasons: Vec::new(),
        }
    }

    #[test]
    fn table_shows_contents_and_reasons() {
        let content = Content { kind: "ext4", label: Some("ho\x1bme".to_owned()), uuid: None };
        let reason = Reason { code: "mounted", text: "mounted at /home".to_owned() };
        let second = Row {
            name: "sda1".to_owned(),
            called: "sda1".to_owned(),
            model: None,
            partition_of: Some("sda".to_owned()),
            partition_table: None,
            contents: vec![content],
            lendable: false,
            reasons: vec![reason],
            ..example()
        };
        let wanted = "\
NAME    SIZE      MODEL    SERIAL  TRANSPORT  CONTENT            LENDABLE
sda     500.1 GB  Example  -       usb        gpt                yes
  sda1  500.1 GB  -        -       usb        ext4 \"ho\\u{1b}me\"  no: mounted at /home
";
        assert_eq!(table(&[example(), second]), wanted);
    }

    #[test]
    fn hostile_label_is_escaped() {
        let label = "\x1b\u{9b}2J\u{202e}\x7f".to_owned();
        let content = Content { kind: "ext4", label: Some(label.clone()), uuid: None };
        let text = json(&[Row { contents: vec![content], ..example() }]).unwrap();
        assert!(text.chars().all(|c| c == '\n' || c.is_ascii_graphic() || c == ' '), "{text}");
        let rows: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(rows[0]["contents"][0]["label"], label);
    }

    #[test]
    fn disk_is_listed_alone_with_its_partitions_by_any_of_its_names() {
        let root = std::env::temp_dir().join(format!("storagetm-list-{}", std::process::id()));
        let write = |path: &str, content: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        };
        for (place, number) in
            [("sda", "8:0"), ("sda/sda1", "8:1"), ("sdb", "8:16"), ("dm-0", "253:0")]
        {
            let folder = format!("sys/devices/virtual/block/{place}");
            write(&format!("{folder}/dev"), number);
            write(&format!("{folder}/size"), "2048");
            let name = place.rsplit('/').next().unwrap();
            std::fs::create_dir_all(root.join("sys/class/block")).unwrap();
            let link = root.join("sys/class/block").join(name);
            let target = format!("../../devices/virtual/block/{place}");
            std::os::unix::fs::symlink(target, link).unwrap();
        }
        write("sys/devices/virtual/block/sda/sda1/partition", "1");
        write("sys/devices/virtual/block/dm-0/dm/name", "group-home");
        write("sys/devices/virtual/block/dm-0/dm/uuid", &format!("LVM-{}", "x".repeat(64)));
        let machine = Machine::snapshot(&Tree::at(&root)).unwrap();
        std::fs::remove_dir_all(&root).unwrap();
        let names = |names: &[&str]| -> Result<Vec<&str>, Failure> {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let disks = selected(&machine, &names)?;
            Ok(disks.into_iter().map(|disk| disk.name.as_str()).collect())
        };
        assert_eq!(names(&[]).unwrap(), ["dm-0", "sda", "sda1", "sdb"]);
        assert_eq!(names(&["sda"]).unwrap(), ["sda", "sda1"]);
        assert_eq!(names(&["/dev/sdb", "sda1"]).unwrap(), ["sda1", "sdb"]);
        assert_eq!(names(&["group/home", "/dev/mapper/group-home"]).unwrap(), ["dm-0"]);
        let error = names(&["sda", "sdx"]).unwrap_err().to_string();
        assert!(error.starts_with("sdx: there is no such disk"), "{error}");
    }

    #[test]
    fn json_has_the_documented_fields() {
        let text = json(&[example()]).unwrap();
        let rows: serde_json::Value = serde_json::from_str(&text).unwrap();
        let fields: Vec<&String> = rows[0].as_object().unwrap().keys().collect();
        let mut wanted = [
            "name",
            "path",
            "mapper_name",
            "logical_volume",
            "bytes",
            "block_size",
            "model",
            "serial",
            "transport",
            "removable",
            "read_only",
            "partition_of",
            "partition_table",
            "contents",
            "lendable",
            "reasons",
        ];
        wanted.sort_unstable();
        assert_eq!(fields, wanted);
    }
}
