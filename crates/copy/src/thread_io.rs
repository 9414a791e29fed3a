//! The connections of one thread to both endpoints: submits requests, collects completions, and
//! reconnects an endpoint that is lost.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec, poll};

use crate::backoff::Backoff;
use crate::connection::until;
use crate::health::Health;
use crate::same_disk::check_samples;
use crate::sample::{Sample, Samples};
use crate::{
    Completion, Connection, ConnectionLost, Disk, Endpoint, EndpointError, Interest, LossCause,
    Request,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

/// An endpoint with the properties of its disk at the start of the copy, and shared state of all
/// connections to it.
#[derive(Clone)]
pub(crate) struct OpenedEndpoint {
    pub(crate) endpoint: Arc<dyn Endpoint>,
    pub(crate) disk: Arc<Disk>,
    pub(crate) samples: Arc<Samples>,
    pub(crate) health: Arc<Health>,
}

impl OpenedEndpoint {
    pub(crate) fn new(endpoint: Arc<dyn Endpoint>, disk: Disk) -> Self {
        Self { endpoint, disk: Arc::new(disk), samples: Arc::default(), health: Arc::default() }
    }

    /// The same endpoint without samples: its contents are not known yet.
    pub(crate) fn unknown(&self) -> Self {
        Self { samples: Arc::default(), ..self.clone() }
    }

    /// Keeps a sample of the data at `offset`. Does nothing for a local disk.
    pub(crate) fn keep_sample(&self, offset: u64, bytes: &[u8]) {
        if self.disk.remote
            && let Some(sample) = Sample::of(offset, bytes, self.disk.block)
        {
            self.samples.add(sample);
        }
    }
}

/// An event of one endpoint.
#[derive(Debug)]
pub(crate) enum IoEvent {
    /// A request completed, successfully or not.
    Completed(Side, Completion),
    /// The connection was lost, and all requests in flight with it.
    Disconnected(Side, String),
    /// The endpoint is connected.
    Connected(Side),
    /// The endpoint cannot be reached again.
    Unreachable(Side, String),
    /// Another disk is found behind the endpoint.
    DifferentDisk(Side, String),
    /// The peer violated its protocol.
    Violation(Side, String),
}

/// The connections of one thread, to both endpoints or to one of them.
pub(crate) struct ThreadIo {
    source: Option<Link>,
    destination: Option<Link>,
}

impl ThreadIo {
    /// Connects at the first call of [`ThreadIo::next`]. A lost endpoint is retried for
    /// `reconnect_timeout`.
    pub(crate) fn new(
        source: Option<&OpenedEndpoint>,
        destination: Option<&OpenedEndpoint>,
        reconnect_timeout: Duration,
    ) -> Self {
        let link = |end| Link::new(end, reconnect_timeout);
        Self { source: source.map(link), destination: destination.map(link) }
    }

    fn link(&mut self, side: Side) -> Option<&mut Link> {
        match side {
            Side::Source => self.source.as_mut(),
            Side::Destination => self.destination.as_mut(),
        }
    }

    fn links(&self) -> impl Iterator<Item = &Link> {
        self.source.iter().chain(&self.destination)
    }

    /// Does not retry an endpoint that was never connected.
    #[must_use]
    pub(crate) fn without_first_wait(mut self) -> Self {
        self.set_first_wait(false);
        self
    }

    /// Sets whether an endpoint that was never connected is retried.
    pub(crate) fn set_first_wait(&mut self, waits: bool) {
        let links = self.source.iter_mut().chain(&mut self.destination);
        links.for_each(|link| link.waits_for_first = waits);
    }

    /// Whether all endpoints are connected.
    pub(crate) fn is_connected(&self) -> bool {
        self.links().all(|link| link.connection.is_some())
    }

    /// Whether the endpoint accepts one more request.
    pub(crate) fn has_free_slot(&mut self, side: Side) -> bool {
        self.connection(side).is_some_and(|connection| connection.free_slots() > 0)
    }

    /// Starts a request; there must be a free slot.
    pub(crate) fn submit(&mut self, side: Side, tag: u32, request: Request) {
        if let Some(link) = self.link(side) {
            link.submit(tag, request);
        }
    }

    /// The connection to an endpoint, if there is one.
    pub(crate) fn connection(&mut self, side: Side) -> Option<&mut dyn Connection> {
        match &mut self.link(side)?.connection {
            Some(connection) => Some(&mut **connection),
            None => None,
        }
    }

    /// The file of an endpoint, if it is a local one.
    pub(crate) fn local_fd(&self, side: Side) -> Option<BorrowedFd<'_>> {
        let link = match side {
            Side::Source => self.source.as_ref(),
            Side::Destination => self.destination.as_ref(),
        };
        link?.connection.as_ref()?.local_fd()
    }

    /// Makes progress on both connections, and returns the next event.
    pub(crate) fn next(&mut self) -> Option<IoEvent> {
        // Completions that are there already need no system call.
        let queued = self.source.as_mut().and_then(|link| link.next_completion(Side::Source));
        let queued =
            queued.or_else(|| self.destination.as_mut()?.next_completion(Side::Destination));
        let source = || self.source.as_mut().and_then(|link| link.next(Side::Source));
        let next = queued.or_else(source);
        next.or_else(|| self.destination.as_mut()?.next(Side::Destination))
    }

    /// Waits for an event, at most `max`. Returns `false` at once if there is nothing to wait for.
    pub(crate) fn wait(&self, max: Duration) -> bool {
        let now = Instant::now();
        let connections = || self.links().filter_map(|link| link.connection.as_deref());
        let timeout =
            connections().fold(max, |max, connection| until(connection.deadline(), now, max));
        let mut fds: Vec<PollFd<'_>> = connections().filter_map(poll_fd).collect();
        if fds.is_empty() {
            return false;
        }
        let timeout = Timespec::try_from(timeout).unwrap_or_default();
        // Interrupted or out of memory: the caller tries again.
        let _ = poll(&mut fds, Some(&timeout));
        true
    }
}

