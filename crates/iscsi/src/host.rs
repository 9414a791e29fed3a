//! The iSCSI initiator as a sans-I/O state machine: bytes and commands in, bytes and completed
//! commands out. It validates everything that the target sends.
//!
//! An [`Initiator`] is one session of one connection. It logs in as its [`Options`] require until
//! [`Step::LoggedIn`], [`Step::Targets`], [`Step::Refused`] or [`Step::Redirected`], and then accepts a [`Command`] at a time.
//! [`disk`] has the commands of a disk.

pub mod disk;
mod full_feature;
mod keys;
mod login;
mod receiver;
mod slots;
mod status;
mod violation;

use std::collections::VecDeque;
use std::fmt;

use export::{Buffer, DirectRecv, Secret, Segment};

use crate::chap::{Algorithm, RandomSource, system_random};
use crate::wire::text::MAX_TEXT;
use keys::Parameters;
use login::Login;
use receiver::Receiver;
use slots::Slots;

pub use slots::Data;
pub use status::{Disposition, Sense};
pub use violation::Violation;

/// The longest data segment that is received, in bytes.
const MAX_RECV: u32 = 256 << 10;

/// What to negotiate on a connection.
#[derive(Debug, Clone)]
pub struct Options {
    /// The iSCSI name of this initiator.
    pub initiator: String,
    /// The iSCSI name of the target; `None` for a discovery session.
    pub target: Option<String>,
    /// Authenticates by CHAP, and with [`Credentials::target`] demands it of the target.
    pub credentials: Option<Credentials>,
    /// Identifies the session among those of this initiator with the target.
    pub isid: [u8; 6],
    /// Maximum number of commands in flight: 1 to 4096.
    pub depth: u16,
    /// What to offer.
    pub offer: Offer,
    /// Source of challenges.
    pub random: RandomSource,
}

impl Options {
    /// Options for a session with a target without CHAP, with 64 commands in flight.
    #[must_use]
    pub fn new(initiator: &str, target: Option<&str>, isid: [u8; 6]) -> Self {
        Self {
            initiator: initiator.to_owned(),
            target: target.map(str::to_owned),
            credentials: None,
            isid,
            depth: 64,
            offer: Offer::default(),
            random: system_random,
        }
    }
}

/// The operational keys that are offered.
#[derive(Debug, Clone, Copy)]
pub struct Offer {
    /// Prefers CRC32C digests; without it, they are used only if the target requires them.
    pub digests: bool,
    /// InitialR2T: all data is requested by R2T.
    pub initial_r2t: bool,
    /// ImmediateData: commands may carry data.
    pub immediate_data: bool,
    /// MaxRecvDataSegmentLength: 512 bytes to 256 KiB.
    pub max_recv: u32,
    /// FirstBurstLength: 512 bytes to `max_burst`.
    pub first_burst: u32,
    /// MaxBurstLength: 512 bytes to 16 MiB.
    pub max_burst: u32,
}

impl Default for Offer {
    fn default() -> Self {
        Self {
            digests: false,
            initial_r2t: false,
            immediate_data: true,
            max_recv: MAX_RECV,
            first_burst: MAX_RECV,
            max_burst: 1 << 20,
        }
    }
}

/// How to authenticate by CHAP.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The CHAP name.
    pub name: String,
    /// The secret of this initiator.
    pub secret: Secret,
    /// The secret that the target must prove to have. Must differ from `secret`.
    pub target: Option<Secret>,
    /// The algorithms to offer, the preferred ones first.
    pub algorithms: Vec<Algorithm>,
}

/// What the driver of an [`Initiator`] has to do, or an event.
#[derive(Debug)]
pub enum Step {
    /// Send this segment after all previous ones.
    Send(Segment),
    /// Commands may be submitted.
    LoggedIn,
    /// The answer to a discovery session.
    Targets(Vec<DiscoveredTarget>),
    /// The login failed; [`Step::Close`] follows.
    Refused(Refusal),
    /// The target is at this address now, a `HOST` or `HOST:PORT`; [`Step::Close`] follows. It is not
    /// authenticated.
    Redirected(String),
    /// A command completed.
    Done(Done),
    /// Send the remaining segments, then close the connection. Last step: commands in flight do not
    /// complete.
    Close(End),
}

