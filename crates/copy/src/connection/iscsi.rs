//! Disks of iSCSI targets, and their connections.

mod isid;
mod requests;

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ::iscsi::chap::Algorithm;
use ::iscsi::host::disk::{DiskInfo, PROBE_LEN, Probe};
use ::iscsi::host::{
    Command, Credentials, Data, Disposition, Done, End, Initiator, Options, Refusal, Step,
    Violation,
};
use client::{Deadline, Dial, DialAddress, Driver, Transport};
use export::{Account, Buffer, Pool};

use super::retries::{Attempts, Cause, Retries, new_backoff};
use super::{Connection, RESPONSE_TIMEOUT, RequestError, strip_control};
use crate::endpoint::{Disk, Endpoint, EndpointError};
use isid::{Isid, Isids};
use requests::IscsiConnection;

/// Maximum time to log in.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum time to ask for the properties of the disk. One answer may take [`CONNECT_TIMEOUT`].
const PROBE_TIMEOUT: Duration = Duration::from_secs(60);

/// Maximum redirections of one login.
const MAX_REDIRECTIONS: usize = 4;

/// Maximum commands in flight on one connection.
const DEPTH: u16 = 64;

/// Maximum length of a WRITE SAME, in bytes: the target may have to write the zeros.
const MAX_ZERO: u64 = 32 << 20;

/// Why a session cannot be used whose target has aborted a command as often as it was sent.
const ABORTED: &str = "the target aborts a command again and again";

/// Maximum connections to one target, each with a session.
const MAX_CONNECTIONS: usize = 4;

/// Memory for the probe, the data of WRITE SAME and the answers to GET LBA STATUS of a connection.
const MEMORY: usize = 4 << 20;

/// A disk of an iSCSI target.
#[derive(Clone)]
pub struct IscsiEndpoint {
    name: String,
    initiator: String,
    target: String,
    lun: u8,
    credentials: Option<Credentials>,
    dial: Dial,
    dial_other: Option<DialAddress>,
    timeout: Duration,
    isids: Isids,
    violation: Arc<OnceLock<Violation>>,
    /// Whether the disk was opened before. If so, that it is refused or missing is a temporary error.
    was_opened: Arc<AtomicBool>,
}

/// A session, and its ISID, which is free for another one when the connection is closed.
struct OpenSession {
    driver: Driver<Initiator>,
    _isid: Isid,
}

impl std::fmt::Debug for IscsiEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IscsiEndpoint({})", self.name)
    }
}

impl IscsiEndpoint {
    /// The disk with this logical unit number of this target, as seen by that initiator. `name` is
    /// shown to the user, such as `iscsi://host/iqn/0`; `dial` connects to the target.
    #[must_use]
    pub fn new(name: &str, initiator: &str, target: &str, lun: u8, dial: Dial) -> Self {
        let [name, initiator, target] = [name, initiator, target].map(str::to_owned);
        Self {
            name,
            initiator,
            target,
            lun,
            credentials: None,
            dial,
            dial_other: None,
            timeout: RESPONSE_TIMEOUT,
            isids: Isids::default(),
            violation: Arc::default(),
            was_opened: Arc::default(),
        }
    }

    /// Authenticates by CHAP.
    #[must_use]
    pub fn with_credentials(self, credentials: Option<Credentials>) -> Self {
        Self { credentials, ..self }
    }

    /// Follows the redirection of a login to another address by this callback. Without it, that is
    /// an error which names the address.
    #[must_use]
    pub fn with_redirection(self, dial_other: DialAddress) -> Self {
        Self { dial_other: Some(dial_other), ..self }
    }

    /// Sets how long a target may leave all commands unanswered, and is asked again while it is busy
    /// or not ready: 180 seconds by default. While the disk is opened, at most 30 seconds.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Connects, and returns the session and its first step that is not `Send`. Follows redirections:
    /// each connection begins at the address that the user named, also after a permanent one.
    fn connect(&self, target: Option<&str>) -> Result<(OpenSession, Step), EndpointError> {
        let (mut session, mut step) = self.log_in(target, (self.dial)()?)?;
        for _ in 0..MAX_REDIRECTIONS {
            let Step::Redirected(address) = step else { return Ok((session, step)) };
            let Some(dial_other) = &self.dial_other else { return Err(self.moved(&address)) };
            // The ISID is free for the next one.
            drop(session);
            let transport =
                dial_other(&address).map_err(|error| self.unreachable(&address, error))?;
            (session, step) = self.log_in(target, transport)?;
        }
        match step {
            Step::Redirected(address) => Err(self.after_loss(format!(
                "the login was redirected more than {MAX_REDIRECTIONS} times, at last to {address}"
            ))),
            step => Ok((session, step)),
        }
    }

