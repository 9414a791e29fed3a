//! `storagetm add` and `storagetm remove`, and how the socket of a running `storagetm serve` is found.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use daemon::lend::{LendRequest, Writes};
use failure::Failure;
use serde::Serialize;
use serde_json::{Value, json};
use varlink::client::{CallError, Client};
use varlink::message::Parameters;

use super::interface::{AddInput, RemoveInput, full};
use super::known_paths;
use crate::key::{print, print_json};
use crate::options::control::{Add, Remove};
use crate::options::disk::DiskOptions;
use console::{decimal, escape_unprintable};

/// A running `storagetm serve`.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) path: PathBuf,
    client: Client,
}

impl Server {
    /// Connects to the process that listens at `path`; without one to all that the user may control.
    ///
    /// # Errors
    /// Fails if there is none.
    pub(super) fn all(path: Option<&Path>) -> Result<Vec<Self>, Failure> {
        if let Some(path) = path {
            return Ok(vec![Self::connect(path).map_err(|error| unreachable(path, &error))?]);
        }
        let connect = |path: PathBuf| Self::connect(&path).ok();
        let servers: Vec<Self> = known_paths().into_iter().filter_map(connect).collect();
        if servers.is_empty() {
            return Err(Failure::new(
                "no storagetm serve of this user is running here; one with --control is found by --socket",
            ));
        }
        Ok(servers)
    }

    /// Connects to the only process.
    ///
    /// # Errors
    /// Fails if there is none, or several.
    fn only(path: Option<&Path>) -> Result<Self, Failure> {
        let mut servers = Self::all(path)?;
        match servers.pop() {
            Some(server) if servers.is_empty() => Ok(server),
            last => {
                let paths = servers.iter().chain(&last).map(|it| it.path.display().to_string());
                let paths = paths.collect::<Vec<_>>().join(", ");
                Err(Failure::usage(format!(
                    "several storagetm serve are running: say which with --socket: {paths}"
                )))
            }
        }
    }

    fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), client: Client::connect(path)? })
    }

    /// Calls a method.
    ///
    /// # Errors
    /// Fails with the sentence of the error.
    pub(super) fn call(
        &mut self,
        method: &str,
        input: impl Serialize,
    ) -> Result<Parameters, Failure> {
        self.client.call(&full(method), input).map_err(|error| sentence(&self.path, error))
    }

    /// Withdraws a disk by its name; if there is none, by the absolute path of the file of that name, by which `add`
    /// has it lent.
    ///
    /// # Errors
    /// Fails with the sentence of the error.
    fn remove(&mut self, name: &str, force: bool) -> Result<Parameters, Failure> {
        let mut call = |name: &str| {
            let input = RemoveInput { name: name.to_owned(), force: Some(force) };
            self.client.call(&full("Remove"), input)
        };
        let result = match (call(name), absolute_name(name)) {
            (Err(error), Some(path)) if is_unknown(&error) => match call(&path) {
                // It was not called so.
                Err(second) if is_unknown(&second) => Err(error),
                second => second,
            },
            (first, _) => first,
        };
        result.map_err(|error| sentence(&self.path, error))
    }

    /// Sets how long to wait for a reply.
    ///
    /// # Errors
    /// Fails if the socket is closed.
    pub(super) fn set_timeout(&self, timeout: Duration) -> Result<(), Failure> {
        self.client.set_timeout(Some(timeout)).map_err(|error| unreachable(&self.path, &error))
    }

    /// Calls `each` with each event, until it returns false or the process ends.
    ///
    /// # Errors
    /// Fails if the connection is lost.
    pub(super) fn events(&mut self, mut each: impl FnMut(Value) -> bool) -> Result<(), Failure> {
        let event = |mut reply: Parameters| reply.remove("event").is_none_or(&mut each);
        let ended = self.client.call_more(&full("Events"), json!({}), event);
        ended.map_err(|error| sentence(&self.path, error))
    }
}

fn unreachable(path: &Path, error: &io::Error) -> Failure {
    let place = path.display();
    Failure::new(match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            format!("no storagetm serve listens at {place}")
        }
        ErrorKind::PermissionDenied => {
            format!("{place}: only root and the user that started it may control storagetm serve")
        }
        _ => format!("{place}: {error}"),
    })
}