/// A target as reported by SendTargets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveredTarget {
    /// Its iSCSI name.
    pub name: String,
    /// Its addresses, as `ADDRESS:PORT,TAG`.
    pub addresses: Vec<String>,
}

/// A SCSI command.
#[derive(Debug)]
pub struct Command {
    /// The command descriptor block.
    pub cdb: [u8; 16],
    /// The logical unit number in its format of eight bytes.
    pub lun: u64,
    /// Its data.
    pub data: Data,
}

/// A completed command.
#[derive(Debug)]
pub struct Done {
    /// The tag passed to [`Initiator::submit`].
    pub tag: u32,
    /// The SCSI status; FFh if the target failed to execute the command.
    pub status: u8,
    /// The sense data.
    pub sense: Sense,
    /// Bytes of data that were transferred.
    pub len: usize,
    /// The buffer of [`Data::In`].
    pub buffer: Option<Buffer>,
}

/// Why a login failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Status class and detail (RFC 7143 §11.13.5).
    Status([u8; 2]),
    /// The target does not authenticate initiators.
    NoChap,
    /// The target accepts none of the CHAP algorithms.
    NoAlgorithm,
    /// The target refused the authentication when it was offered the algorithms, before a secret was
    /// used.
    NoChallenge,
    /// The target did not prove to have its secret.
    TargetUnproved,
    /// There are no random bytes for a challenge.
    NoRandom,
    /// The secrets of both directions are the same.
    SecretsEqual,
}

impl Refusal {
    /// Returns whether a later attempt may succeed: the target reports an error of its own.
    #[must_use]
    pub fn is_temporary(self) -> bool {
        matches!(self, Self::Status([3, _]))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Status([1, _]) => {
                "the target redirects the login, without an address that can be followed"
            }
            Self::Status([2, 0]) => "the target rejects what this initiator sends",
            Self::Status([2, 1]) => "authentication failed: check initiator name and secret",
            Self::Status([2, 2]) => "the target refuses access to this initiator",
            Self::Status([2, 3]) => "there is no such target",
            Self::Status([2, 6]) => "the target accepts no further connection",
            Self::Status([3, 1]) => "the target is not available now",
            Self::Status([3, 2]) => "the target is out of resources",
            Self::Status([a, b]) => {
                return write!(f, "the target refused the login (status {a:02x}{b:02x}h)");
            }
            Self::NoChap => "the target does not authenticate initiators, and a secret is given",
            Self::NoAlgorithm => "the target accepts none of the CHAP algorithms offered",
            Self::NoChallenge => "authentication failed: check the initiator name",
            Self::TargetUnproved => "the target did not authenticate itself",
            Self::NoRandom => "the system has no random bytes",
            Self::SecretsEqual => "the secrets of initiator and target must differ",
        })
    }
}

/// Why the initiator closed the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was finished.
    Finished,
    /// The target asked for the end of the session by an asynchronous message.
    Dropped,
    /// The target rejected a PDU, for this reason.
    Rejected(u8),
    /// The target violated the protocol.
    Violation(Violation),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished => f.write_str("the session ended"),
            Self::Dropped => f.write_str("the target ended the session"),
            Self::Rejected(reason) => write!(f, "the target rejected a PDU (reason {reason:02x}h)"),
            Self::Violation(violation) => violation.fmt(f),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Login,
    FullFeature,
    Closed,
}

