//! The supervisor thread of the opener: receives reports, and restarts a worker that died.

use std::collections::VecDeque;
use std::io;
use std::process::Child;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use engine::{Driver, Running};
use rustix::process::Pid;

use super::messages::{MAX_REPORT, Report, Request};
use super::process::spawn;
use super::reservations::Save;
use super::validator::ReportValidator;
use super::{Shared, cannot, fence};
use crate::inbox::WorkerEvent;
use failure::{Failure, spawn_error};
use ipc::channel::{self, Receiver};

/// Most restarts within [`RESTART_WINDOW`].
const MAX_RESTARTS: usize = 3;
const RESTART_WINDOW: Duration = Duration::from_secs(60);

/// Delay before another attempt to spawn a worker.
const PAUSE: Duration = Duration::from_millis(500);

/// How long sending a request may take. A worker that does not receive it by then is stuck and is
/// replaced.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest note of a worker, in characters; the rest is cut off.
const MAX_NOTE: usize = 1000;

/// Poll interval for the death of a worker that reports nothing.
const LIVENESS_INTERVAL: Duration = Duration::from_millis(500);

/// A running worker.
struct LiveWorker {
    child: Child,
    receiver: Receiver,
}

/// Starts the thread and the first worker. Sends the outcome to `started` and to the inbox. The
/// worker ends with the thread.
///
/// # Errors
/// Fails if no thread can be started.
pub(super) fn start(
    shared: Arc<Shared>,
    started: mpsc::Sender<Result<(), Failure>>,
) -> io::Result<JoinHandle<()>> {
    let supervise = move || match start_worker(&shared) {
        Ok(live) => {
            shared.emit(WorkerEvent::Running);
            let _ = started.send(Ok(()));
            drop(started);
            supervise(&shared, live);
        }
        Err(failure) => {
            shared.emit(WorkerEvent::Lost(failure.to_string()));
            let _ = started.send(Err(failure));
        }
    };
    thread::Builder::new().name("worker".to_owned()).spawn(supervise)
}

fn supervise(shared: &Arc<Shared>, mut live: LiveWorker) {
    let mut exits = VecDeque::new();
    loop {
        let how = receive_reports(shared, &mut live);
        let (withheld, is_meant) = {
            let mut state = shared.state();
            (state.worker_lost(), state.stopping)
        };
        shared.changed.notify_all();
        if !is_meant {
            let stuck = how.is_none().then_some(live.child);
            fence::start(shared.clone(), stuck, withheld);
        }
        let how = how
            .unwrap_or_else(|| "was killed, but waits for a disk that does not answer".to_owned());
        let Some(next) = replace(shared, how, &mut exits) else { return };
        live = next;
    }
}

/// Restarts the worker. Returns `None` if it was meant to stop, or died too often.
fn replace(
    shared: &Arc<Shared>,
    mut how: String,
    exits: &mut VecDeque<Instant>,
) -> Option<LiveWorker> {
    loop {
        if shared.state().stopping {
            return None;
        }
        if is_too_often(exits, Instant::now()) {
            let sentence = format!("The process that talks to hosts {how} again and again.");
            shared.emit(WorkerEvent::Lost(sentence));
            return None;
        }
        shared.emit(WorkerEvent::Note(format!(
            "The process that talks to hosts {how}; another one takes its place, and hosts connect \
             anew by themselves."
        )));
        match start_worker(shared) {
            Ok(live) => {
                shared.emit(WorkerEvent::Replaced);
                return Some(live);
            }
            Err(failure) => how = format!("could not be started ({failure})"),
        }
        thread::sleep(PAUSE);
    }
}

fn is_too_often(exits: &mut VecDeque<Instant>, now: Instant) -> bool {
    exits.retain(|at| now.duration_since(*at) < RESTART_WINDOW);
    exits.push_back(now);
    exits.len() > MAX_RESTARTS
}

/// Spawns a worker and sends it the current state.
fn start_worker(shared: &Arc<Shared>) -> Result<LiveWorker, Failure> {
    let (mut child, socket) = spawn(shared).map_err(|error| cannot(&spawn_error(&error)))?;
    let result = handshake(shared, &child, socket);
    if result.is_err() {
        shared.state().process = None;
        let _ = child.kill();
        // It has no disk yet, so it cannot be blocked on one.
        let _ = end(&mut child);
    }
    result.map(|receiver| LiveWorker { child, receiver })
}

