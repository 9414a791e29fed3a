//! The client side of pairing: proves that it has the code, and receives the shared secret and the
//! list of disks.

use std::collections::VecDeque;
use std::fmt;

use export::{Access, Secret};
use zeroize::Zeroizing;

use crate::Code;
use crate::agreement::{self, Agreement, Authenticator, Binding};
use crate::cpace::{Contribution, Ephemeral};
use crate::frame::{Frame, Reader, VERSION, Violation};
use crate::message::{
    self, Disk, FromTarget, Hello, MAX_DISKS, RefusalReason, is_nqn, to_machine_name,
};

/// The result of a successful pairing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paired {
    /// The target's name.
    pub target: String,
    /// The granted access.
    pub access: Access,
    /// The disks that the host may access now.
    pub disks: Vec<Disk>,
    /// The shared secret, from which [`crate::keys`] derives the TLS key.
    pub secret: Secret,
}

/// What the driver of a [`Client`] has to do, or an event.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Send these bytes.
    Send(Vec<u8>),
    /// Both sides have confirmed that they have the same code. The target now waits up to two
    /// minutes for the decision of its administrator.
    Authenticated {
        /// The target's name.
        target: String,
    },
    /// Paired: close the connection.
    Paired(Box<Paired>),
    /// Failed: close the connection.
    Failed(Failure),
}

/// Why pairing failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The host NQN is invalid.
    BadHost,
    /// The target refused, with the number of seconds after which to retry; zero if a retry is of
    /// no use.
    Refused(RefusalReason, u16),
    /// The peer did not prove that it has the code: it is another machine, or a man in the middle.
    WrongPeer,
    /// The peer violated the protocol.
    Violation(&'static str),
    /// The peer uses another version of the protocol.
    Version,
    /// The connection was lost.
    Disconnected,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadHost => f.write_str(
                "invalid host NQN: it must be 1 to 223 bytes without spaces; check /etc/nvme/hostnqn",
            ),
            Self::Refused(reason, seconds) => refusal(f, *reason, *seconds),
            Self::WrongPeer => f.write_str(
                "the other end does not have the code on the target's screen: check the address; otherwise somebody may be intercepting the connection",
            ),
            Self::Violation(rule) => {
                write!(f, "the other end violated the pairing protocol ({rule})")
            }
            Self::Version => f.write_str(
                "the other end uses another version of the pairing protocol: use the same storagetm version on both machines",
            ),
            Self::Disconnected => f.write_str("connection lost during pairing: try again"),
        }
    }
}

fn refusal(f: &mut fmt::Formatter<'_>, reason: RefusalReason, seconds: u16) -> fmt::Result {
    f.write_str(match reason {
        RefusalReason::WrongCode => "wrong code: type the new one that the target shows now",
        RefusalReason::RateLimited => "a wrong code was tried recently",
        RefusalReason::Busy => "the target is pairing with another machine",
        RefusalReason::Locked => {
            "too many wrong codes: press c at the target, or send SIGUSR1 to its storagetm serve, and type the new \
             code; or wait"
        }
        RefusalReason::PairingOff => "pairing is off at the target: make it show a code, and type that",
        RefusalReason::DeniedByAdministrator => "the administrator of the target denied access",
        RefusalReason::NoAnswer => "the request was not confirmed at the target in time: try again",
        RefusalReason::NoSpace => {
            "the target could not store the key: no space left on device; this machine was not authorized. Make room where the \
             target keeps its keys, and pair again"
        }
        RefusalReason::NotStored => {
            "the target could not store the key: its screen or journal says why; this machine was not authorized"
        }
        RefusalReason::Expired => {
            "the target knows this machine, and its access there has expired: it is given again at the target by storagetm host \
             add NQN --replace; then pair again"
        }
    })?;
    match seconds {
        0 => Ok(()),
        1..120 => write!(f, ": try again in {seconds} s"),
        120..7200 => write!(f, ": try again in {} min", seconds.div_ceil(60)),
        // Longer times are not sent.
        u16::MAX => f.write_str(": try again in more than 18 hours"),
        _ => write!(f, ": try again in {} h", seconds.div_ceil(3600)),
    }
}

impl std::error::Error for Failure {}

/// The client side of one pairing.
#[derive(Debug)]
pub struct Client {
    binding: Binding,
    associated_data: Vec<u8>,
    phase: Phase,
    reader: Reader,
    out: VecDeque<Step>,
}

enum Phase {
    /// Waits for the target's share.
    AwaitShare(Ephemeral),
    /// Waits for the target's confirmation tag.
    AwaitTag(Box<Agreement>),
    /// Waits for the verdict.
    AwaitVerdict(Box<Authenticator>, Box<Paired>),
    /// Waits for the given number of disks.
    AwaitDisks(Box<Authenticator>, Box<Paired>, usize),
    Over,
}

impl fmt::Debug for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AwaitShare(_) => "AwaitShare",
            Self::AwaitTag(_) => "AwaitTag",
            Self::AwaitVerdict(..) => "AwaitVerdict",
            Self::AwaitDisks(..) => "AwaitDisks",
            Self::Over => "Over",
        })
    }
}

/// What the client declares about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientInfo<'a> {
    /// The host NQN that will use the keys.
    pub host: &'a str,
    /// The machine name, truncated to 64 bytes.
    pub name: &'a str,
    /// Requests write access.
    pub writable: bool,
}