/// The initiator of one session.
#[derive(Debug)]
pub struct Initiator {
    options: Options,
    phase: Phase,
    out: VecDeque<Step>,
    login: Login,
    parameters: Parameters,
    receiver: Receiver,
    slots: Slots,
    /// Commands that wait for the window, by task tag.
    waiting: VecDeque<u32>,
    tsih: u16,
    cmd_sn: u32,
    max_cmd_sn: u32,
    exp_stat_sn: u32,
    pings: u32,
    /// Text of a discovery, and the number of its PDUs.
    text: Vec<u8>,
    texts: usize,
}

impl Initiator {
    /// Creates the initiator of a new connection.
    #[must_use]
    pub fn new(mut options: Options) -> Self {
        let offer = &mut options.offer;
        offer.max_recv = offer.max_recv.clamp(512, MAX_RECV);
        offer.max_burst = offer.max_burst.clamp(512, (1 << 24) - 1);
        offer.first_burst = offer.first_burst.clamp(512, offer.max_burst);
        let mut initiator = Self {
            phase: Phase::Login,
            out: VecDeque::new(),
            login: Login::new(options.credentials.is_some()),
            parameters: Parameters::new(&options.offer),
            receiver: Receiver::default(),
            slots: Slots::new(options.depth.clamp(1, 4096)),
            waiting: VecDeque::new(),
            tsih: 0,
            cmd_sn: 1,
            max_cmd_sn: 1,
            exp_stat_sn: 0,
            pings: 0,
            text: Vec::new(),
            texts: 0,
            options,
        };
        initiator.begin_login();
        initiator
    }

    /// Processes received bytes and returns how many were consumed. The rest, an incomplete header,
    /// must be passed again together with what follows.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while self.phase != Phase::Closed {
            match self.receive_one(bytes.get(taken..).unwrap_or_default()) {
                Ok(0) => break,
                Ok(n) => taken += n,
                Err(violation) => self.close(End::Violation(violation)),
            }
        }
        if self.phase == Phase::Closed { bytes.len() } else { taken }
    }

    /// Processes a part of a PDU. Returns the number of bytes consumed, 0 if it is incomplete.
    fn receive_one(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        if !self.receiver.is_idle() {
            let taken = self.receiver.take(bytes);
            self.finish_pdu()?;
            return Ok(taken);
        }
        let max = match self.phase {
            Phase::Login => u32::try_from(MAX_TEXT).unwrap_or(u32::MAX),
            _ => self.options.offer.max_recv,
        };
        let Some((header, len)) = self.receiver.header(bytes, max)? else { return Ok(0) };
        let sink = self.sink(&header)?;
        self.receiver.expect(header, sink);
        self.finish_pdu()?;
        Ok(len)
    }

    fn finish_pdu(&mut self) -> Result<(), Violation> {
        match self.receiver.complete()? {
            Some((header, sink)) => self.pdu(&header, sink),
            None => Ok(()),
        }
    }

    /// Returns the number of bytes received that answer commands: pings and asynchronous messages do
    /// not.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.receiver.received
    }

    /// Returns the next step, or `None` when all are done.
    pub fn poll(&mut self) -> Option<Step> {
        self.out.pop_front()
    }

    /// Returns a buffer for a direct receive if data of a read is expected next. The driver receives
    /// into it and returns it by [`Initiator::direct_received`]; until then it does not call
    /// [`Initiator::receive`].
    pub fn direct_recv(&mut self) -> Option<DirectRecv> {
        if self.phase == Phase::Closed { None } else { self.receiver.direct_recv() }
    }

    /// Returns the buffer of a direct receive, with `got` bytes received into it.
    pub fn direct_received(&mut self, direct: DirectRecv, got: usize) {
        self.receiver.direct_received(direct, got);
        if let Err(violation) = self.finish_pdu() {
            self.close(End::Violation(violation));
        }
    }

    /// Logs out. Commands in flight do not complete.
    pub fn disconnect(&mut self) {
        if self.phase == Phase::FullFeature {
            self.send_logout();
        }
        self.close(End::Finished);
    }

    fn close(&mut self, end: End) {
        if self.phase != Phase::Closed {
            self.phase = Phase::Closed;
            self.out.push_back(Step::Close(end));
        }
    }
}