fn handshake(
    shared: &Arc<Shared>,
    child: &Child,
    socket: std::os::unix::net::UnixStream,
) -> Result<Receiver, Failure> {
    let (mut sender, mut receiver) =
        channel::split(socket, MAX_REPORT).map_err(|error| cannot(&error))?;
    sender.set_timeout(SEND_TIMEOUT);
    let config = {
        // From here on `Worker::stop` can kill the process.
        let mut state = shared.state();
        if state.stopping {
            return Err(cannot(&"it is to stop"));
        }
        state.process = Some(Pid::from_child(child));
        state.config.clone()
    };
    sender.send(&Request::Start(Box::new(config)), &[]).map_err(|error| cannot(&error))?;
    let (running, unconfined) = match receiver.receive().map_err(|error| cannot(&error))? {
        Some((Report::Running { running, unconfined }, _)) => (running, unconfined),
        Some((Report::Failed { sentence }, _)) => return Err(Failure::new(sentence)),
        _ => return Err(cannot(&"the process that was to do it ended at once")),
    };
    let mut state = shared.state();
    state.restrictions = restrictions(state.config.engine.driver, &running, &unconfined);
    state.sender = Some(sender);
    state.send_all();
    if state.stopping {
        state.end();
    }
    Ok(receiver)
}

/// Returns messages about what this system does not support: the `requested` driver, and parts of
/// the sandbox.
fn restrictions(requested: Driver, running: &Running, unconfined: &[String]) -> Vec<String> {
    let parts = unconfined.join("; ");
    let less = (!unconfined.is_empty()).then(|| {
        format!("The process that talks to hosts is less confined than it could be: {parts}.")
    });
    let is_slow = requested == Driver::Auto && running.driver == Driver::Blocking;
    let slow = is_slow.then(|| format!("The driver is {running}; this is slower."));
    less.into_iter().chain(slow).collect()
}

/// Receives reports until the worker ends. Returns how it ended, as a clause; `None` if the process
/// could not be killed.
fn receive_reports(shared: &Shared, live: &mut LiveWorker) -> Option<String> {
    let mut validator = ReportValidator::default();
    let is_valid = loop {
        // Once the worker is dead, what it has sent fits into the socket buffer.
        let has_room = shared.inbox.wait_for_room(LIVENESS_INTERVAL) || is_dead(&live.child);
        if !has_room || !live.receiver.is_ready(LIVENESS_INTERVAL) {
            if is_dead(&live.child) && !live.receiver.is_ready(Duration::ZERO) {
                break true;
            }
            continue;
        }
        match live.receiver.receive() {
            Ok(Some((report, _))) => {
                if handle(shared, &mut validator, report).is_err() {
                    break false;
                }
            }
            Ok(None) => break true,
            // A truncated frame is a crash, not a violation.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break true,
            Err(_) => break false,
        }
    };
    // The PID may be reused from here on.
    shared.state().process = None;
    if !is_valid {
        let _ = live.child.kill();
    }
    let how = end(&mut live.child);
    validator.detach_all(shared);
    let how = how?;
    Some(if is_valid { how } else { "said what it cannot know, and was ended".to_owned() })
}

/// Whether the process is dead except for threads blocked on a disk, which keep the socket open.
fn is_dead(child: &Child) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
    // The program name may contain any character.
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
    state.is_some_and(|rest| rest.starts_with(['Z', 'X']))
}

fn handle(shared: &Shared, validator: &mut ReportValidator, report: Report) -> Result<(), ()> {
    match report {
        Report::Event(event) => validator.accept(shared, event)?,
        // Not valid while pairing is disabled.
        Report::Pairing(_) if shared.state().pairing.is_none() => return Err(()),
        Report::Pairing(wire) => {
            let view = wire.view(Instant::now()).ok_or(())?;
            let mut state = shared.state();
            state.tries = view.failed_attempts();
            state.unanswered.retain(|number| view.waiting.contains(number));
            drop(state);
            shared.emit(WorkerEvent::Pairing(view));
        }
        Report::Note { sentence } => {
            shared.emit(WorkerEvent::Note(sentence.chars().take(MAX_NOTE).collect()));
        }
        Report::Reservations { disk, sequence, state: reservations } => {
            let writer = shared.reservations.as_ref().ok_or(())?;
            let mut state = shared.state();
            let worker = state.worker;
            let export = &state.disk_by_number(disk).ok_or(())?.export;
            let (id, name) = (export.id.clone(), export.name.clone());
            let save = Save { worker, disk, id, name, sequence, state: reservations };
            if !writer.write(save) {
                state.send(&Request::ReservationsSaved { disk, sequence, is_stored: false });
            }
        }
        Report::Published { disk } => {
            shared.state().disk_by_number(disk).ok_or(())?.is_published = true;
            shared.changed.notify_all();
        }
        Report::Used { disk, counts } => {
            shared.state().disk_by_number(disk).ok_or(())?.count(counts)?;
        }
        Report::Released { disk } => {
            let released =
                |assigned: &super::AssignedDisk| assigned.disk == disk && assigned.withdrawn;
            shared.state().lent.retain(|assigned| !released(assigned));
        }
        // Only valid after a stop request.
        Report::Stopped { .. } if !shared.state().stopping => return Err(()),
        Report::Stopped { in_time } => {
            shared.state().stopped = Some(in_time);
            shared.changed.notify_all();
        }
        Report::Running { .. } | Report::Failed { .. } => return Err(()),
    }
    Ok(())
}

