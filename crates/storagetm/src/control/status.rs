//! `storagetm status`: what running `storagetm serve` lend, to whom, and where.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use console::{decimal, escape_unprintable};
use daemon::event::escaped;
use failure::Failure;
use serde::Serialize;
use serde_json::{Value, json};

use super::client::Server;
use super::interface::{AttachedHost, EndpointInfo, StatusOutput};
use super::metrics::{self, Sample};
use crate::key::print;
use crate::options::control::Status as Options;
use crate::table;

/// How long a process is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// What one process serves.
#[derive(Debug, Serialize)]
struct Report {
    /// Its socket.
    socket: PathBuf,
    #[serde(flatten)]
    status: StatusOutput,
    exports: Vec<Value>,
    hosts: Vec<AttachedHost>,
}

/// Shows what running servers lend; with `--follow` the events of one.
///
/// # Errors
/// Fails if none is running, or if one does not answer; the others are shown.
pub(crate) fn status(options: &Options) -> Result<(), Failure> {
    let mut servers = Server::all(options.socket.as_deref())?;
    if options.follow {
        return match servers.as_mut_slice() {
            // Nothing follows the last event but the end of the process.
            [server] => server.events(|event| print_event(&event) && event["event"] != "stopped"),
            _ => {
                Err(Failure::usage("several storagetm serve are running: say which with --socket"))
            }
        };
    }
    let (reports, failed) = reports(&mut servers);
    if !reports.is_empty() {
        show(&reports, options)?;
    }
    failed.map_or(Ok(()), Err)
}

/// Asks all servers. Also returns the last failure; those before it are written to standard error.
fn reports(servers: &mut [Server]) -> (Vec<Report>, Option<Failure>) {
    let (mut reports, mut failed) = (Vec::new(), None::<Failure>);
    for server in servers {
        match report(server) {
            Ok(report) => reports.push(report),
            Err(failure) => {
                if let Some(before) = failed.replace(failure) {
                    let _ = writeln!(io::stderr(), "storagetm: {before}");
                }
            }
        }
    }
    (reports, failed)
}

fn show(reports: &[Report], options: &Options) -> Result<(), Failure> {
    if options.metrics {
        return print(metrics(reports).as_bytes());
    }
    if options.json {
        let text = serde_json::to_string_pretty(&reports).map_err(Failure::new)?;
        return print(format!("{}\n", escaped(&text)).as_bytes());
    }
    let texts: Vec<String> = reports.iter().map(text).collect();
    print(texts.join("\n").as_bytes())
}

fn metrics(reports: &[Report]) -> String {
    let mut samples = Vec::new();
    for Report { socket, status, exports, .. } in reports {
        let socket = socket.display().to_string();
        samples.push(Sample::of_server(&socket, status));
        samples.extend(exports.iter().map(|export| Sample::of_export(&socket, export)));
    }
    metrics::text(&samples)
}

fn report(server: &mut Server) -> Result<Report, Failure> {
    server.set_timeout(PATIENCE)?;
    let strange = |error| Failure::new(format!("an answer is not understood: {error}"));
    let status = Value::Object(server.call("Status", json!({}))?);
    let mut hosts = server.call("Hosts", json!({}))?;
    let mut exports = server.call("List", json!({}))?;
    let exports = exports.remove("exports").unwrap_or_default();
    Ok(Report {
        socket: server.path.clone(),
        status: serde_json::from_value(status).map_err(strange)?,
        exports: serde_json::from_value(exports).map_err(strange)?,
        hosts: serde_json::from_value(hosts.remove("hosts").unwrap_or_default())
            .map_err(strange)?,
    })
}

/// Writes an event as `storagetm serve --json` does. Returns false if nobody reads it.
fn print_event(event: &Value) -> bool {
    let mut output = io::stdout().lock();
    let line = format!("{}\n", escaped(&event.to_string()));
    output.write_all(line.as_bytes()).and_then(|()| output.flush()).is_ok()
}

fn text(report: &Report) -> String {
    let Report { status, exports, hosts, .. } = report;
    let StatusOutput { machine, version, process, attached, .. } = status;
    let disks = match status.disks {
        1 => "1 disk".to_owned(),
        disks => format!("{disks} disks"),
    };
    let mut lines = vec![format!(
        "{machine}: {disks} lent, {attached} attached (storagetm {version}, process {process})"
    )];
    lines.extend(status.endpoints.iter().map(place));
    lines.extend(status.notes.iter().cloned());
    let lines: String = lines.iter().map(|line| escape_unprintable(line, true) + "\n").collect();
    if exports.is_empty() {
        return lines;
    }
    let rows: Vec<[String; 7]> = exports.iter().map(|export| row(export, hosts)).collect();
    let headings = ["NAME", "DISK", "SIZE", "ACCESS", "READ", "WRITTEN", "HOSTS"];
    format!("{lines}\n{}", table::table(headings, &rows))
}

fn place(endpoint: &EndpointInfo) -> String {
    let EndpointInfo { protocol, address, port, path, keyed, .. } = endpoint;
    let place = match (address, port, path) {
        (Some(address), Some(port), _) if address.contains(':') => format!("[{address}]:{port}"),
        (Some(address), Some(port), _) => format!("{address}:{port}"),
        (_, _, path) => path.clone().unwrap_or_default(),
    };
    let keyed = if *keyed { ", with a key" } else { "" };
    format!("  {protocol} at {place}{keyed}")
}

fn row(export: &Value, hosts: &[AttachedHost]) -> [String; 7] {
    let text = |member: &str| export[member].as_str().unwrap_or_default().to_owned();
    let size = |member: &str| decimal(export[member].as_u64().unwrap_or_default());
    let name = text("name");
    let mut names: Vec<String> = Vec::new();
    for host in hosts.iter().filter(|host| host.name == name) {
        let called = host.key.clone().unwrap_or_else(|| host.host.clone());
        let called = format!("{called} ({})", host.address);
        if !names.contains(&called) {
            names.push(called);
        }
    }
    let hosts = if names.is_empty() { "-".to_owned() } else { names.join(", ") };
    [name, text("disk"), size("bytes"), text("access"), size("read"), size("written"), hosts]
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn status_is_a_page_without_control_characters() {
        let report = Report {
            socket: PathBuf::from("/run/s"),
            status: StatusOutput {
                machine: "desk".to_owned(),
                version: "1".to_owned(),
                process: 77,
                disks: 1,
                attached: 1,
                endpoints: vec![EndpointInfo {
                    protocol: "nvme-tcp".to_owned(),
                    address: Some("::1".to_owned()),
                    port: Some(4420),
                    path: None,
                    keyed: true,
                    certificate: None,
                    public_key: None,
                }],
                notes: vec!["a note".to_owned()],
            },
            exports: vec![json!({
                "name": "sda", "disk": "/dev/sda", "bytes": 1_000_000, "access": "read-only",
                "read": 1000, "written": 0,
            })],
            hosts: vec![AttachedHost {
                name: "sda".to_owned(),
                disk: "/dev/sda".to_owned(),
                key: None,
                host: "nqn.\u{1b}".to_owned(),
                address: "10.0.0.2".to_owned(),
            }],
        };
        let text = text(&report);
        assert!(text.starts_with("desk: 1 disk lent, 1 attached (storagetm 1, process 77)\n"));
        assert!(text.contains("  nvme-tcp at [::1]:4420, with a key\na note\n\nNAME"), "{text}");
        assert!(text.contains("nqn.\\u{1b} (10.0.0.2)"), "{text}");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
    }
}
