//! Controller initialization (NVMe Base 2.0 §3.5.3): the sequence of Admin commands, in the order
//! and with the checks of Linux.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use zerocopy::FromBytes;

use crate::command::{AdminCommand, FabricsCommand, PropertySize};
use crate::status::Status;
use crate::wire::Sqe;
use crate::wire::fabrics::{Cap, Cc, Csts, property};
use crate::wire::feature::{NumberOfQueues, fid};
use crate::wire::identify::{
    CSI_NVM, IDENTIFY_LEN, IdentifyController, IdentifyNamespace, NamespaceIds, NamespaceList, cns,
    cntrltype, lpa,
};
use crate::wire::log::{CommandEffects, lid};
use crate::wire::text::parse_nqn;

/// State machine of controller initialization, and the data it has read.
///
/// Take the next command from [`Controller::next_command`], and pass its result to
/// [`Controller::complete`], until there is none.
#[derive(Debug)]
pub struct Controller {
    state: State,
    cntlid: u16,
    requested_queues: u16,
    events: u32,
    capabilities: Cap,
    version: u32,
    identify: Option<Box<IdentifyController>>,
    queues: u16,
    pending_namespaces: VecDeque<u32>,
    descriptors: NamespaceIds,
    namespaces: Vec<Namespace>,
}

/// A namespace of a controller.
#[derive(Debug, Clone)]
pub struct Namespace {
    /// Namespace identifier.
    pub nsid: u32,
    /// Namespace Identification Descriptors.
    pub ids: NamespaceIds,
    /// Identify Namespace.
    pub identify: Box<IdentifyNamespace>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Capabilities,
    Configure,
    CapabilitiesAgain,
    Enable,
    Ready,
    Version,
    Identify,
    Effects,
    Queues,
    Events,
    Limits,
    Namespaces,
    Descriptors(u32),
    Namespace(u32),
    Done,
}

/// A command of the initialization.
#[derive(Debug, Clone, Copy)]
pub struct InitCommand {
    /// Submission queue entry.
    pub sqe: Sqe,
    /// Length of the data from the controller in bytes.
    pub len: usize,
}

/// Failure of the initialization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitError {
    /// A mandatory command failed.
    Failed(&'static str, Status),
    /// CSTS.CFS is set.
    Fatal,
    /// A field has an invalid value.
    InvalidField(&'static str),
}

impl fmt::Display for InitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(what, status) => write!(f, "the controller failed {what}: {status}"),
            Self::Fatal => f.write_str("the controller reports a fatal status"),
            Self::InvalidField(field) => {
                write!(f, "the controller reports an invalid value of {field}")
            }
        }
    }
}

impl std::error::Error for InitError {}

impl Controller {
    /// Starts the initialization of controller `cntlid`, with `queues` I/O queues.
    #[must_use]
    pub fn new(cntlid: u16, queues: u16) -> Self {
        Self {
            state: State::Capabilities,
            cntlid,
            requested_queues: queues.max(1),
            events: 0,
            capabilities: Cap::default(),
            version: 0,
            identify: None,
            queues: 0,
            pending_namespaces: VecDeque::new(),
            descriptors: NamespaceIds::default(),
            namespaces: Vec::new(),
        }
    }

    /// Returns CAP.
    #[must_use]
    pub fn capabilities(&self) -> Cap {
        self.capabilities
    }

    /// Returns VS.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Returns Identify Controller, once it was read.
    #[must_use]
    pub fn identify(&self) -> Option<&IdentifyController> {
        self.identify.as_deref()
    }

    /// Returns the number of I/O queues granted.
    #[must_use]
    pub fn queues(&self) -> u16 {
        self.queues
    }

    /// Returns the events that were enabled: bits of [`crate::wire::feature::aec`].
    #[must_use]
    pub fn events(&self) -> u32 {
        self.events
    }

    /// Returns the maximum in-capsule data of I/O queues in bytes.
    #[must_use]
    pub fn capsule_data(&self) -> u32 {
        let ioccsz = self.identify().map_or(4, |identify| identify.ioccsz.get());
        ioccsz.saturating_sub(4).saturating_mul(16)
    }

    /// Returns the maximum data transfer of a command in bytes (MDTS).
    #[must_use]
    pub fn max_transfer(&self) -> u64 {
        match self.identify().map_or(0, |identify| identify.mdts) {
            0 => u64::MAX,
            mdts => 4096_u64.checked_shl(mdts.into()).unwrap_or(u64::MAX),
        }
    }

    /// Returns the active namespaces.
    #[must_use]
    pub fn namespaces(&self) -> &[Namespace] {
        &self.namespaces
    }

    /// Returns whether CSTS.RDY is not set yet. Wait before you send the next command.
    #[must_use]
    pub fn is_enabling(&self) -> bool {
        self.state == State::Ready
    }

    /// Returns the time limit for becoming ready (CAP.TO, NVMe Base 2.0 §3.1.3.1).
    #[must_use]
    pub fn ready_within(&self) -> Duration {
        Duration::from_millis(self.capabilities.to().saturating_mul(500))
    }

