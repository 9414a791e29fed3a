//! Synchronous requests to one endpoint, one at a time, with reconnection: for samples, comparison
//! and pipes.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::thread_io::{IoEvent, OpenedEndpoint, Side, ThreadIo};
use crate::{Completion, CopyError, Request, RequestError};

/// One endpoint, for one request at a time.
pub(crate) struct SyncIo<'a> {
    target: OpenedEndpoint,
    io: ThreadIo,
    stop: &'a AtomicBool,
}

/// Maximum time of one poll.
const WAIT: Duration = Duration::from_millis(100);

/// Why a request was not carried out.
#[derive(Debug)]
pub(crate) enum SyncIoError {
    /// The copy was cancelled.
    Cancelled,
    /// The connection was lost and is restored; unflushed writes may be lost.
    Disconnected,
    /// The copy cannot continue.
    Failed(CopyError),
}

impl<'a> SyncIo<'a> {
    pub(crate) fn new(
        target: &OpenedEndpoint,
        reconnect_timeout: Duration,
        stop: &'a AtomicBool,
    ) -> Self {
        let io = ThreadIo::new(Some(target), None, reconnect_timeout);
        Self { target: target.clone(), io, stop }
    }

    /// Connects, without a second attempt if that fails. Must be called before any other request.
    pub(crate) fn try_connect(&mut self) -> Result<(), SyncIoError> {
        self.io.set_first_wait(false);
        self.ensure_connected()
    }

    /// Makes subsequent reads come from the disk and not from a cache.
    pub(crate) fn drop_caches(&mut self) -> Result<(), SyncIoError> {
        self.ensure_connected()?;
        if let Some(connection) = self.io.connection(Side::Source) {
            connection.drop_caches();
        }
        Ok(())
    }

    /// Carries out a request and waits for its completion. A failed request is returned as a
    /// completion.
    pub(crate) fn run(&mut self, request: Request) -> Result<Completion, SyncIoError> {
        self.ensure_connected()?;
        let reads = match request {
            Request::Read { offset, .. } => Some(offset),
            _ => None,
        };
        self.io.submit(Side::Source, 0, request);
        loop {
            match self.io.next() {
                Some(IoEvent::Completed(_, completion)) => {
                    if let (Some(offset), Ok(()), Some(buffer)) =
                        (reads, completion.result, &completion.buffer)
                    {
                        self.target.keep_sample(offset, buffer.bytes());
                    }
                    return Ok(completion);
                }
                Some(IoEvent::Disconnected(..)) => {
                    self.ensure_connected()?;
                    return Err(SyncIoError::Disconnected);
                }
                Some(other) => self.check_event(other)?,
                None => drop(self.io.wait(WAIT)),
            }
            self.check_cancelled()?;
        }
    }

    /// Keeps the connection alive while nothing is in flight.
    pub(crate) fn keep_alive(&mut self) -> Result<(), SyncIoError> {
        match self.io.next() {
            Some(IoEvent::Disconnected(..)) => {
                self.ensure_connected()?;
                return Err(SyncIoError::Disconnected);
            }
            Some(other) => self.check_event(other)?,
            None => {}
        }
        self.check_cancelled()
    }

    /// The error of a read that failed for another reason than a bad sector.
    pub(crate) fn failed(
        &self,
        range: &Range<u64>,
        result: Result<(), RequestError>,
    ) -> SyncIoError {
        let reason = result.err().unwrap_or(RequestError::Refused);
        let (offset, len) = (range.start, range.end - range.start);
        SyncIoError::Failed(CopyError::Read { name: self.name(), offset, len, reason })
    }

    /// Waits until the endpoint is connected.
    fn ensure_connected(&mut self) -> Result<(), SyncIoError> {
        while !self.io.has_free_slot(Side::Source) {
            match self.io.next() {
                Some(event) => self.check_event(event)?,
                None if self.io.wait(WAIT) => {}
                None => std::thread::sleep(WAIT),
            }
            self.check_cancelled()?;
        }
        Ok(())
    }

    fn name(&self) -> String {
        self.target.disk.name.clone()
    }

    fn check_cancelled(&self) -> Result<(), SyncIoError> {
        if self.stop.load(Ordering::Acquire) { Err(SyncIoError::Cancelled) } else { Ok(()) }
    }

    fn check_event(&self, event: IoEvent) -> Result<(), SyncIoError> {
        let name = self.name();
        match event {
            IoEvent::Unreachable(_, reason) => {
                Err(SyncIoError::Failed(CopyError::Lost { name, reason }))
            }
            IoEvent::DifferentDisk(_, reason) => {
                Err(SyncIoError::Failed(CopyError::DifferentDisk { name, reason }))
            }
            IoEvent::Violation(_, reason) => {
                Err(SyncIoError::Failed(CopyError::Violation { name, reason }))
            }
            _ => Ok(()),
        }
    }
}