fn poll_fd(connection: &dyn Connection) -> Option<PollFd<'_>> {
    match connection.interest() {
        Interest::None => None,
        Interest::Fd(fd, flags) => Some(PollFd::from_borrowed_fd(fd, flags)),
    }
}

/// The connection to one endpoint, with its retries.
struct Link {
    end: OpenedEndpoint,
    connection: Option<Box<dyn Connection>>,
    reconnect_timeout: Duration,
    /// Whether to retry while disconnected. Not before the first one if another thread can
    /// do the work.
    waits_for_first: bool,
    retry_at: Instant,
    backoff: Backoff,
    in_flight: usize,
    /// Whether the current connection has answered a request.
    answered: bool,
    /// Consecutive connections that were lost without an answer to any request.
    failed_in_a_row: u32,
    /// Why the last connection was lost.
    last_error: String,
    /// Whether it was lost because the peer did not answer.
    silent: bool,
    /// Samples that must still be compared before the disk counts as the same.
    unchecked_samples: Option<Vec<Sample>>,
    /// Whether a permanent error was found.
    given_up: bool,
}

/// The first pause before a retry.
const PAUSE: Duration = Duration::from_millis(250);

impl Link {
    fn new(end: &OpenedEndpoint, reconnect_timeout: Duration) -> Self {
        Self {
            end: end.clone(),
            connection: None,
            reconnect_timeout,
            waits_for_first: true,
            retry_at: Instant::now(),
            backoff: Backoff::new(PAUSE),
            in_flight: 0,
            answered: true,
            failed_in_a_row: 0,
            last_error: String::new(),
            silent: false,
            unchecked_samples: None,
            given_up: false,
        }
    }

    fn submit(&mut self, tag: u32, request: Request) {
        let Some(connection) = &mut self.connection else { return };
        self.in_flight += 1;
        self.end.health.record_sent();
        connection.submit(tag, request);
    }

    fn next(&mut self, side: Side) -> Option<IoEvent> {
        let Some(connection) = &mut self.connection else { return self.reconnect(side) };
        match connection.advance() {
            Ok(()) => self.next_completion(side),
            Err(lost) => Some(self.lost(side, lost)),
        }
    }

    /// The next completion that is queued.
    fn next_completion(&mut self, side: Side) -> Option<IoEvent> {
        let completion = self.connection.as_mut()?.next_completion()?;
        self.in_flight = self.in_flight.saturating_sub(1);
        self.end.health.record_answer();
        (self.answered, self.failed_in_a_row) = (true, 0);
        self.backoff.reset();
        Some(IoEvent::Completed(side, completion))
    }

    /// Records the loss of the connection. One that answered nothing is retried after a pause.
    fn lost(&mut self, side: Side, lost: ConnectionLost) -> IoEvent {
        self.connection = None;
        self.silent = lost.cause == LossCause::Silent;
        let stalled_since = self.end.health.stalled_since().filter(|_| self.silent);
        let since = stalled_since.unwrap_or_else(Instant::now);
        self.end.health.record_loss(std::mem::take(&mut self.in_flight), since);
        if lost.is_violation() {
            self.given_up = true;
            return IoEvent::Violation(side, lost.reason);
        }
        self.retry_at = Instant::now();
        if !self.answered {
            self.failed_in_a_row += 1;
            self.back_off();
        }
        self.last_error.clone_from(&lost.reason);
        IoEvent::Disconnected(side, lost.reason)
    }

    fn back_off(&mut self) {
        self.retry_at = Instant::now() + self.backoff.next();
    }

