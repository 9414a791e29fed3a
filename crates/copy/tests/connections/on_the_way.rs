//! Copies through a relay between the copy and our own target that withholds or changes bytes.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use client::{Dial, Transport, ignoring_subsystem};
use copy::{
    CopyError, End, Endpoint, EndpointError, FileEndpoint, NbdEndpoint, NvmeEndpoint, NvmeHost,
    Outcome, Settings,
};
use nvme::wire::fabrics::property;

use crate::driver::pattern;
use crate::machine::{BYTES, Machine};
use crate::whole_copy::{Image, WAYS, Wire, machine, run};

/// What a relay does to the bytes of one connection.
trait Tamper: Send + 'static {
    /// Returns what is sent on to the target.
    fn to_target(&mut self, bytes: &[u8]) -> Vec<u8> {
        bytes.to_vec()
    }

    /// Returns what is sent on to the host; `None` to send nothing ever again, on a connection that stays.
    fn to_host(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        Some(bytes.to_vec())
    }
}

/// Connects to a target by way of a relay, with a `Tamper` for each connection.
fn through<T: Tamper>(address: SocketAddr, tamper: impl Fn() -> T + Send + Sync + 'static) -> Dial {
    Arc::new(move || {
        let target = TcpStream::connect(address);
        let target = target.map_err(|error| EndpointError::Temporary(error.to_string()))?;
        let (mine, host) = UnixStream::pair().unwrap();
        let tamper = Arc::new(Mutex::new(tamper()));
        let (mut from_host, mut to_target) =
            (host.try_clone().unwrap(), target.try_clone().unwrap());
        let shared = tamper.clone();
        thread::spawn(move || {
            relay(&mut from_host, &mut to_target, |bytes| {
                Some(shared.lock().unwrap().to_target(bytes))
            });
            let _ = to_target.shutdown(Shutdown::Both);
        });
        let (mut from_target, mut to_host) = (target, host);
        thread::spawn(move || {
            relay(&mut from_target, &mut to_host, |bytes| tamper.lock().unwrap().to_host(bytes));
            let _ = to_host.shutdown(Shutdown::Both);
        });
        Ok(Box::new(mine) as Box<dyn Transport>)
    })
}

/// Passes on what is received, until an end is closed.
fn relay(
    from: &mut impl Read,
    to: &mut impl Write,
    mut change: impl FnMut(&[u8]) -> Option<Vec<u8>>,
) {
    let (mut bytes, mut mute) = (vec![0; 1 << 16], false);
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        let changed = if mute { None } else { change(&bytes[..count]) };
        mute = changed.is_none();
        if changed.is_some_and(|changed| to.write_all(&changed).is_err()) {
            return;
        }
    }
}

fn nvme(dial: Dial) -> NvmeEndpoint {
    let nqn = "nqn.2014-08.org.nvmexpress:uuid:host".to_owned();
    let host = NvmeHost { nqn, id: [3; 16], credentials: None };
    NvmeEndpoint::new("nvme://there", "disk1", host, ignoring_subsystem(dial))
}

/// Extracts whole PDUs (NVMe/TCP 1.0 §3.6.2) from a stream.
#[derive(Default)]
struct Pdus(Vec<u8>);

impl Pdus {
    fn take(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.0.extend_from_slice(bytes);
        let mut pdus = Vec::new();
        while let Some(plen) = self.0.get(4..8) {
            let plen = u32::from_le_bytes(plen.try_into().unwrap()) as usize;
            if self.0.len() < plen {
                break;
            }
            let rest = self.0.split_off(plen);
            pdus.push(std::mem::replace(&mut self.0, rest));
        }
        pdus
    }
}

// ---- a controller that is not ready (C20)

/// Types of PDUs, and Property Get (NVMe Base 2.0 §3.3.2 and §6.5).
const CAPSULE_CMD: u8 = 4;
const CAPSULE_RESP: u8 = 5;
const H2C_DATA: u8 = 6;
const FABRICS: u8 = 0x7f;
const PROPERTY_GET: u8 = 4;

/// Has a controller report that it is not ready until a time, within `to` half seconds (CAP.TO), and a submission
/// queue head of 0 in each response.
struct NotReady {
    ready_at: Option<Instant>,
    to: u8,
    host: Pdus,
    target: Pdus,
    /// The identifiers of Property Get commands, and what they read.
    asked: Vec<([u8; 2], u32)>,
}

impl Tamper for NotReady {
    fn to_target(&mut self, bytes: &[u8]) -> Vec<u8> {
        let pdus = self.host.take(bytes);
        for pdu in pdus.iter().filter(|pdu| pdu[0] == CAPSULE_CMD) {
            let sqe = &pdu[8..72];
            if sqe[0] == FABRICS && sqe[4] == PROPERTY_GET {
                let offset = u32::from_le_bytes(sqe[44..48].try_into().unwrap());
                self.asked.push(([sqe[2], sqe[3]], offset));
            }
        }
        pdus.concat()
    }