impl Client {
    /// Creates a client for the TLS channel with exporter value `binding`. `random` must not be
    /// used for anything else.
    pub fn new(
        code: &Code,
        info: &ClientInfo<'_>,
        binding: Binding,
        random: Zeroizing<[u8; 32]>,
    ) -> Self {
        let ephemeral = agreement::begin(code, &binding, random);
        let hello = Hello {
            code_kind: code.kind(),
            writable: info.writable,
            share: ephemeral.share.to_vec(),
            host: info.host.to_owned(),
            name: to_machine_name(info.name),
        };
        let mut client = Self {
            binding,
            associated_data: hello.associated_data(),
            phase: Phase::AwaitShare(ephemeral),
            reader: Reader::default(),
            out: VecDeque::new(),
        };
        if is_nqn(info.host) {
            client.out.push_back(Step::Send(hello.emit()));
        } else {
            client.fail(Failure::BadHost);
        }
        client
    }

    /// Processes received bytes.
    pub fn receive(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.is_over() {
            let done = self.reader.push(bytes).and_then(|n| {
                bytes = bytes.get(n..).unwrap_or_default();
                self.reader.take().map_or(Ok(()), |frame| self.frame(&frame))
            });
            match done {
                Ok(()) => {}
                Err(Violation::VersionUnknown) => self.fail(Failure::Version),
                Err(violation) => self.fail(Failure::Violation(violation.name())),
            }
        }
    }

    /// Reports that the connection was lost.
    pub fn disconnected(&mut self) {
        if !self.is_over() {
            self.fail(Failure::Disconnected);
        }
    }

    /// Returns the next step, or `None` when all are done. [`Step::Paired`] and [`Step::Failed`]
    /// are the last step.
    pub fn poll(&mut self) -> Option<Step> {
        self.out.pop_front()
    }

    fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    fn fail(&mut self, failure: Failure) {
        self.phase = Phase::Over;
        self.out.push_back(Step::Failed(failure));
    }

    fn frame(&mut self, frame: &Frame) -> Result<(), Violation> {
        let received = FromTarget::parse_unverified(frame)?;
        match (std::mem::replace(&mut self.phase, Phase::Over), received) {
            (Phase::AwaitShare(ephemeral), FromTarget::Answer(share)) => {
                self.receive_share(ephemeral, &share)
            }
            (Phase::AwaitShare(_) | Phase::AwaitTag(_), FromTarget::Refused(reason, seconds)) => {
                self.fail(Failure::Refused(reason, seconds));
            }
            (Phase::AwaitTag(agreement), FromTarget::Welcome(tag, name)) => {
                if agreement.is_target_tag(&tag, &name) {
                    self.await_verdict(*agreement, name);
                } else {
                    self.fail(Failure::WrongPeer);
                }
            }
            (Phase::AwaitVerdict(authenticator, paired), received) => {
                return self.verdict(authenticator, paired, frame, received);
            }
            (Phase::AwaitDisks(authenticator, paired, left), received) => {
                return self.disk(authenticator, paired, left, frame, received);
            }
            _ => return Err(Violation::OutOfTurn),
        }
        Ok(())
    }

    fn receive_share(&mut self, ephemeral: Ephemeral, peer_share: &[u8]) {
        let ours = ephemeral.share;
        let host = Contribution { share: &ours, associated_data: &self.associated_data };
        let target = Contribution { share: peer_share, associated_data: &[VERSION] };
        match Agreement::derive(ephemeral, peer_share, &self.binding, host, target) {
            Ok(agreement) => {
                self.out.push_back(Step::Send(message::emit_confirm(&agreement.host_tag())));
                self.phase = Phase::AwaitTag(Box::new(agreement));
            }
            Err(_) => self.fail(Failure::WrongPeer),
        }
    }

    fn await_verdict(&mut self, agreement: Agreement, target: String) {
        let (authenticator, secret) = agreement.into_parts();
        self.out.push_back(Step::Authenticated { target: target.clone() });
        let access = Access::ReadOnly;
        let paired = Paired { target, access, disks: Vec::new(), secret };
        self.phase = Phase::AwaitVerdict(Box::new(authenticator), Box::new(paired));
    }

    fn verdict(
        &mut self,
        mut authenticator: Box<Authenticator>,
        mut paired: Box<Paired>,
        frame: &Frame,
        received: FromTarget,
    ) -> Result<(), Violation> {
        let verified = message::verify_tag(frame, &mut authenticator)?;
        match received {
            FromTarget::RefusedAuthenticated(reason) if verified => {
                self.fail(Failure::Refused(reason, 0))
            }
            FromTarget::Granted(access, disks) if verified && disks <= MAX_DISKS => {
                paired.access = access;
                self.await_disks(authenticator, paired, disks);
            }
            FromTarget::RefusedAuthenticated(_) | FromTarget::Granted(..) => {
                self.fail(Failure::WrongPeer)
            }
            _ => return Err(Violation::OutOfTurn),
        }
        Ok(())
    }

    fn disk(
        &mut self,
        mut authenticator: Box<Authenticator>,
        mut paired: Box<Paired>,
        left: usize,
        frame: &Frame,
        received: FromTarget,
    ) -> Result<(), Violation> {
        let FromTarget::Disk(disk) = received else { return Err(Violation::OutOfTurn) };
        if message::verify_tag(frame, &mut authenticator)? {
            paired.disks.push(disk);
            self.await_disks(authenticator, paired, left.saturating_sub(1));
        } else {
            self.fail(Failure::WrongPeer);
        }
        Ok(())
    }

    /// Continues with `left` disks outstanding.
    fn await_disks(&mut self, authenticator: Box<Authenticator>, paired: Box<Paired>, left: usize) {
        if left == 0 {
            self.out.push_back(Step::Paired(paired));
        } else {
            self.phase = Phase::AwaitDisks(authenticator, paired, left);
        }
    }
}
