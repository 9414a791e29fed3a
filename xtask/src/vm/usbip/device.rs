//! The device: requests on endpoint 0, and a session of `usb` behind two bulk endpoints.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use export::{
    Access, Catalogue, DirectRecv, Event, Export, Identity, Notice, Peer, Pool, Session as _, Step,
};
use usb::control::{Reply, reply};
use usb::{Server, Session};

use super::descriptors::Speed;
use super::wire::{Completion, Urb};

/// `-EPIPE`: the endpoint is halted.
const HALTED: i32 = -32;

/// Memory for data in bytes.
const MEMORY: usize = 8 << 20;

/// Disks in memory, and what their host does with them.
#[derive(Debug)]
pub(super) struct Disks {
    server: Arc<Server>,
    exports: Vec<Arc<Export>>,
    bytes: Mutex<Vec<Vec<u8>>>,
    events: Mutex<Vec<Event>>,
}

impl Disks {
    /// Creates the disks from their bytes.
    pub(super) fn new(disks: Vec<(&str, Access, Vec<u8>)>) -> Arc<Self> {
        let catalogue = Arc::new(Catalogue::default());
        let (mut exports, mut bytes) = (Vec::new(), Vec::new());
        for (name, access, content) in disks {
            let identity = Identity { serial: format!("SERIAL-{name}"), ..Identity::default() };
            let len = content.len() as u64;
            let mut export = testkit::export(name, name, identity, (512, 512), len);
            export.access = access;
            let export = Arc::new(export);
            catalogue.publish(export.clone());
            exports.push(export);
            bytes.push(content);
        }
        let (server, events) = (Server::new(catalogue), Mutex::default());
        Arc::new(Self { server, exports, bytes: Mutex::new(bytes), events })
    }

    /// Takes the bytes of all disks.
    pub(super) fn take(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut *self.bytes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns whether an event was reported.
    pub(super) fn reported(&self, is_it: impl Fn(&Event) -> bool) -> bool {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).iter().any(is_it)
    }
}

/// What the session has sent, in the order of the bulk-in endpoint.
#[derive(Debug)]
enum Sent {
    /// A transfer, of which this many bytes were received.
    Data(Vec<u8>, usize),
    Halt,
}

/// The device of one connection.
#[derive(Debug)]
pub(super) struct Device {
    disks: Arc<Disks>,
    speed: Speed,
    pool: Pool,
    session: Option<Session>,
    /// A window of the session, and how many of its bytes were received.
    window: Option<(DirectRecv, usize)>,
    sent: VecDeque<Sent>,
    /// Transfers that wait: to the host, and from it with the number of bytes that were taken.
    reads: VecDeque<(Urb, Vec<u8>)>,
    writes: VecDeque<(Urb, usize)>,
    /// Whether the bulk-in and the bulk-out endpoint are halted, and whether that remains so until
    /// a reset.
    halted_in: bool,
    halted_out: bool,
    is_broken: bool,
    done: Vec<Completion>,
}

impl Device {
    pub(super) fn new(disks: Arc<Disks>, speed: Speed) -> Self {
        Self {
            disks,
            speed,
            pool: Pool::new(MEMORY),
            session: None,
            window: None,
            sent: VecDeque::new(),
            reads: VecDeque::new(),
            writes: VecDeque::new(),
            halted_in: false,
            halted_out: false,
            is_broken: false,
            done: Vec::new(),
        }
    }

    /// Begins a transfer. Returns the transfers that have ended.
    pub(super) fn submit(&mut self, urb: Urb) -> Vec<Completion> {
        match (urb.endpoint, urb.to_host) {
            (0, _) => {
                let result = self.control(&urb);
                self.end(&urb, result);
            }
            (1, true) => {
                let room = Vec::with_capacity(urb.length);
                self.reads.push_back((urb, room));
            }
            (2, false) => self.writes.push_back((urb, 0)),
            _ => self.end(&urb, None),
        }
        while self.take() || self.give() {}
        std::mem::take(&mut self.done)
    }

    /// Cancels a transfer. Returns whether it had not ended.
    pub(super) fn cancel(&mut self, number: u32) -> bool {
        let before = self.reads.len() + self.writes.len();
        self.reads.retain(|(urb, _)| urb.number != number);
        self.writes.retain(|(urb, _)| urb.number != number);
        self.reads.len() + self.writes.len() < before
    }