/// Waits for the process to exit, killing it if needed. Returns how it ended; `None` if it survives
/// SIGKILL because it is blocked on a disk.
fn end(child: &mut Child) -> Option<String> {
    let how = wait_for(child);
    if how.is_some() {
        return how;
    }
    let _ = child.kill();
    wait_for(child)
}

fn wait_for(child: &mut Child) -> Option<String> {
    let begun = Instant::now();
    while begun.elapsed() < PAUSE {
        match child.try_wait() {
            Ok(Some(status)) => return Some(format!("ended ({status})")),
            Ok(None) => thread::sleep(Duration::from_millis(5)),
            Err(error) => return Some(format!("is lost ({error})")),
        }
    }
    None
}

#[cfg(test)]
mod test {
    use super::super::Worker;
    use super::super::validator::test::{attached, detached, shared};
    use super::*;

    /// A disk that is unplugged before the worker runs must not be sent to it.
    #[test]
    fn disk_withdrawn_before_the_worker_runs_is_forgotten() {
        let shared = Arc::new(shared());
        let export = shared.state().lent[0].export.clone();
        let (_, started) = mpsc::channel();
        let worker = Worker { shared: shared.clone(), supervisor: None, started };
        worker.withdraw(&export);
        assert!(shared.state().lent.is_empty());
    }

    #[test]
    fn disk_is_said_to_be_lent_when_hosts_find_it() {
        let shared = Arc::new(shared());
        let (own, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let (sender, _receiver) = channel::split(own, MAX_REPORT).unwrap();
        let (_, started) = mpsc::channel();
        let worker = Worker { shared: shared.clone(), supervisor: None, started };
        let export = shared.state().lent[0].export.clone();
        // It is not waited for while there is no worker.
        worker.wait_until_published(&export);
        {
            let mut state = shared.state();
            (state.sender, state.lent[0].is_sent) = (Some(sender), true);
        }
        let report = |disk| handle(&shared, &mut ReportValidator::default(), disk);
        assert!(report(Report::Published { disk: 2 }).is_err());
        let (pause, begun) = (Duration::from_millis(50), Instant::now());
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(pause);
                report(Report::Published { disk: 1 }).unwrap();
            });
            worker.wait_until_published(&export);
            assert!(begun.elapsed() >= pause && shared.state().lent[0].is_published);
        });
        drop(other);
    }

    #[test]
    fn worker_is_restarted_three_times_a_minute() {
        let (mut exits, begun) = (VecDeque::new(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        let often: Vec<bool> =
            [0, 1, 2, 61, 62, 63, 64].map(|n| is_too_often(&mut exits, at(n))).into();
        assert_eq!(often, [false, false, false, false, false, false, true]);
    }

    /// A compromised worker cannot fill the memory with events that must not be dropped.
    #[test]
    fn flood_of_attachments_waits_for_the_reader() {
        const REPORTS: usize = 20_000;
        let child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let (own, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let (sender, _receiver) = channel::split(other, MAX_REPORT).unwrap();
        let (_sender, receiver) = channel::split(own, MAX_REPORT).unwrap();
        let shared = shared();
        let flood = move || {
            for _ in 0..REPORTS / 2 {
                sender.send(&Report::Event(attached(1)), &[]).unwrap();
                sender.send(&Report::Event(detached()), &[]).unwrap();
            }
            sender.close();
        };
        let mut live = LiveWorker { child, receiver };
        let (mut max, mut received) = (0, 0);
        thread::scope(|scope| {
            scope.spawn(flood);
            let supervisor = scope.spawn(|| receive_reports(&shared, &mut live));
            while received < REPORTS {
                thread::sleep(Duration::from_secs(1));
                let events = shared.inbox.receive().events.len();
                (max, received) = (max.max(events), received + events);
            }
            assert!(supervisor.join().unwrap().is_some());
        });
        assert!((4097..=8192).contains(&max), "{max}");
        assert_eq!(received, REPORTS);
    }
}
