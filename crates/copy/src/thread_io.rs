//! What one thread has under way at both ends: request is sent, what ended is collected, and an end that is lost is reached
//! again. It knows no plan.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec, poll};

use crate::connection::until;
use crate::health::Health;
use crate::same_disk::check_samples;
use crate::sample::{Sample, Samples};
use crate::{
    Completion, Connection, ConnectionLost, Disk, Endpoint, EndpointError, Interest, Request,
};

/// One of the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

/// An end of the copy: where it is, what it was when the copy began, and what is known of it since.
#[derive(Clone)]
pub(crate) struct OpenedEndpoint {
    pub(crate) place: Arc<dyn Endpoint>,
    pub(crate) disk: Arc<Disk>,
    pub(crate) samples: Arc<Samples>,
    pub(crate) health: Arc<Health>,
}

impl OpenedEndpoint {
    pub(crate) fn new(place: Arc<dyn Endpoint>, disk: Disk) -> Self {
        Self { place, disk: Arc::new(disk), samples: Arc::default(), health: Arc::default() }
    }

    /// The same end, of whose content nothing is known: whether it holds what was written is still to be seen.
    pub(crate) fn unknown(&self) -> Self {
        Self { samples: Arc::default(), ..self.clone() }
    }

    /// Keeps a sample of what the disk is known to hold at `offset`. A disk of this machine needs none.
    pub(crate) fn keep_sample(&self, offset: u64, bytes: &[u8]) {
        if self.disk.remote
            && let Some(sample) = Sample::of(offset, bytes, self.disk.block)
        {
            self.samples.add(sample);
        }
    }
}

/// What came from an end.
#[derive(Debug)]
pub(crate) enum IoEvent {
    /// A request ended.
    Completed(Side, Completion),
    /// The end was lost, with all that was under way there.
    Disconnected(Side, String),
    /// It is there again.
    Connected(Side),
    /// It does not come back.
    Unreachable(Side, String),
    /// What came back is another disk.
    DifferentDisk(Side, String),
    /// It broke the rules of its protocol.
    Violation(Side, String),
}

/// The ways to both ends, or to one of them alone.
pub(crate) struct ThreadIo {
    source: Option<Link>,
    destination: Option<Link>,
}

impl ThreadIo {
    /// Opens the ways, at the first call of [`ThreadIo::next`]. An end that is lost is tried for as long as `reconnect_timeout`.
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

    /// Does not wait for an end that was never there.
    #[must_use]
    pub(crate) fn without_first_wait(mut self) -> Self {
        self.source
            .iter_mut()
            .chain(&mut self.destination)
            .for_each(|link| link.waits_for_first = false);
        self
    }

    /// Whether all ends are there.
    pub(crate) fn is_connected(&self) -> bool {
        self.links().all(|link| link.connection.is_some())
    }

    /// Whether an end takes one more request.
    pub(crate) fn has_free_slot(&mut self, side: Side) -> bool {
        self.connection(side).is_some_and(|connection| connection.free_slots() > 0)
    }

    /// Begins a request; there must be room.
    pub(crate) fn submit(&mut self, side: Side, tag: u32, request: Request) {
        if let Some(link) = self.link(side) {
            link.submit(tag, request);
        }
    }

    /// The way to an end, if it is there.
    pub(crate) fn connection(&mut self, side: Side) -> Option<&mut dyn Connection> {
        match &mut self.link(side)?.connection {
            Some(connection) => Some(&mut **connection),
            None => None,
        }
    }