    /// Ends a request on endpoint 0 with this data, or by a halt.
    fn end(&mut self, urb: &Urb, result: Option<Vec<u8>>) {
        let status = if result.is_some() { 0 } else { HALTED };
        let mut data = result.unwrap_or_default();
        data.truncate(urb.length);
        let length = if urb.to_host { data.len() } else { urb.data.len() };
        self.done.push(Completion { number: urb.number, status, length, data });
    }

    /// Answers a request on endpoint 0. `None` halts it.
    fn control(&mut self, urb: &Urb) -> Option<Vec<u8>> {
        let [kind, request, value @ .., _, _, _, _] = urb.setup;
        let endpoint = urb.setup[4];
        match (kind, request) {
            // Class requests.
            (0x21 | 0xa1, _) => match reply(urb.setup, self.disks.server.units(&Peer::usb())) {
                Reply::Data(byte) => return Some(vec![byte]),
                Reply::Reset => {
                    self.end_session();
                    self.is_broken = false;
                }
                Reply::Stall => return None,
            },
            // GET_STATUS, GET_DESCRIPTOR, GET_CONFIGURATION, GET_INTERFACE.
            (0x80..=0x82, 0) => return Some(vec![0, 0]),
            (0x80, 6) => return self.speed.descriptor(value),
            (0x80, 8) => return Some(vec![1]),
            (0x81, 10) => return Some(vec![0]),
            // CLEAR_FEATURE of an endpoint.
            (2, 1) if self.is_broken => {}
            (2, 1) if endpoint == 0x81 => self.halted_in = false,
            (2, 1) => self.halted_out = false,
            // SET_CONFIGURATION, SET_INTERFACE.
            (0, 9) | (1, 11) => {
                self.end_session();
                (self.halted_in, self.halted_out, self.is_broken) = (false, false, false);
            }
            // Other features, SET_SEL, SET_ISOCH_DELAY.
            (0..=2, 1 | 3) | (0, 0x30 | 0x31) => {}
            _ => return None,
        }
        Some(Vec::new())
    }

    /// Passes the next transfer of the host to the session. Returns whether there was one.
    fn take(&mut self) -> bool {
        let Some((urb, taken)) = self.writes.front_mut() else { return false };
        let (number, length) = (urb.number, urb.length);
        if self.halted_out {
            self.done.push(Completion { number, status: HALTED, length: *taken, data: vec![] });
            self.writes.pop_front();
            return true;
        }
        let session = self.session.get_or_insert_with(|| {
            self.disks.server.session(Peer::usb(), self.pool.open(), Instant::now())
        });
        let (now, data) = (Instant::now(), &urb.data[*taken..]);
        if self.window.is_none() {
            if !session.can_receive() {
                return false;
            }
            self.window = session.direct_recv().map(|window| (window, 0));
        }
        match self.window.take() {
            None => *taken += session.receive(now, data),
            Some((mut window, filled)) => {
                let start = window.start + filled;
                let len = data.len().min(window.end - start);
                window.buffer.bytes_mut()[start..start + len].copy_from_slice(&data[..len]);
                *taken += len;
                let is_short = *taken == length && !length.is_multiple_of(self.speed.packet());
                match filled + len {
                    filled if is_short || start + len == window.end => {
                        session.direct_received(now, window, filled);
                    }
                    filled => self.window = Some((window, filled)),
                }
            }
        }
        if *taken >= length {
            self.done.push(Completion { number, status: 0, length, data: vec![] });
            self.writes.pop_front();
        }
        self.drain();
        true
    }