    /// Logs in, and returns the first step that is not `Send`.
    fn log_in(
        &self,
        target: Option<&str>,
        transport: Box<dyn Transport>,
    ) -> Result<(OpenSession, Step), EndpointError> {
        let isid = self.isids.take();
        let isid = isid.ok_or_else(|| self.permanent("the system has no random bytes"))?;
        let options = Options {
            depth: DEPTH,
            credentials: self.credentials.clone(),
            ..Options::new(&self.initiator, target, isid.bytes())
        };
        let mut driver = Driver::new(transport, Initiator::new(options))
            .map_err(|error| self.temporary(error))?;
        let deadline = Deadline::after(self.timeout.min(CONNECT_TIMEOUT));
        let step = driver.wait_for_step(deadline).map_err(|error| self.temporary(error))?;
        match step {
            Step::Close(End::Violation(violation)) => Err(self.protocol_violation(violation)),
            Step::Close(end) => Err(self.temporary(end)),
            step => Ok((OpenSession { driver, _isid: isid }, step)),
        }
    }

    /// The error of a redirection that is not followed.
    fn moved(&self, address: &str) -> EndpointError {
        self.permanent(format!("the target has moved to {address}: name that address"))
    }

    /// Adds to an error how this address came about.
    fn unreachable(&self, address: &str, error: EndpointError) -> EndpointError {
        let reason = format!("the target has moved to {address}: {error}");
        match error {
            EndpointError::Temporary(_) => self.temporary(reason),
            EndpointError::Permanent(_) | EndpointError::Violation(_) => self.permanent(reason),
        }
    }

    fn temporary(&self, reason: impl std::fmt::Display) -> EndpointError {
        EndpointError::Temporary(format!("{}: {reason}", self.name))
    }

    fn permanent(&self, reason: impl std::fmt::Display) -> EndpointError {
        EndpointError::Permanent(format!("{}: {reason}", self.name))
    }

    /// The error of a disk that cannot be used: a temporary one if it could be used before, as while
    /// a target starts.
    fn after_loss(&self, reason: impl std::fmt::Display) -> EndpointError {
        match self.was_opened.load(Ordering::Relaxed) {
            true => self.temporary(reason),
            false => self.permanent(reason),
        }
    }

    fn protocol_violation(&self, violation: Violation) -> EndpointError {
        let violation = *self.violation.get_or_init(|| violation);
        EndpointError::Violation(format!("{}: {violation}", self.name))
    }

    fn refusal_error(&self, refusal: Refusal) -> EndpointError {
        if refusal.is_temporary() || self.was_opened.load(Ordering::Relaxed) {
            return self.temporary(refusal);
        }
        match refusal {
            Refusal::Status([2, 3]) => self.permanent(format!("{refusal}{}", self.other_targets())),
            Refusal::NoAlgorithm | Refusal::NoChallenge | Refusal::Status([2, 0])
                if self.lacks_md5() =>
            {
                let hint = "if it has only MD5 for CHAP, add ?chap=md5 to its address";
                self.permanent(format!("{refusal}; {hint}"))
            }
            refusal => self.permanent(refusal),
        }
    }

    /// Whether CHAP is used without MD5.
    fn lacks_md5(&self) -> bool {
        self.credentials.as_ref().is_some_and(|it| !it.algorithms.contains(&Algorithm::Md5))
    }

    /// A hint with the targets of the machine, if it lists them.
    fn other_targets(&self) -> String {
        let Ok((_, Step::Targets(targets))) = self.connect(None) else { return String::new() };
        let names: Vec<String> =
            targets.iter().map(|target| strip_control(&target.name)).take(20).collect();
        match names.is_empty() {
            true => String::new(),
            false => format!("; its disks: {}", names.join(", ")),
        }
    }

    /// Asks for the properties of the disk. What a target could not answer now, it is asked again, as
    /// it is later: that it did not answer does not mean that the disk lacks it.
    fn probe(
        &self,
        driver: &mut Driver<Initiator>,
        memory: &Account,
    ) -> Result<DiskInfo, EndpointError> {
        let (mut probe, mut attempts) = (Probe::default(), Attempts::begin());
        let (mut backoff, timeout) = (new_backoff(), self.timeout.min(CONNECT_TIMEOUT));
        let end = Deadline::after(PROBE_TIMEOUT);
        while let Some(cdb) = probe.next_command() {
            if end.has_passed() {
                return Err(self.temporary("the disk does not report its properties in time"));
            }
            let buffer = memory.take(PROBE_LEN).ok_or_else(|| self.temporary("no memory"))?;
            let command = Command { cdb, lun: lun(self.lun), data: Data::In(Some(buffer)) };
            let submitted = driver.session_mut().submit(command, 0);
            submitted.map_err(|_| self.temporary("the session ended"))?;
            let step = driver.wait_for_step(Deadline::after(timeout));
            let done = self.answer(step.map_err(|error| self.temporary(error))?)?;
            // The error of a command of the session before: the target knows this one by its ISID.
            let cause = if done.is_deferred() { Some(Cause::Aborted) } else { Cause::of(&done) };
            match cause {
                Some(cause) if attempts.again(cause, timeout) => {
                    self.pause(driver, backoff.next())?;
                }
                Some(Cause::Busy) => return Err(self.temporary(RequestError::Busy)),
                Some(Cause::Aborted) => return Err(self.temporary(ABORTED)),
                None => {
                    probe.complete(&done).map_err(|error| self.after_loss(error))?;
                    attempts = Attempts::begin();
                    backoff.reset();
                }
            }
        }
        Ok(probe.finish())
    }

