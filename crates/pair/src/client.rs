//! The machine that wants in: it has the code, shows that it knows it, and learns what it may have. Bytes in, bytes
//! out; it knows no socket, no terminal and no clock.

use std::collections::VecDeque;
use std::fmt;

use export::{Access, Secret};
use zeroize::Zeroizing;

use crate::Code;
use crate::agreement::{self, Agreement, Binding, Seal};
use crate::cpace::{Half, Said};
use crate::frame::{Frame, Reader, VERSION, Violation};
use crate::message::{self, Disk, FromTarget, Hello, MOST_DISKS, Why, is_nqn, machine};

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paired {
    /// What the target calls itself.
    pub target: String,
    /// What may be done, at most.
    pub access: Access,
    /// The disks that the host may have just now.
    pub disks: Vec<Disk>,
    /// What both know now and nobody else; [`crate::keys::Derived`] makes keys of it.
    pub secret: Secret,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Send these bytes.
    Send(Vec<u8>),
    /// Target and host have proven to each other that they know the code; the target's owner may be asked now, which
    /// takes two minutes at most.
    Welcomed {
        /// What the target calls itself.
        target: String,
    },
    /// It is done: close the connection.
    Paired(Box<Paired>),
    /// It came to nothing: close the connection.
    Failed(Failure),
}

/// Why it came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The host's NQN is none.
    BadHost,
    /// The target said no, with the seconds after which to ask again if that is of use.
    Refused(Why, u16),
    /// The other end could not prove that it knows the code: it is not the target whose screen that is, or somebody is
    /// in between.
    Impostor,
    /// The other end broke a rule of the protocol.
    Violation(&'static str),
    /// The other end speaks another version of the protocol.
    Version,
    /// The connection ended early.
    Disconnected,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadHost => f.write_str(
                "this machine's host NQN is none: it must be one word of at most 223 bytes; see /etc/nvme/hostnqn",
            ),
            Self::Refused(why, seconds) => refusal(f, *why, *seconds),
            Self::Impostor => f.write_str(
                "the other end does not know the code on the target's screen: check the address, and that nobody is in between",
            ),
            Self::Violation(rule) => {
                write!(f, "the other end does not keep to the protocol of pairing ({rule})")
            }
            Self::Version => f.write_str(
                "the other end speaks another version of pairing: use the same storagetm on both machines",
            ),
            Self::Disconnected => f.write_str("the connection ended before the pairing was done: try again"),
        }
    }
}

fn refusal(f: &mut fmt::Formatter<'_>, why: Why, seconds: u16) -> fmt::Result {
    f.write_str(match why {
        Why::WrongCode => "that is not the code: the target shows a new one now, type that",
        Why::Later => "somebody typed a wrong code just now",
        Why::Busy => "the target is pairing with another machine just now",
        Why::Stopped => {
            "too many wrong codes were typed: press c at the target, or send SIGUSR1 to its storagetm serve, and type the new \
             code; or wait"
        }
        Why::Closed => "the target shows no code just now: have it show one, and type that",
        Why::Denied => "the target's owner said no",
        Why::Unanswered => "nobody at the target answered: try again with somebody there",
        Why::Full => {
            "the target could not store the key: no space left on device; this machine was not let in. Make room where the \
             target keeps its keys, and pair again"
        }
        Why::Unkept => {
            "the target could not store the key: its screen or journal says why; this machine was not let in"
        }
    })?;
    match seconds {
        0 => Ok(()),
        1..120 => write!(f, ": try again in {seconds} s"),
        _ => write!(f, ": try again in {} min", seconds.div_ceil(60)),
    }
}

impl std::error::Error for Failure {}

/// The client's end of a pairing.
#[derive(Debug)]
pub struct Client {
    binding: Binding,
    beside: Vec<u8>,
    phase: Phase,
    reader: Reader,
    out: VecDeque<Step>,
}

enum Phase {
    /// The target's share is to come.
    Asked(Half),
    /// The target's proof is to come.
    Shown(Box<Agreement>),
    /// The owner's answer is to come.
    Welcomed(Box<Seal>, Box<Paired>),
    /// So many disks are to come.
    Granted(Box<Seal>, Box<Paired>, usize),
    /// Over.
    Over,
}

impl fmt::Debug for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Asked(_) => "Asked",
            Self::Shown(_) => "Shown",
            Self::Welcomed(..) => "Welcomed",
            Self::Granted(..) => "Granted",
            Self::Over => "Over",
        })
    }
}

/// What a client says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asking<'a> {
    /// Its host NQN: the name under which it will come with the keys.
    pub host: &'a str,
    /// What its owner calls it; cut to 64 bytes.
    pub name: &'a str,
    /// Whether it wants to change disks, too.
    pub writable: bool,
}