    fn to_host(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut pdus = self.target.take(bytes);
        for pdu in pdus.iter_mut().filter(|pdu| pdu[0] == CAPSULE_RESP) {
            pdu[16..18].fill(0);
            let cid = [pdu[20], pdu[21]];
            let at = self.asked.iter().position(|(asked, _)| *asked == cid);
            match at.map(|at| self.asked.swap_remove(at).1) {
                Some(property::CAP) => pdu[11] = self.to,
                Some(property::CSTS) if self.ready_at.is_none_or(|at| Instant::now() < at) => {
                    pdu[8] &= !1;
                }
                _ => {}
            }
        }
        Some(pdus.concat())
    }
}

fn not_ready(machine: &Machine, ready_at: Option<Instant>, to: u8) -> NvmeEndpoint {
    nvme(through(machine.address, move || NotReady {
        ready_at,
        to,
        host: Pdus::default(),
        target: Pdus::default(),
        asked: Vec::new(),
    }))
}

#[test]
fn controller_that_is_ready_late_is_waited_for() {
    let (machine, _) = machine();
    let ready_at = Instant::now() + Duration::from_secs(2);
    let (disk, _connection) = not_ready(&machine, Some(ready_at), 30).open().unwrap();
    assert!(Instant::now() >= ready_at);
    assert_eq!(disk.bytes, BYTES as u64);
}

#[test]
fn controller_that_is_never_ready_fails_after_its_time() {
    let (machine, _) = machine();
    let begun = Instant::now();
    match not_ready(&machine, None, 1).open().err() {
        Some(EndpointError::Temporary(sentence)) => {
            assert!(sentence.contains("the target is not ready after the time"), "{sentence}");
        }
        other => panic!("{other:?}"),
    }
    assert!(begun.elapsed() >= Duration::from_millis(500));
}

// ---- a target that falls silent (C19)

/// Passes on a number of bytes to the host on all connections together, then none.
struct Silence {
    passed: Arc<AtomicUsize>,
    limit: usize,
}

impl Tamper for Silence {
    fn to_host(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let passed = self.passed.fetch_add(bytes.len(), Ordering::SeqCst);
        (passed < self.limit).then(|| bytes.to_vec())
    }
}

fn silent_after(
    limit: usize,
    machine: &Machine,
    way: Wire,
    timeout: Duration,
) -> Box<dyn Endpoint> {
    let passed = Arc::<AtomicUsize>::default();
    let dial = |address| through(address, move || Silence { passed: passed.clone(), limit });
    match way {
        Wire::Nvme => Box::new(nvme(dial(machine.address)).with_timeout(timeout)),
        Wire::Nbd => {
            let endpoint = NbdEndpoint::new("nbd://there", "disk1", dial(machine.nbd));
            Box::new(endpoint.with_timeout(timeout))
        }
        Wire::Iscsi => {
            let target = crate::iscsi::TARGET;
            let dial = dial(machine.iscsi);
            let endpoint = crate::iscsi::endpoint_by(dial, target, 0);
            Box::new(endpoint.with_timeout(timeout))
        }
    }
}

#[test]
fn silent_target_ends_a_copy_by_every_protocol() {
    let second = Duration::from_secs(1);
    let copies = WAYS.into_iter().flat_map(|way| [(way, 0), (way, 2 << 20)]);
    thread::scope(|scope| {
        for (way, limit) in copies {
            scope.spawn(move || {
                let ((machine, _), name) = (machine(), format!("silent-{way:?}-{limit}"));
                let source = End::Disk(silent_after(limit, &machine, way, second));
                let settings = Settings { reconnect_timeout: second, ..Settings::default() };
                let begun = Instant::now();
                let report = run(source, Image::new(&name).destination(), settings);
                let took = begun.elapsed();
                assert!(took < Duration::from_secs(15), "{way:?} {limit}: {took:?}");
                match (limit, &report.outcome) {
                    (0, Outcome::Refused(_)) => {}
                    (1.., Outcome::Failed(CopyError::Lost { reason, .. })) => {
                        // Of a request, or of the handshake of the connection after it.
                        let reasons = ["no answer in 1 seconds", "no answer in time"];
                        let is_known = reasons.iter().any(|known| reason.contains(known));
                        assert!(is_known, "{way:?}: {reason}");
                    }
                    other => panic!("{way:?} {other:?}"),
                }
                assert!(report.bad.is_empty(), "{way:?} {limit}: {:?}", report.bad);
            });
        }
    });
}

// ---- flipped bits (R44)