    /// Returns the next command, or `None` after the last one.
    #[must_use]
    pub fn next_command(&self) -> Option<InitCommand> {
        let property = |attrib, offset| InitCommand {
            sqe: FabricsCommand::PropertyGet { attrib, offset }.emit(),
            len: 0,
        };
        let page = |cns, nsid| admin(AdminCommand::identify(cns, nsid));
        Some(match self.state {
            State::Capabilities | State::CapabilitiesAgain => {
                property(PropertySize::Eight, property::CAP)
            }
            State::Configure => configure(self.configuration()),
            State::Enable => configure(self.configuration().with_en(1)),
            State::Ready => property(PropertySize::Four, property::CSTS),
            State::Version => property(PropertySize::Four, property::VS),
            State::Identify => page(cns::CONTROLLER, 0),
            State::Effects => admin(AdminCommand::log_page(
                lid::COMMAND_EFFECTS,
                0,
                size_of::<CommandEffects>() as u64,
            )),
            State::Queues => {
                let count = u32::from(self.requested_queues);
                let queues = NumberOfQueues { submission: count, completion: count };
                admin(AdminCommand::set_features(fid::NUMBER_OF_QUEUES, queues.emit()))
            }
            State::Events => {
                admin(AdminCommand::set_features(fid::ASYNC_EVENT_CONFIGURATION, self.events))
            }
            State::Limits => page(cns::CONTROLLER_SPECIFIC, 0),
            State::Namespaces => page(cns::ACTIVE_NAMESPACES, 0),
            State::Descriptors(nsid) => page(cns::NAMESPACE_DESCRIPTORS, nsid),
            State::Namespace(nsid) => page(cns::NAMESPACE, nsid),
            State::Done => return None,
        })
    }

    fn configuration(&self) -> Cc {
        let css = if self.capabilities.css() & Cap::CSS_IOCS == 0 { 0 } else { Cc::CSS_IOCS };
        Cc::default().with_iosqes(6).with_iocqes(4).with_css(css)
    }

    /// Processes the completion of the command of [`Controller::next_command`].
    ///
    /// # Errors
    /// Fails if Linux would refuse the controller, too.
    pub fn complete(&mut self, status: Status, result: u64, data: &[u8]) -> Result<(), InitError> {
        if !status.is_success() && !self.is_optional() {
            return Err(InitError::Failed(self.state.description(), status));
        }
        self.state = self.handle(status.is_success(), result, data)?;
        Ok(())
    }

    /// Returns whether the command may fail.
    fn is_optional(&self) -> bool {
        matches!(self.state, State::Effects | State::Limits | State::Events)
    }

    #[allow(clippy::cast_possible_truncation, reason = "dword 0 of two")]
    fn handle(&mut self, succeeded: bool, result: u64, data: &[u8]) -> Result<State, InitError> {
        Ok(match self.state {
            State::Capabilities => {
                self.capabilities = Cap(result);
                State::Configure
            }
            State::Configure => State::CapabilitiesAgain,
            State::CapabilitiesAgain => {
                self.capabilities = Cap(result);
                self.check_capabilities()?
            }
            State::Enable => State::Ready,
            State::Ready => self.check_ready(Csts(result as u32))?,
            State::Version => {
                self.version = result as u32;
                State::Identify
            }
            State::Identify => self.handle_identify(data)?,
            State::Effects => State::Queues,
            State::Queues => self.handle_queues(result as u32)?,
            State::Events if self.is_discovery() => State::Done,
            State::Events => State::Limits,
            State::Limits => State::Namespaces,
            State::Namespaces => self.handle_namespace_list(data)?,
            State::Descriptors(nsid) => {
                self.descriptors = NamespaceIds::parse(page(data)?);
                State::Namespace(nsid)
            }
            State::Namespace(nsid) => self.handle_namespace(succeeded, nsid, data)?,
            State::Done => State::Done,
        })
    }

    fn check_capabilities(&self) -> Result<State, InitError> {
        match (self.capabilities.mqes(), self.capabilities.to(), self.capabilities.mpsmin()) {
            (0, _, _) => Err(InitError::InvalidField("CAP.MQES")),
            (_, 0, _) => Err(InitError::InvalidField("CAP.TO")),
            (_, _, 0) => Ok(State::Enable),
            _ => Err(InitError::InvalidField("CAP.MPSMIN")),
        }
    }

    fn check_ready(&self, status: Csts) -> Result<State, InitError> {
        match (status.cfs(), status.rdy()) {
            (1, _) => Err(InitError::Fatal),
            (_, 1) => Ok(State::Version),
            _ => Ok(State::Ready),
        }
    }

    fn handle_identify(&mut self, data: &[u8]) -> Result<State, InitError> {
        let identify = IdentifyController::read_from_bytes(data);
        let identify = Box::new(identify.map_err(|_| InitError::InvalidField("Identify"))?);
        check_controller(&identify, self.cntlid)?;
        let has_effects = identify.lpa & lpa::COMMAND_EFFECTS != 0;
        self.events = identify.oaes.get();
        self.identify = Some(identify);
        Ok(match (self.is_discovery(), has_effects) {
            (true, _) => State::Events,
            (_, true) => State::Effects,
            _ => State::Queues,
        })
    }

