//! The methods of the control socket.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::event::ServeEvent;
use daemon::lend::{LendRequest, Writes};
use export::Export;
use failure::Failure;
use serde_json::{Map, Value, json};
use varlink::connection::ConnectionError;
use varlink::message::{Call, Reply};
use varlink::service;

use super::{Client, Context, Parts, Removal, State};
use crate::control::interface::{
    AddInput, AttachedHost, EndpointInfo, NoInput, RemoveInput, SERVICE, StatusOutput, full,
};
use crate::serve::exports::{Exports, FlushState, NotRemoved};
use crate::serve::network::Network;

/// How long the end of a withdrawn disk is waited for, beyond its flush.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a call leads to.
enum Outcome {
    Reply(Reply),
    /// The reply comes later.
    Later(State),
    /// The first events, after which others follow.
    Events(Vec<ServeEvent>),
}

impl Client {
    /// Answers a call, or begins what it asks for.
    ///
    /// # Errors
    /// Fails if the connection has ended.
    pub(super) fn answer(
        &mut self,
        call: &Call,
        parts: &mut Parts<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(), ConnectionError> {
        let outcome = match SERVICE.answer(call) {
            Some(reply) => Ok(Outcome::Reply(reply)),
            None => run(call, parts, cx),
        };
        match outcome {
            _ if call.oneway => Ok(()),
            Ok(Outcome::Reply(reply)) | Err(reply) => self.connection.reply(&reply, None),
            Ok(Outcome::Later(state)) => {
                self.state = state;
                Ok(())
            }
            Ok(Outcome::Events(events)) => {
                self.state = State::Events { lost: 0, skip: 0 };
                let values = events.iter().filter_map(|event| serde_json::to_value(event).ok());
                self.send_events(&values.collect::<Vec<_>>())?;
                // The first events have what was recorded before them.
                let skip = cx.ui.start_recording();
                if let State::Events { skip: skipped, .. } = &mut self.state {
                    *skipped = skip;
                }
                Ok(())
            }
        }
    }
}

fn run(call: &Call, parts: &mut Parts<'_>, cx: &mut Context<'_>) -> Result<Outcome, Reply> {
    let (_, method) = call.split();
    match method {
        "Add" => return add(service::input(call)?, parts, cx),
        "Remove" => return remove(service::input(call)?, parts, cx),
        _ => {}
    }
    let NoInput {} = service::input(call)?;
    let (exports, network) = (&*parts.exports, parts.network);
    match method {
        "Events" if !call.more => Err(service::expected_more()),
        "Events" => {
            let lent = exports.status().exports().map(|export| network.lent_event(export));
            let events = network.open_events().into_iter().chain(lent);
            Ok(Outcome::Events(events.chain([ServeEvent::Ready]).collect()))
        }
        "List" => {
            let all = exports.status().exports();
            let all: Vec<Value> = all.map(|it| describe(it, exports, network)).collect();
            Ok(Outcome::Reply(Reply::new(json!({ "exports": all }))))
        }
        "Hosts" => Ok(Outcome::Reply(Reply::new(json!({ "hosts": hosts(exports) })))),
        _ => Ok(Outcome::Reply(Reply::new(status(exports, network, cx)))),
    }
}

/// Returns an export: the members of the event `lent`, and its counters.
fn describe(export: &Arc<Export>, exports: &Exports, network: &Network) -> Value {
    let event = serde_json::to_value(network.lent_event(export));
    let mut members = match event {
        Ok(Value::Object(members)) => members,
        _ => Map::new(),
    };
    for other in ["event", "nsid", "overlay"] {
        members.remove(other);
    }
    let attached = exports.attached(export).len();
    let usage = export.usage();
    members.insert("read".to_owned(), usage.bytes_read.into());
    members.insert("written".to_owned(), usage.bytes_written.into());
    members.insert("attached".to_owned(), attached.into());
    Value::Object(members)
}

fn hosts(exports: &Exports) -> Vec<AttachedHost> {
    let mut found = Vec::new();
    for export in exports.status().exports() {
        found.extend(exports.attached(export).into_iter().map(|host| AttachedHost {
            name: export.short.clone(),
            disk: export.name.clone(),
            key: host.known_as,
            host: host.nqn,
            address: host.address,
        }));
    }
    found
}

fn status(exports: &Exports, network: &Network, cx: &Context<'_>) -> StatusOutput {
    let all: Vec<&Arc<Export>> = exports.status().exports().collect();
    let attached = all.iter().filter(|export| exports.status().is_attached(export)).count();
    let events = network.open_events().into_iter();
    let endpoints = events.filter_map(|event| {
        serde_json::from_value::<EndpointInfo>(serde_json::to_value(event).ok()?).ok()
    });
    let notes = network.notes(false).into_iter().chain(exports.notes()).chain(cx.ui.messages());
    StatusOutput {
        machine: network.machine().to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        process: std::process::id(),
        disks: all.len(),
        attached,
        endpoints: endpoints.collect(),
        notes: notes.collect(),
    }
}

fn add(input: AddInput, parts: &mut Parts<'_>, _: &mut Context<'_>) -> Result<Outcome, Reply> {
    if input.disk.is_empty() {
        return Err(service::invalid_parameter("disk"));
    }
    if input.overlay == Some(true) && input.writable == Some(true) {
        return Err(service::invalid_parameter("writable"));
    }
    let writes = Writes::of(input.overlay == Some(true), input.writable == Some(true));
    let (is_shared, dir) = (input.overlay_shared == Some(true), input.overlay_dir);
    if writes != Writes::ToOverlay && (is_shared || dir.is_some()) {
        return Err(service::invalid_parameter("overlay"));
    }
    if dir.as_ref().is_some_and(|dir| dir.is_relative()) {
        return Err(service::invalid_parameter("overlay_dir"));
    }
    let request = LendRequest::new(PathBuf::from(input.disk), writes);
    match parts.exports.add_later(request, is_shared, dir) {
        Ok(Some(ticket)) => Ok(Outcome::Later(State::Adding(ticket))),
        Ok(None) => Err(Reply::error(&full("Busy"), json!({}))),
        Err(failure) => Err(not_lent(&failure)),
    }
}

fn not_lent(failure: &Failure) -> Reply {
    Reply::error(&full("NotLent"), json!({ "reason": failure.to_string() }))
}

/// Returns the reply to the addition of a disk.
pub(super) fn added(
    added: &Result<Arc<Export>, Failure>,
    exports: &Exports,
    network: &Network,
) -> Reply {
    match added {
        Ok(export) => Reply::new(json!({ "export": describe(export, exports, network) })),
        Err(failure) => not_lent(failure),
    }
}

fn remove(
    input: RemoveInput,
    parts: &mut Parts<'_>,
    cx: &mut Context<'_>,
) -> Result<Outcome, Reply> {
    let (name, force) = (input.name, input.force == Some(true));
    match parts.exports.remove(&name, force, cx) {
        Ok(export) => Ok(Outcome::Later(State::Removing(Removal { name, export, end: None }))),
        Err(NotRemoved::Unknown) => {
            Err(Reply::error(&full("NoSuchExport"), json!({ "name": name })))
        }
        Err(NotRemoved::HasChanges(bytes)) => {
            Err(Reply::error(&full("HasChanges"), json!({ "name": name, "bytes": bytes })))
        }
        Err(NotRemoved::Attached(hosts)) => {
            Err(Reply::error(&full("Attached"), json!({ "name": name, "hosts": hosts })))
        }
    }
}

/// Returns the reply to the removal of a disk, once it is flushed and closed, or is not closed in time after that.
pub(super) fn removed(removal: &mut Removal, flush: FlushState, now: Instant) -> Option<Reply> {
    match flush {
        FlushState::Running => None,
        FlushState::Failed(reason) => {
            let members = json!({ "name": removal.name, "reason": reason });
            Some(Reply::error(&full("NotFlushed"), members))
        }
        FlushState::Ended => {
            let is_released = removal.export.strong_count() == 0;
            let end = *removal.end.get_or_insert(now + PATIENCE);
            let reply = || Reply::new(json!({ "released": is_released }));
            (is_released || now >= end).then(reply)
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use export::Identity;

    #[test]
    fn end_of_a_disk_is_waited_for_after_its_flush() {
        let export =
            Arc::new(testkit::export("/dev/sdz", "nqn", Identity::default(), (512, 512), 512));
        let (name, weak) = ("sdz".to_owned(), Arc::downgrade(&export));
        let mut removal = Removal { name, export: weak, end: None };
        let begun = Instant::now();
        assert_eq!(removed(&mut removal, FlushState::Running, begun), None);
        // The flush took longer than the end of the disk is waited for.
        let flushed = begun + PATIENCE * 2;
        assert_eq!(removed(&mut removal, FlushState::Ended, flushed), None);
        let late = removed(&mut removal, FlushState::Ended, flushed + PATIENCE);
        assert_eq!(late, Some(Reply::new(json!({ "released": false }))));
        drop(export);
        let closed = removed(&mut removal, FlushState::Ended, flushed);
        assert_eq!(closed, Some(Reply::new(json!({ "released": true }))));
    }
}