/// Returns whether the other end has closed the connection.
fn is_end(error: &io::Error) -> bool {
    let ends = [ErrorKind::UnexpectedEof, ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
    ends.contains(&error.kind())
}

/// Returns whether the other end did not answer in time.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Returns a failed call as a sentence.
fn sentence(path: &Path, error: CallError) -> Failure {
    let CallError::Service { name, parameters } = error else {
        return match error {
            CallError::Io(error) if is_end(&error) => {
                Failure::new(format!("{}: storagetm serve closed the connection", path.display()))
            }
            CallError::Io(error) if is_timeout(&error) => {
                Failure::new(format!("{}: storagetm serve does not answer", path.display()))
            }
            other => Failure::new(format!("{}: {other}", path.display())),
        };
    };
    let text = |member: &str| parameters.get(member).and_then(Value::as_str).unwrap_or_default();
    let own = name.strip_prefix(super::interface::NAME).unwrap_or_default();
    Failure::new(match own {
        ".NotLent" => text("reason").to_owned(),
        ".NoSuchExport" => format!("no disk {} is lent", text("name")),
        ".Attached" => {
            let hosts = parameters.get("hosts").and_then(Value::as_array);
            let hosts: Vec<&str> = hosts.into_iter().flatten().filter_map(Value::as_str).collect();
            format!(
                "{} is attached by {}: detach it there, or say --force, and that host loses it",
                text("name"),
                hosts.join(", ")
            )
        }
        ".HasChanges" => {
            let bytes = parameters.get("bytes").and_then(Value::as_u64).unwrap_or_default();
            format!(
                "what hosts have written to {} ({}) is kept in memory only: say --force to lose it",
                text("name"),
                decimal(bytes)
            )
        }
        ".NotFlushed" => format!("{} is withdrawn, but {}", text("name"), text("reason")),
        ".Busy" => "too many disks are being added: try again".to_owned(),
        _ => format!("{}: {name}", path.display()),
    })
}

/// Returns whether no disk of the name is lent.
fn is_unknown(error: &CallError) -> bool {
    matches!(error, CallError::Service { name, .. } if *name == full("NoSuchExport"))
}

/// Returns the absolute path of a relative one.
fn absolute_name(name: &str) -> Option<String> {
    let path = Path::new(name);
    let path = if path.is_relative() { std::path::absolute(path).ok()? } else { return None };
    path.into_os_string().into_string().ok()
}

/// Lends more disks.
///
/// # Errors
/// Fails if one is not lent; those before it are.
pub(crate) fn add(options: &Add) -> Result<(), Failure> {
    let mut server = Server::only(options.socket.as_deref())?;
    let mut added = Vec::new();
    let mut end = Ok(());
    let inputs = options.access.requests(&options.disks);
    let inputs: Vec<AddInput> =
        inputs.iter().map(|it| input(it, &options.access)).collect::<Result<_, _>>()?;
    for input in inputs {
        match server.call("Add", input) {
            Ok(mut output) => added.extend(output.remove("export")),
            Err(failure) => {
                end = Err(failure);
                break;
            }
        }
    }
    match options.json {
        true => print_json(&added)?,
        false => print(added.iter().map(added_lines).collect::<String>().as_bytes())?,
    }
    end
}

/// Returns the parameters for a disk. Those that are not needed are left out: an older process does not know all.
fn input(request: &LendRequest, options: &DiskOptions) -> Result<AddInput, Failure> {
    let is_overlaid = request.writes == Writes::ToOverlay;
    let dir = options.overlay_dir.as_ref().filter(|_| is_overlaid);
    let dir = dir.map(std::path::absolute).transpose();
    Ok(AddInput {
        disk: absolute(&request.path)?,
        writable: (request.writes == Writes::ToDisk).then_some(true),
        overlay: is_overlaid.then_some(true),
        overlay_shared: (is_overlaid && options.overlay_shared).then_some(true),
        overlay_dir: dir.map_err(|error| Failure::new(format!("--overlay-dir: {error}")))?,
    })
}

/// Returns a path that exists as an absolute one: the other process has another working directory.
fn absolute(disk: &Path) -> Result<String, Failure> {
    let path = if disk.exists() { std::path::absolute(disk) } else { Ok(disk.to_owned()) };
    let path = path.map_err(|error| Failure::new(format!("{}: {error}", disk.display())))?;
    let text = path.into_os_string().into_string();
    text.map_err(|path| Failure::usage(format!("{}: not UTF-8", path.display())))
}

fn added_lines(export: &Value) -> String {
    let text = |member: &str| export[member].as_str().unwrap_or_default().to_owned();
    let lines = ["attach", "nbd", "iscsi"].map(|member| {
        let all = export[member].as_array().into_iter().flatten();
        all.filter_map(Value::as_str).map(|line| format!("    {line}")).collect::<Vec<_>>()
    });
    let first = format!("{} is lent as {}, {}:", text("disk"), text("name"), text("access"));
    let lines = std::iter::once(first).chain(lines.into_iter().flatten());
    lines.map(|line| escape_unprintable(&line, true) + "\n").collect()
}

/// Withdraws disks.
///
/// # Errors
/// Fails if one is not withdrawn; those before it are.
pub(crate) fn remove(options: &Remove) -> Result<(), Failure> {
    let mut server = Server::only(options.socket.as_deref())?;
    for name in &options.names {
        let output = server.remove(name, options.force)?;
        let is_open = output.get("released") == Some(&json!(false));
        let rest = if is_open { ", but still open: do not unplug it yet" } else { "" };
        let line = format!("{name} is not lent any more{rest}");
        print(format!("{}\n", escape_unprintable(&line, true)).as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::*;

    fn said(name: &str, parameters: Value) -> String {
        let Value::Object(parameters) = parameters else { panic!() };
        let name = if name.contains('.') { name.to_owned() } else { full(name) };
        sentence(Path::new("/run/s"), CallError::Service { name, parameters }).to_string()
    }

    #[test]
    fn errors_are_sentences() {
        assert_eq!(said("NotLent", json!({"reason": "sda is in use"})), "sda is in use");
        assert_eq!(said("NoSuchExport", json!({"name": "sdx"})), "no disk sdx is lent");
        let attached = said("Attached", json!({"name": "sda", "hosts": ["desk", "lap\u{1b}"]}));
        assert!(attached.starts_with("sda is attached by desk, lap\\u"), "{attached}");
        let kept = said("HasChanges", json!({"name": "sda", "bytes": 1000}));
        assert!(kept.contains("sda (1 kB) is kept in memory only"), "{kept}");
        let lost = said("NotFlushed", json!({"name": "sda", "reason": "what was written is lost"}));
        assert_eq!(lost, "sda is withdrawn, but what was written is lost");
        let other = said("org.varlink.service.MethodNotFound", json!({}));
        assert_eq!(other, "/run/s: org.varlink.service.MethodNotFound");
    }
}