    fn reconnect(&mut self, side: Side) -> Option<IoEvent> {
        if self.given_up || Instant::now() < self.retry_at {
            return None;
        }
        // Connections without any reply do not count as progress. A peer that was connected and did not answer
        // has had its time.
        if (self.failed_in_a_row > 1 || self.silent) && !self.may_retry() {
            self.given_up = true;
            return Some(IoEvent::Unreachable(side, std::mem::take(&mut self.last_error)));
        }
        let begun = Instant::now();
        match self.end.endpoint.open() {
            Ok((disk, connection)) => self.connected(side, &disk, connection),
            Err(EndpointError::Temporary(reason)) => self.fail(side, reason, begun),
            Err(EndpointError::Violation(reason)) => {
                self.given_up = true;
                Some(IoEvent::Violation(side, self.without_name(&reason)))
            }
            Err(EndpointError::Permanent(reason)) => {
                self.given_up = true;
                Some(IoEvent::Unreachable(side, self.without_name(&reason)))
            }
        }
    }

    /// Schedules the next retry, or gives up. The attempt began at `since`.
    fn fail(&mut self, side: Side, reason: String, since: Instant) -> Option<IoEvent> {
        self.end.health.record_loss(0, since);
        if self.may_retry() {
            self.back_off();
            return None;
        }
        self.given_up = true;
        Some(IoEvent::Unreachable(side, self.without_name(&reason)))
    }

    /// The message without its prefix, the name of the endpoint, which the caller adds.
    fn without_name(&self, reason: &str) -> String {
        let name = &self.end.disk.name;
        let rest = reason.strip_prefix(name.as_str()).and_then(|rest| rest.strip_prefix(": "));
        rest.unwrap_or(reason).to_owned()
    }

    fn may_retry(&self) -> bool {
        self.waits_for_first && self.end.health.lost_for() < self.reconnect_timeout
    }

    fn connected(
        &mut self,
        side: Side,
        disk: &Disk,
        mut connection: Box<dyn Connection>,
    ) -> Option<IoEvent> {
        if let Some(reason) = difference(&self.end.disk, disk) {
            self.given_up = true;
            return Some(IoEvent::DifferentDisk(side, reason));
        }
        // A server that closes a connection after a few requests must not get only sample reads.
        let max = if self.failed_in_a_row > 0 { 1 } else { usize::MAX };
        // Whether the disk keeps what was written is a question of the verification. After a loss,
        // written data also tells whether it is the same disk.
        let written = self.end.health.was_lost();
        let all = || self.end.samples.all(written).into_iter().take(max).collect();
        let samples = self.unchecked_samples.get_or_insert_with(all);
        let (before, begun) = (samples.len(), Instant::now());
        match check_samples(&mut *connection, samples) {
            Ok(None) => self.unchecked_samples = None,
            Ok(Some(reason)) => {
                self.given_up = true;
                return Some(IoEvent::DifferentDisk(side, reason));
            }
            Err(lost) if lost.is_violation() => {
                self.given_up = true;
                return Some(IoEvent::Violation(side, lost.reason));
            }
            Err(lost) => {
                // Some servers close a connection after a few requests: the next connection
                // continues.
                let moved = !samples.is_empty() && samples.len() < before;
                if samples.is_empty() {
                    // The samples tried so far are unreadable: try the others.
                    *samples = self.end.samples.all(written);
                }
                let gone = self.fail(side, lost.reason, begun);
                self.retry_at = if moved { Instant::now() } else { self.retry_at };
                return gone;
            }
        }
        self.connection = Some(connection);
        (self.waits_for_first, self.answered) = (true, false);
        Some(IoEvent::Connected(side))
    }
}

/// The difference between a disk and its earlier state, or `None`. A file that was empty is written from
/// a pipe, and grows.
pub(crate) fn difference(before: &Disk, now: &Disk) -> Option<String> {
    if now.bytes != before.bytes && before.bytes != 0 {
        return Some(format!("it has {} bytes, it had {}", now.bytes, before.bytes));
    }
    if now.identity != before.identity {
        return Some(format!("it is \"{}\", it was \"{}\"", now.identity, before.identity));
    }
    let smaller = now.max_transfer < before.max_transfer || now.block > before.block;
    let locked = before.writable && !now.writable;
    (smaller || locked)
        .then(|| "it allows smaller requests than before, or is read-only now".to_owned())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn only_an_empty_file_may_grow() {
        let disk = |bytes| Disk { bytes, ..Disk::default() };
        assert_eq!(difference(&disk(0), &disk(3 << 20)), None);
        assert_eq!(difference(&disk(512), &disk(512)), None);
        for (before, now) in [(512, 1024), (512, 0)] {
            assert!(difference(&disk(before), &disk(now)).is_some(), "{before} {now}");
        }
    }
}