    /// Returns the completed command.
    fn answer(&self, step: Step) -> Result<Done, EndpointError> {
        match step {
            Step::Done(done) => Ok(done),
            Step::Close(End::Violation(violation)) => Err(self.protocol_violation(violation)),
            Step::Close(end) => Err(self.temporary(end)),
            _ => Err(self.temporary("the session ended")),
        }
    }

    /// Waits, and answers pings.
    fn pause(&self, driver: &mut Driver<Initiator>, pause: Duration) -> Result<(), EndpointError> {
        match driver.wait_for_step(Deadline::after(pause)) {
            Err(error) if error.kind() == ErrorKind::TimedOut => Ok(()),
            Err(error) => Err(self.temporary(error)),
            Ok(step) => self.answer(step).map(drop),
        }
    }

    fn disk(&self, info: &DiskInfo) -> Disk {
        let most = u32::try_from(Pool::MAX_BUFFER).unwrap_or(u32::MAX);
        let limit = info.max_transfer.saturating_mul(info.block);
        let max_transfer = if limit == 0 { most } else { limit.min(most) };
        let identity = match info.is_global {
            true => format!("iscsi {}", info.identity),
            false => format!("iscsi {} {} {}", self.target, self.lun, info.identity),
        };
        let block = u64::from(info.block);
        Disk {
            name: self.name.clone(),
            bytes: info.bytes,
            block: info.block,
            sector: Some(info.block),
            writable: !info.write_protected,
            reports_extents: info.reports_extents,
            max_zero: info.max_zero.saturating_mul(block).min(MAX_ZERO / block * block),
            max_transfer,
            max_connections: MAX_CONNECTIONS,
            remote: true,
            in_memory: false,
            blank: false,
            identity: identity.trim_end().to_owned(),
        }
    }
}

impl Cause {
    /// Returns why to send a command again, if there is a reason.
    fn of(done: &Done) -> Option<Self> {
        match done.disposition() {
            Disposition::Busy => Some(Self::Busy),
            Disposition::Aborted => Some(Self::Aborted),
            Disposition::Good | Disposition::Changed | Disposition::Failed => None,
        }
    }
}

/// A logical unit number below 256 (SAM-5, peripheral device addressing).
fn lun(number: u8) -> u64 {
    u64::from(number) << 48
}

impl Endpoint for IscsiEndpoint {
    fn open(&self) -> Result<(Disk, Box<dyn Connection>), EndpointError> {
        if let Some(violation) = self.violation.get() {
            return Err(self.protocol_violation(*violation));
        }
        let (mut session, step) = self.connect(Some(&self.target))?;
        match step {
            Step::LoggedIn => {}
            Step::Refused(refusal) => return Err(self.refusal_error(refusal)),
            _ => return Err(self.permanent("the target did not end the login")),
        }
        let memory = Pool::new(MEMORY).open();
        let info = self.probe(&mut session.driver, &memory)?;
        let disk = self.disk(&info);
        if disk.max_transfer < 4096 {
            return Err(self.permanent("the disk transfers less than 4096 bytes at once"));
        }
        let zeros = memory.take(info.block as usize).ok_or_else(|| self.temporary("no memory"))?;
        self.was_opened.store(true, Ordering::Relaxed);
        Ok((
            disk,
            Box::new(IscsiConnection {
                session,
                info,
                lun: lun(self.lun),
                violation: self.violation.clone(),
                memory,
                zeros: zeroed(zeros),
                in_flight: Vec::new(),
                retries: Retries::new(DEPTH.into()),
                timeout: self.timeout,
                answered: Vec::new(),
                completions: VecDeque::new(),
                progressed: Instant::now(),
                received: 0,
            }),
        ))
    }
}

fn zeroed(mut buffer: Buffer) -> Rc<Buffer> {
    buffer.bytes_mut().fill(0);
    Rc::new(buffer)
}
