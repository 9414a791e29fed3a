//! Counters in the text format of Prometheus, version 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>).

use console::escape_unprintable;
use serde_json::Value;

use super::interface::StatusOutput;

/// A metric: its name, type and help, and where its value is.
struct Metric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    /// The member of an export; `None` for the metric of a server, which is 1.
    member: Option<&'static str>,
}

const METRICS: [Metric; 5] = [
    Metric {
        name: "storagetm_serve_info",
        kind: "gauge",
        help: "A running storagetm serve; always 1.",
        member: None,
    },
    Metric {
        name: "storagetm_disk_size_bytes",
        kind: "gauge",
        help: "Size of a disk that is lent.",
        member: Some("bytes"),
    },
    Metric {
        name: "storagetm_disk_attached_hosts",
        kind: "gauge",
        help: "Hosts that have attached the disk.",
        member: Some("attached"),
    },
    Metric {
        name: "storagetm_disk_read_bytes_total",
        kind: "counter",
        help: "Bytes that hosts have read since the disk is lent.",
        member: Some("read"),
    },
    Metric {
        name: "storagetm_disk_written_bytes_total",
        kind: "counter",
        help: "Bytes that hosts have written since the disk is lent.",
        member: Some("written"),
    },
];

/// A server or one of its exports, with its labels.
#[derive(Debug)]
pub(super) struct Sample<'a> {
    labels: String,
    export: Option<&'a Value>,
}

impl<'a> Sample<'a> {
    pub(super) fn of_server(socket: &str, status: &StatusOutput) -> Self {
        let labels = labels(&[
            ("socket", socket),
            ("machine", &status.machine),
            ("version", &status.version),
        ]);
        Self { labels, export: None }
    }

    pub(super) fn of_export(socket: &str, export: &'a Value) -> Self {
        let text = |member: &str| export[member].as_str().unwrap_or_default();
        let labels = labels(&[
            ("socket", socket),
            ("name", text("name")),
            ("disk", text("disk")),
            ("access", text("access")),
        ]);
        Self { labels, export: Some(export) }
    }
}

fn labels(all: &[(&str, &str)]) -> String {
    let label = |(name, value): &(&str, &str)| {
        // What could control a terminal first; this leaves backslashes.
        let value = escape_unprintable(value, true).replace('\\', r"\\").replace('"', "\\\"");
        format!("{name}=\"{value}\"")
    };
    all.iter().map(label).collect::<Vec<_>>().join(",")
}

/// Returns the samples as text, those of each metric together.
pub(super) fn text(samples: &[Sample<'_>]) -> String {
    let mut text = String::new();
    for Metric { name, kind, help, member } in METRICS {
        let value = |sample: &Sample<'_>| match (member, sample.export) {
            (Some(member), Some(export)) => export[member].as_u64(),
            (None, None) => Some(1),
            _ => None,
        };
        let values = samples.iter().filter_map(|sample| Some((sample, value(sample)?)));
        let lines: String = values
            .map(|(sample, value)| format!("{name}{{{}}} {value}\n", sample.labels))
            .collect();
        if !lines.is_empty() {
            text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{lines}"));
        }
    }
    text
}

#[cfg(test)]
mod test {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_cannot_leave_their_labels() {
        let export = json!({"name": "a\"b\\c\n", "disk": "/d", "access": "writable", "bytes": 5});
        let text = text(&[Sample::of_export("/run/s", &export)]);
        assert_eq!(
            text,
            "# HELP storagetm_disk_size_bytes Size of a disk that is lent.\n\
             # TYPE storagetm_disk_size_bytes gauge\n\
             storagetm_disk_size_bytes{socket=\"/run/s\",name=\"a\\\"b\\\\c\\\\u{a}\",disk=\"/d\",\
             access=\"writable\"} 5\n"
        );
    }
}