/// Flips one bit in the data that is written on all connections together.
struct Flip {
    way: Wire,
    /// The byte of all that is written of which a bit is flipped.
    at: usize,
    written: Arc<AtomicUsize>,
    pdus: Pdus,
    /// Bytes of an NBD request that is not complete.
    pending: Vec<u8>,
}

/// `NBD_CMD_WRITE`, and the magic and the length of the header of an extended request.
const NBD_WRITE: u16 = 1;
const NBD_MAGIC: [u8; 4] = [0x21, 0xe4, 0x1c, 0x71];
const NBD_HEADER: usize = 32;

impl Flip {
    fn flip(&self, data: &mut [u8]) {
        let before = self.written.fetch_add(data.len(), Ordering::SeqCst);
        if let Some(byte) = self.at.checked_sub(before).and_then(|at| data.get_mut(at)) {
            *byte ^= 1 << (self.at % 8);
        }
    }

    /// Flips in the requests that are complete. What precedes the first one is the handshake.
    fn nbd(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.pending.extend_from_slice(bytes);
        let mut passed = Vec::new();
        while let Some(header) = self.pending.get(..NBD_HEADER) {
            if header[..4] != NBD_MAGIC {
                return [passed, std::mem::take(&mut self.pending)].concat();
            }
            let kind = u16::from_be_bytes([header[6], header[7]]);
            let len = u64::from_be_bytes(header[24..32].try_into().unwrap());
            let len = if kind == NBD_WRITE { usize::try_from(len).unwrap() } else { 0 };
            if self.pending.len() < NBD_HEADER + len {
                return passed;
            }
            let rest = self.pending.split_off(NBD_HEADER + len);
            let mut request = std::mem::replace(&mut self.pending, rest);
            self.flip(&mut request[NBD_HEADER..]);
            passed.extend(request);
        }
        if self.pending.starts_with(&NBD_MAGIC) || NBD_MAGIC.starts_with(&self.pending) {
            return passed;
        }
        [passed, std::mem::take(&mut self.pending)].concat()
    }

    /// Flips in the data of write commands: in their capsules and in H2CData PDUs.
    fn nvme(&mut self, bytes: &[u8]) -> Vec<u8> {
        const WRITE: u8 = 1;
        let mut pdus = self.pdus.take(bytes);
        for pdu in &mut pdus {
            let writes = pdu[0] == H2C_DATA || pdu[0] == CAPSULE_CMD && pdu[8] == WRITE;
            let data = usize::from(pdu[3]);
            if writes && data != 0 && data < pdu.len() {
                self.flip(&mut pdu[data..]);
            }
        }
        pdus.concat()
    }
}

impl Tamper for Flip {
    fn to_target(&mut self, bytes: &[u8]) -> Vec<u8> {
        match self.way {
            Wire::Nbd => self.nbd(bytes),
            _ => self.nvme(bytes),
        }
    }
}

/// Case R44: a bit is flipped between the copy and its destination.
#[test]
fn r44_bit_flipped_on_the_way_is_located() {
    const ROUNDS: usize = 12;
    let image = Image::new("flipped");
    let bytes = pattern(5, BYTES);
    std::fs::write(&image.0, &bytes).unwrap();
    for way in [Wire::Nvme, Wire::Nbd] {
        for round in 0..ROUNDS {
            let (machine, _) = machine();
            // Also the first and the last byte.
            let at = (BYTES - 1) * round / (ROUNDS - 1);
            let written = Arc::<AtomicUsize>::default();
            let tamper = move || Flip {
                way,
                at,
                written: written.clone(),
                pdus: Pdus::default(),
                pending: Vec::new(),
            };
            let destination: Box<dyn Endpoint> = match way {
                Wire::Nbd => {
                    let dial = through(machine.nbd, tamper);
                    Box::new(NbdEndpoint::new("nbd://there", "disk1", dial))
                }
                _ => Box::new(nvme(through(machine.address, tamper))),
            };
            let source = End::Disk(Box::new(FileEndpoint::source(&image.0, "")));
            let report = run(source, End::Disk(destination), Settings::default());
            let arrived = machine.bytes(0);
            let differs = |at: &usize| arrived[*at] != bytes[*at];
            let differing: Vec<usize> = (0..BYTES).filter(differs).collect();
            assert_eq!(differing.len(), 1, "{way:?} {round}: one byte was changed");
            match &report.outcome {
                Outcome::VerifyFailed(ranges) => {
                    let found = ranges.iter().any(|range| range.contains(&(differing[0] as u64)));
                    assert!(found && ranges.len() == 1, "{way:?} {differing:?}: {ranges:?}");
                }
                other => panic!("{way:?} {round}: {other:?}"),
            }
        }
    }
}