impl Client {
    /// Begins, in the channel whose exporter value is `binding`, with 32 random bytes that are used for nothing else.
    pub fn new(
        code: &Code,
        asking: &Asking<'_>,
        binding: Binding,
        random: Zeroizing<[u8; 32]>,
    ) -> Self {
        let half = agreement::begin(code, &binding, random);
        let hello = Hello {
            kind: code.kind(),
            writable: asking.writable,
            share: half.share.to_vec(),
            host: asking.host.to_owned(),
            name: machine(asking.name),
        };
        let mut client = Self {
            binding,
            beside: hello.beside(),
            phase: Phase::Asked(half),
            reader: Reader::default(),
            out: VecDeque::new(),
        };
        if is_nqn(asking.host) {
            client.out.push_back(Step::Send(hello.emit()));
        } else {
            client.fail(Failure::BadHost);
        }
        client
    }

    /// Bytes came, in any pieces.
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

    /// The connection ended.
    pub fn disconnected(&mut self) {
        if !self.is_over() {
            self.fail(Failure::Disconnected);
        }
    }

    /// What to do next, until there is nothing. After [`Step::Paired`] and [`Step::Failed`] there is nothing.
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
        let said = FromTarget::parse(frame)?;
        match (std::mem::replace(&mut self.phase, Phase::Over), said) {
            (Phase::Asked(half), FromTarget::Answer(share)) => self.answered(half, &share),
            (Phase::Asked(_) | Phase::Shown(_), FromTarget::Refused(why, seconds)) => {
                self.fail(Failure::Refused(why, seconds));
            }
            (Phase::Shown(agreement), FromTarget::Welcome(tag, name)) => {
                if agreement.is_target_tag(&tag, &name) {
                    self.welcomed(*agreement, name);
                } else {
                    self.fail(Failure::Impostor);
                }
            }
            (Phase::Welcomed(seal, paired), said) => {
                return self.verdict(seal, paired, frame, said);
            }
            (Phase::Granted(seal, paired, left), said) => {
                return self.disk(seal, paired, left, frame, said);
            }
            _ => return Err(Violation::OutOfTurn),
        }
        Ok(())
    }

    fn answered(&mut self, half: Half, theirs: &[u8]) {
        let ours = half.share;
        let host = Said { share: &ours, beside: &self.beside };
        let target = Said { share: theirs, beside: &[VERSION] };
        match Agreement::of(half, theirs, &self.binding, host, target) {
            Ok(agreement) => {
                self.out.push_back(Step::Send(message::confirm(&agreement.host_tag())));
                self.phase = Phase::Shown(Box::new(agreement));
            }
            Err(_) => self.fail(Failure::Impostor),
        }
    }

    fn welcomed(&mut self, agreement: Agreement, target: String) {
        let (seal, secret) = agreement.into_parts();
        self.out.push_back(Step::Welcomed { target: target.clone() });
        let access = Access::ReadOnly;
        let paired = Paired { target, access, disks: Vec::new(), secret };
        self.phase = Phase::Welcomed(Box::new(seal), Box::new(paired));
    }

    fn verdict(
        &mut self,
        mut seal: Box<Seal>,
        mut paired: Box<Paired>,
        frame: &Frame,
        said: FromTarget,
    ) -> Result<(), Violation> {
        let genuine = message::is_genuine(frame, &mut seal)?;
        match said {
            FromTarget::Denied(why) if genuine => self.fail(Failure::Refused(why, 0)),
            FromTarget::Granted(access, disks) if genuine && disks <= MOST_DISKS => {
                paired.access = access;
                self.granted(seal, paired, disks);
            }
            FromTarget::Denied(_) | FromTarget::Granted(..) => self.fail(Failure::Impostor),
            _ => return Err(Violation::OutOfTurn),
        }
        Ok(())
    }

    fn disk(
        &mut self,
        mut seal: Box<Seal>,
        mut paired: Box<Paired>,
        left: usize,
        frame: &Frame,
        said: FromTarget,
    ) -> Result<(), Violation> {
        let FromTarget::Lent(disk) = said else { return Err(Violation::OutOfTurn) };
        if message::is_genuine(frame, &mut seal)? {
            paired.disks.push(disk);
            self.granted(seal, paired, left.saturating_sub(1));
        } else {
            self.fail(Failure::Impostor);
        }
        Ok(())
    }

    /// So many disks are still to come.
    fn granted(&mut self, seal: Box<Seal>, paired: Box<Paired>, left: usize) {
        if left == 0 {
            self.out.push_back(Step::Paired(paired));
        } else {
            self.phase = Phase::Granted(seal, paired, left);
        }
    }
}