    /// Fills the next transfer to the host. Returns whether it has ended.
    fn give(&mut self) -> bool {
        let Some((urb, data)) = self.reads.front_mut() else { return false };
        let mut is_over = false;
        while !self.halted_in && !is_over {
            match self.sent.front_mut() {
                None => return false,
                Some(Sent::Halt) => {
                    self.halted_in = true;
                    self.sent.pop_front();
                }
                Some(Sent::Data(bytes, at)) => {
                    let len = (bytes.len() - *at).min(urb.length - data.len());
                    data.extend_from_slice(&bytes[*at..*at + len]);
                    *at += len;
                    // A short packet ends the transfer, too.
                    let is_whole = *at == bytes.len();
                    let is_short = is_whole && !bytes.len().is_multiple_of(self.speed.packet());
                    is_over = is_short || data.len() == urb.length;
                    if is_whole {
                        self.sent.pop_front();
                    }
                }
            }
        }
        let status = if is_over { 0 } else { HALTED };
        let (number, data) = (urb.number, std::mem::take(data));
        self.done.push(Completion { number, status, length: data.len(), data });
        self.reads.pop_front();
        true
    }

    /// Executes the steps of the session.
    fn drain(&mut self) {
        let Some(session) = &mut self.session else { return };
        let mut is_closed = false;
        while let Some(step) = session.poll() {
            match step {
                Step::Send(segment) => self.sent.push_back(Sent::Data(segment.parts().concat(), 0)),
                Step::Halt => self.sent.push_back(Sent::Halt),
                Step::Submit(mut job) => {
                    let is_it = |export: &Arc<Export>| Arc::ptr_eq(export, job.export());
                    let index = self.disks.exports.iter().position(is_it).unwrap_or_default();
                    let mut bytes = self.disks.bytes.lock().unwrap_or_else(PoisonError::into_inner);
                    testkit::execute(&mut bytes[index], &mut job);
                    let finished = job.finish(Ok(()));
                    session.complete(Instant::now(), finished.ticket, finished.outcome);
                }
                Step::Report(event) => {
                    let events = self.disks.events.lock();
                    events.unwrap_or_else(PoisonError::into_inner).push(*event);
                }
                Step::Notify => session.notify(Instant::now(), &Notice::StateChanged),
                Step::Close(_) => is_closed = true,
            }
        }
        if is_closed {
            (self.halted_in, self.halted_out, self.is_broken) = (true, true, true);
            self.end_session();
        }
    }

    /// Ends the session: the host has reset the device, or is gone.
    pub(super) fn end_session(&mut self) {
        (self.window, self.sent) = (None, VecDeque::new());
        let Some(mut session) = self.session.take() else { return };
        session.notify(Instant::now(), &Notice::Disconnected);
        while let Some(step) = session.poll() {
            if let Step::Report(event) = step {
                let events = self.disks.events.lock();
                events.unwrap_or_else(PoisonError::into_inner).push(*event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urb(endpoint: u32, length: usize, data: &[u8]) -> Urb {
        let to_host = data.is_empty();
        Urb { number: 1, endpoint, to_host, length, setup: [0; 8], data: data.to_vec() }
    }

    #[test]
    fn command_is_answered_by_transfers_and_a_halt() {
        let disks = Disks::new(vec![("a", Access::ReadOnly, vec![7; 1 << 20])]);
        let mut device = Device::new(disks, Speed::High);
        let wrapper = |length: u32, cdb: &[u8]| {
            let mut bytes = *b"USBCtag.....\x80\0\x0a................";
            bytes[8..12].copy_from_slice(&length.to_le_bytes());
            bytes[15..].fill(0);
            bytes[15..15 + cdb.len()].copy_from_slice(cdb);
            urb(2, 31, &bytes)
        };
        assert_eq!(device.submit(wrapper(36, &[0x12, 0, 0, 0, 36]))[0].length, 31);
        assert_eq!(device.submit(urb(1, 36, &[]))[0].length, 36);
        assert_eq!(device.submit(urb(1, 13, &[]))[0].data[..4], *b"USBS");
        // The unit attention condition: no data, but a halt, which the host clears.
        device.submit(wrapper(512, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1]));
        let halted = Completion { number: 1, status: HALTED, length: 0, data: vec![] };
        assert_eq!(device.submit(urb(1, 512, &[])), [halted]);
        let clear = Urb { setup: [2, 1, 0, 0, 0x81, 0, 0, 0], ..urb(0, 0, &[]) };
        assert_eq!(device.submit(clear)[0].status, 0);
        assert_eq!(device.submit(urb(1, 13, &[]))[0].data[12], 1);
        // A transfer that waits for data is cancelled.
        assert_eq!(device.submit(urb(1, 13, &[])), []);
        assert!(device.cancel(1) && !device.cancel(1));
    }
}