    fn is_discovery(&self) -> bool {
        self.identify().is_some_and(|identify| identify.cntrltype == cntrltype::DISCOVERY)
    }

    fn handle_queues(&mut self, result: u32) -> Result<State, InitError> {
        let granted =
            NumberOfQueues::parse(result).ok_or(InitError::InvalidField("queue count"))?;
        let both = granted.submission.min(granted.completion);
        self.queues = u16::try_from(both).unwrap_or(u16::MAX).min(self.requested_queues);
        Ok(if self.events == 0 { State::Limits } else { State::Events })
    }

    fn handle_namespace_list(&mut self, data: &[u8]) -> Result<State, InitError> {
        let list = NamespaceList::read_from_bytes(data);
        let list = list.map_err(|_| InitError::InvalidField("namespace list"))?;
        self.pending_namespaces = list.iter().collect();
        Ok(self.next_namespace())
    }

    fn next_namespace(&mut self) -> State {
        self.pending_namespaces.pop_front().map_or(State::Done, State::Descriptors)
    }

    /// Handles Identify Namespace. A namespace without capacity was removed in the meantime.
    fn handle_namespace(
        &mut self,
        succeeded: bool,
        nsid: u32,
        data: &[u8],
    ) -> Result<State, InitError> {
        let identify = IdentifyNamespace::read_from_bytes(data);
        let identify = Box::new(identify.map_err(|_| InitError::InvalidField("namespace"))?);
        let ids = std::mem::take(&mut self.descriptors);
        if succeeded && identify.ncap.get() != 0 {
            self.check_namespace(&identify, &ids)?;
            self.namespaces.push(Namespace { nsid, ids, identify });
        }
        Ok(self.next_namespace())
    }

    fn check_namespace(
        &self,
        identify: &IdentifyNamespace,
        ids: &NamespaceIds,
    ) -> Result<(), InitError> {
        let several_sets = self.capabilities.css() & Cap::CSS_IOCS != 0;
        if several_sets && ids.csi != Some(CSI_NVM) {
            return Err(InitError::InvalidField("command set identifier"));
        }
        match identify.block_shift() {
            Some(9..=12) => Ok(()),
            _ => Err(InitError::InvalidField("block size")),
        }
    }
}

impl Namespace {
    /// Returns the binary logarithm of the block size.
    #[must_use]
    pub fn shift(&self) -> u8 {
        self.identify.block_shift().unwrap_or(9)
    }
}

impl State {
    fn description(self) -> &'static str {
        match self {
            Self::Capabilities | Self::CapabilitiesAgain => "Property Get of CAP",
            Self::Configure | Self::Enable => "Property Set of CC",
            Self::Ready => "Property Get of CSTS",
            Self::Version => "Property Get of VS",
            Self::Identify => "Identify of the controller",
            Self::Effects => "Get Log Page of the command effects",
            Self::Queues => "Set Features of the number of queues",
            Self::Events => "Set Features of the asynchronous events",
            Self::Limits => "Identify of the command set's limits",
            Self::Namespaces => "Identify of the namespace list",
            Self::Descriptors(_) => "Identify of a namespace's identifiers",
            Self::Namespace(_) | Self::Done => "Identify of a namespace",
        }
    }
}

fn admin(command: AdminCommand) -> InitCommand {
    let len = match command.data_len() {
        crate::command::Transfer::ToHost(len) => usize::try_from(len).unwrap_or(0),
        _ => 0,
    };
    InitCommand { sqe: command.emit(), len }
}

fn configure(cc: Cc) -> InitCommand {
    let (attrib, offset) = (PropertySize::Four, property::CC);
    let value = u64::from(cc.0);
    InitCommand { sqe: FabricsCommand::PropertySet { attrib, offset, value }.emit(), len: 0 }
}

fn page(data: &[u8]) -> Result<&[u8; IDENTIFY_LEN], InitError> {
    data.try_into().map_err(|_| InitError::InvalidField("namespace identifiers"))
}

/// Checks that Linux makes on Identify Controller over fabrics.
fn check_controller(identify: &IdentifyController, cntlid: u16) -> Result<(), InitError> {
    let io = identify.cntrltype != cntrltype::DISCOVERY;
    let checks = [
        ("CNTLID", identify.cntlid.get() == cntlid),
        ("KAS", identify.kas.get() != 0),
        ("IOCCSZ", !io || identify.ioccsz.get() >= 4),
        ("IORCSZ", !io || identify.iorcsz.get() >= 1),
        ("MAXCMD", identify.maxcmd.get() != 0),
        ("ICDOFF", identify.icdoff.get() == 0),
        ("SGLS", identify.sgls.get() & 0b11 != 0),
        ("SUBNQN", parse_nqn(&identify.subnqn).is_ok()),
    ];
    let failed = checks.into_iter().find(|&(_, passed)| !passed);
    failed.map_or(Ok(()), |(field, _)| Err(InitError::InvalidField(field)))
}
