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
    stage: Stage,
    cntlid: u16,
    wanted_queues: u16,
    events: u32,
    capabilities: Cap,
    version: u32,
    identify: Option<Box<IdentifyController>>,
    queues: u16,
    unseen: VecDeque<u32>,
    named: NamespaceIds,
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
    pub figure: Box<IdentifyNamespace>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
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
pub struct Ask {
    /// Submission queue entry.
    pub sqe: Sqe,
    /// Length of the data from the controller in bytes.
    pub len: usize,
}

/// Failure of the initialization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// A mandatory command failed.
    Failed(&'static str, Status),
    /// CSTS.CFS is set.
    Fatal,
    /// A field has an invalid value.
    Impossible(&'static str),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(what, status) => write!(f, "the controller failed {what}: {status}"),
            Self::Fatal => f.write_str("the controller reports a fatal status"),
            Self::Impossible(field) => {
                write!(f, "the controller reports an invalid value of {field}")
            }
        }
    }
}

impl std::error::Error for Trouble {}

impl Controller {
    /// Starts the initialization of controller `cntlid`, with `queues` I/O queues.
    #[must_use]
    pub fn new(cntlid: u16, queues: u16) -> Self {
        Self {
            stage: Stage::Capabilities,
            cntlid,
            wanted_queues: queues.max(1),
            events: 0,
            capabilities: Cap::default(),
            version: 0,
            identify: None,
            queues: 0,
            unseen: VecDeque::new(),
            named: NamespaceIds::default(),
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
        let ioccsz = self.identify().map_or(4, |figure| figure.ioccsz.get());
        ioccsz.saturating_sub(4).saturating_mul(16)
    }

    /// Returns the maximum data transfer of a command in bytes (MDTS).
    #[must_use]
    pub fn largest_transfer(&self) -> u64 {
        match self.identify().map_or(0, |figure| figure.mdts) {
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
        self.stage == Stage::Ready
    }

    /// Returns the time limit for becoming ready (CAP.TO, NVMe Base 2.0 §3.1.3.1).
    #[must_use]
    pub fn ready_within(&self) -> Duration {
        Duration::from_millis(self.capabilities.to().saturating_mul(500))
    }

    /// Returns the next command, or `None` after the last one.
    #[must_use]
    pub fn ask(&self) -> Option<Ask> {
        let property = |attrib, offset| Ask {
            sqe: FabricsCommand::PropertyGet { attrib, offset }.emit(),
            len: 0,
        };
        let page = |cns, nsid| admin(AdminCommand::identify(cns, nsid));
        Some(match self.stage {
            Stage::Capabilities | Stage::CapabilitiesAgain => {
                property(PropertySize::Eight, property::CAP)
            }
            Stage::Configure => configure(self.configuration()),
            Stage::Enable => configure(self.configuration().with_en(1)),
            Stage::Ready => property(PropertySize::Four, property::CSTS),
            Stage::Version => property(PropertySize::Four, property::VS),
            Stage::Identify => page(cns::CONTROLLER, 0),
            Stage::Effects => admin(AdminCommand::log_page(
                lid::COMMAND_EFFECTS,
                0,
                size_of::<CommandEffects>() as u64,
            )),
            Stage::Queues => {
                let count = u32::from(self.wanted_queues);
                let queues = NumberOfQueues { submission: count, completion: count };
                admin(AdminCommand::set_features(fid::NUMBER_OF_QUEUES, queues.emit()))
            }
            Stage::Events => {
                admin(AdminCommand::set_features(fid::ASYNC_EVENT_CONFIGURATION, self.events))
            }
            Stage::Limits => page(cns::CONTROLLER_SPECIFIC, 0),
            Stage::Namespaces => page(cns::ACTIVE_NAMESPACES, 0),
            Stage::Descriptors(nsid) => page(cns::NAMESPACE_DESCRIPTORS, nsid),
            Stage::Namespace(nsid) => page(cns::NAMESPACE, nsid),
            Stage::Done => return None,
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
    pub fn answer(&mut self, status: Status, result: u64, data: &[u8]) -> Result<(), Trouble> {
        if !status.is_success() && !self.is_optional() {
            return Err(Trouble::Failed(self.stage.word(), status));
        }
        self.stage = self.learn(status.is_success(), result, data)?;
        Ok(())
    }

    /// Returns whether the command may fail.
    fn is_optional(&self) -> bool {
        matches!(self.stage, Stage::Effects | Stage::Limits | Stage::Events)
    }

    #[allow(clippy::cast_possible_truncation, reason = "dword 0 of two")]
    fn learn(&mut self, well: bool, result: u64, data: &[u8]) -> Result<Stage, Trouble> {
        Ok(match self.stage {
            Stage::Capabilities => {
                self.capabilities = Cap(result);
                Stage::Configure
            }
            Stage::Configure => Stage::CapabilitiesAgain,
            Stage::CapabilitiesAgain => {
                self.capabilities = Cap(result);
                self.check_capabilities()?
            }
            Stage::Enable => Stage::Ready,
            Stage::Ready => self.check_ready(Csts(result as u32))?,
            Stage::Version => {
                self.version = result as u32;
                Stage::Identify
            }
            Stage::Identify => self.learn_controller(data)?,
            Stage::Effects => Stage::Queues,
            Stage::Queues => self.learn_queues(result as u32)?,
            Stage::Events if self.is_discovery() => Stage::Done,
            Stage::Events => Stage::Limits,
            Stage::Limits => Stage::Namespaces,
            Stage::Namespaces => self.learn_namespaces(data)?,
            Stage::Descriptors(nsid) => {
                self.named = NamespaceIds::parse(page(data)?);
                Stage::Namespace(nsid)
            }
            Stage::Namespace(nsid) => self.learn_namespace(well, nsid, data)?,
            Stage::Done => Stage::Done,
        })
    }

    fn check_capabilities(&self) -> Result<Stage, Trouble> {
        match (self.capabilities.mqes(), self.capabilities.to(), self.capabilities.mpsmin()) {
            (0, _, _) => Err(Trouble::Impossible("CAP.MQES")),
            (_, 0, _) => Err(Trouble::Impossible("CAP.TO")),
            (_, _, 0) => Ok(Stage::Enable),
            _ => Err(Trouble::Impossible("CAP.MPSMIN")),
        }
    }

    fn check_ready(&self, status: Csts) -> Result<Stage, Trouble> {
        match (status.cfs(), status.rdy()) {
            (1, _) => Err(Trouble::Fatal),
            (_, 1) => Ok(Stage::Version),
            _ => Ok(Stage::Ready),
        }
    }

    fn learn_controller(&mut self, data: &[u8]) -> Result<Stage, Trouble> {
        let figure = IdentifyController::read_from_bytes(data);
        let figure = Box::new(figure.map_err(|_| Trouble::Impossible("Identify"))?);
        check_controller(&figure, self.cntlid)?;
        let has_effects = figure.lpa & lpa::COMMAND_EFFECTS != 0;
        self.events = figure.oaes.get();
        self.identify = Some(figure);
        Ok(match (self.is_discovery(), has_effects) {
            (true, _) => Stage::Events,
            (_, true) => Stage::Effects,
            _ => Stage::Queues,
        })
    }

    fn is_discovery(&self) -> bool {
        self.identify().is_some_and(|figure| figure.cntrltype == cntrltype::DISCOVERY)
    }

    fn learn_queues(&mut self, result: u32) -> Result<Stage, Trouble> {
        let granted = NumberOfQueues::parse(result).ok_or(Trouble::Impossible("queue count"))?;
        let both = granted.submission.min(granted.completion);
        self.queues = u16::try_from(both).unwrap_or(u16::MAX).min(self.wanted_queues);
        Ok(if self.events == 0 { Stage::Limits } else { Stage::Events })
    }

    fn learn_namespaces(&mut self, data: &[u8]) -> Result<Stage, Trouble> {
        let list = NamespaceList::read_from_bytes(data);
        let list = list.map_err(|_| Trouble::Impossible("namespace list"))?;
        self.unseen = list.iter().collect();
        Ok(self.next_namespace())
    }

    fn next_namespace(&mut self) -> Stage {
        self.unseen.pop_front().map_or(Stage::Done, Stage::Descriptors)
    }

    /// Handles Identify Namespace. A namespace without capacity was removed in the meantime.
    fn learn_namespace(&mut self, well: bool, nsid: u32, data: &[u8]) -> Result<Stage, Trouble> {
        let figure = IdentifyNamespace::read_from_bytes(data);
        let figure = Box::new(figure.map_err(|_| Trouble::Impossible("namespace"))?);
        let ids = std::mem::take(&mut self.named);
        if well && figure.ncap.get() != 0 {
            self.check_namespace(&figure, &ids)?;
            self.namespaces.push(Namespace { nsid, ids, figure });
        }
        Ok(self.next_namespace())
    }

    fn check_namespace(
        &self,
        figure: &IdentifyNamespace,
        ids: &NamespaceIds,
    ) -> Result<(), Trouble> {
        let several_sets = self.capabilities.css() & Cap::CSS_IOCS != 0;
        if several_sets && ids.csi != Some(CSI_NVM) {
            return Err(Trouble::Impossible("command set identifier"));
        }
        match figure.block_shift() {
            Some(9..=12) => Ok(()),
            _ => Err(Trouble::Impossible("block size")),
        }
    }
}

impl Namespace {
    /// Returns the binary logarithm of the block size.
    #[must_use]
    pub fn shift(&self) -> u8 {
        self.figure.block_shift().unwrap_or(9)
    }
}

impl Stage {
    fn word(self) -> &'static str {
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

fn admin(command: AdminCommand) -> Ask {
    let len = match command.data_len() {
        crate::command::Transfer::ToHost(len) => usize::try_from(len).unwrap_or(0),
        _ => 0,
    };
    Ask { sqe: command.emit(), len }
}

fn configure(cc: Cc) -> Ask {
    let (attrib, offset) = (PropertySize::Four, property::CC);
    let value = u64::from(cc.0);
    Ask { sqe: FabricsCommand::PropertySet { attrib, offset, value }.emit(), len: 0 }
}

fn page(data: &[u8]) -> Result<&[u8; IDENTIFY_LEN], Trouble> {
    data.try_into().map_err(|_| Trouble::Impossible("namespace identifiers"))
}

/// Checks that Linux makes on Identify Controller over fabrics.
fn check_controller(figure: &IdentifyController, cntlid: u16) -> Result<(), Trouble> {
    let io = figure.cntrltype != cntrltype::DISCOVERY;
    let demands = [
        ("CNTLID", figure.cntlid.get() == cntlid),
        ("KAS", figure.kas.get() != 0),
        ("IOCCSZ", !io || figure.ioccsz.get() >= 4),
        ("IORCSZ", !io || figure.iorcsz.get() >= 1),
        ("MAXCMD", figure.maxcmd.get() != 0),
        ("ICDOFF", figure.icdoff.get() == 0),
        ("SGLS", figure.sgls.get() & 0b11 != 0),
        ("SUBNQN", parse_nqn(&figure.subnqn).is_ok()),
    ];
    let broken = demands.into_iter().find(|&(_, met)| !met);
    broken.map_or(Ok(()), |(field, _)| Err(Trouble::Impossible(field)))
}