    /// The file or device of an end, if it is one of this machine.
    pub(crate) fn local_fd(&self, side: Side) -> Option<BorrowedFd<'_>> {
        let link = match side {
            Side::Source => self.source.as_ref(),
            Side::Destination => self.destination.as_ref(),
        };
        link?.connection.as_ref()?.local_fd()
    }

    /// Goes on at both ends; the next thing that came.
    pub(crate) fn next(&mut self) -> Option<IoEvent> {
        let source = self.source.as_mut().and_then(|link| link.next(Side::Source));
        source.or_else(|| self.destination.as_mut()?.next(Side::Destination))
    }

    /// Waits until something may have come, but not longer than `most`. Tells at once if there is nothing to wait for.
    pub(crate) fn wait(&self, most: Duration) -> bool {
        let now = Instant::now();
        let connections = || self.links().filter_map(|link| link.connection.as_deref());
        let timeout =
            connections().fold(most, |most, connection| until(connection.deadline(), now, most));
        let mut fds: Vec<PollFd<'_>> = connections().filter_map(poll_fd).collect();
        if fds.is_empty() {
            return false;
        }
        let timeout = Timespec::try_from(timeout).unwrap_or_default();
        // Interrupted, or out of memory for a moment: the caller looks and comes again.
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

/// The connection to one end.
struct Link {
    end: OpenedEndpoint,
    connection: Option<Box<dyn Connection>>,
    reconnect_timeout: Duration,
    /// Whether to try again if there is no connection; not before the first one, where others do the request.
    waits_for_first: bool,
    retry_at: Instant,
    backoff: Duration,
    /// Requests in flight on the connection.
    in_flight: usize,
    /// Whether it has answered a request.
    answered: bool,
    /// Connections lost one after the other without an answer to any request.
    failed_in_a_row: u32,
    /// Why the last one was lost.
    last_error: String,
    /// Samples that are still to be compared before the disk is taken for the same.
    unchecked_samples: Option<Vec<Sample>>,
    /// It is of no use to try again.
    given_up: bool,
}

/// The pause before an end is tried again, at first and at most.
const BACKOFF: Duration = Duration::from_millis(250);
const MAX_BACKOFF: Duration = Duration::from_secs(5);

impl Link {
    fn new(end: &OpenedEndpoint, reconnect_timeout: Duration) -> Self {
        Self {
            end: end.clone(),
            connection: None,
            reconnect_timeout,
            waits_for_first: true,
            retry_at: Instant::now(),
            backoff: BACKOFF,
            in_flight: 0,
            answered: true,
            failed_in_a_row: 0,
            last_error: String::new(),
            unchecked_samples: None,
            given_up: false,
        }
    }

    fn submit(&mut self, tag: u32, request: Request) {
        let Some(connection) = &mut self.connection else { return };
        self.in_flight += 1;
        self.end.health.sent();
        connection.submit(tag, request);
    }

    fn next(&mut self, side: Side) -> Option<IoEvent> {
        let Some(connection) = &mut self.connection else { return self.reconnect(side) };
        // What has already ended may hold data; a connection that is lost has none any more.
        if let Err(lost) = connection.advance() {
            return Some(self.lost(side, lost));
        }
        let completion = connection.next_completion()?;
        self.in_flight = self.in_flight.saturating_sub(1);
        self.end.health.answered();
        (self.answered, self.failed_in_a_row, self.backoff) = (true, 0, BACKOFF);
        Some(IoEvent::Completed(side, completion))
    }

    /// The connection is lost. One that answered nothing is not made again at once.
    fn lost(&mut self, side: Side, lost: ConnectionLost) -> IoEvent {
        self.connection = None;
        self.end.health.lost(std::mem::take(&mut self.in_flight));
        if lost.violation {
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
        self.retry_at = Instant::now() + self.backoff;
        self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
    }

    fn reconnect(&mut self, side: Side) -> Option<IoEvent> {
        if self.given_up || Instant::now() < self.retry_at {
            return None;
        }
        // Connections that come about and answer nothing are no progress.
        if self.failed_in_a_row > 1 && !self.may_retry() {
            self.given_up = true;
            return Some(IoEvent::Unreachable(side, std::mem::take(&mut self.last_error)));
        }
        match self.end.place.open() {
            Ok((disk, connection)) => self.connected(side, &disk, connection),
            Err(EndpointError::Unreachable(why)) => self.fail(side, why),
            Err(EndpointError::Violation(why)) => {
                self.given_up = true;
                Some(IoEvent::Violation(side, self.without_name(&why)))
            }
            Err(EndpointError::Refused(why)) => {
                self.given_up = true;
                Some(IoEvent::Unreachable(side, self.without_name(&why)))
            }
        }
    }

    /// There is no connection for now.
    fn fail(&mut self, side: Side, why: String) -> Option<IoEvent> {
        self.end.health.lost(0);
        if self.may_retry() {
            self.back_off();
            return None;
        }
        self.given_up = true;
        Some(IoEvent::Unreachable(side, self.without_name(&why)))
    }

    /// The sentence without the name of the end, which stands beside it.
    fn without_name(&self, why: &str) -> String {
        let name = &self.end.disk.name;
        let rest = why.strip_prefix(name.as_str()).and_then(|rest| rest.strip_prefix(": "));
        rest.unwrap_or(why).to_owned()
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
        if let Some(why) = difference(&self.end.disk, disk) {
            self.given_up = true;
            return Some(IoEvent::DifferentDisk(side, why));
        }
        // A server that ends a connection after a few requests must not get only these.
        let most = if self.failed_in_a_row > 0 { 1 } else { usize::MAX };
        let all = || self.end.samples.all().into_iter().take(most).collect();
        let samples = self.unchecked_samples.get_or_insert_with(all);
        let before = samples.len();
        match check_samples(&mut *connection, samples) {
            Ok(None) => self.unchecked_samples = None,
            Ok(Some(why)) => {
                self.given_up = true;
                return Some(IoEvent::DifferentDisk(side, why));
            }
            Err(lost) if lost.violation => {
                self.given_up = true;
                return Some(IoEvent::Violation(side, lost.reason));
            }
            Err(lost) => {
                // Some servers end a connection after a few requests: the next one goes on from there.
                let moved = !samples.is_empty() && samples.len() < before;
                if samples.is_empty() {
                    // Those that were tried cannot be read: then the others.
                    *samples = self.end.samples.all();
                }
                let gone = self.fail(side, lost.reason);
                self.retry_at = if moved { Instant::now() } else { self.retry_at };
                return gone;
            }
        }
        self.connection = Some(connection);
        (self.waits_for_first, self.answered) = (true, false);
        Some(IoEvent::Connected(side))
    }
}

/// In what a disk differs from what it was.
pub(crate) fn difference(before: &Disk, now: &Disk) -> Option<String> {
    if now.bytes != before.bytes {
        return Some(format!("it has {} bytes, it had {}", now.bytes, before.bytes));
    }
    if now.identity != before.identity {
        return Some(format!("it is \"{}\", it was \"{}\"", now.identity, before.identity));
    }
    let smaller = now.max_transfer < before.max_transfer || now.block > before.block;
    let locked = before.writable && !now.writable;
    (smaller || locked).then(|| "it allows less than before".to_owned())
}
