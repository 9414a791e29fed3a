//! The login phase (RFC 7143 §6.3): stages, names, authentication and negotiation.

use export::Grant;

use super::authentication::{Chap, ChapKeys, Failed};
use super::authorizer::{Authorizer, LoginRefusal};
use super::link::{Data, Link};
use super::negotiation::{MAX_RECV, Negotiation, Parameters};
use super::outbox::Outbox;
use super::{MAX_TASKS, Violation};
use crate::chap::RandomSource;
use crate::iqn;
use crate::wire::bhs::{Bhs, LoginRequest, LoginResponse, of_target};
use crate::wire::login::{CONTINUE, FULL_FEATURE, OPERATIONAL, SECURITY, Status, TRANSIT, stages};
use crate::wire::opcode;
use crate::wire::text::{self, MAX_TEXT};

/// Maximum length of a text that continues over several requests, in bytes.
const MAX_LONG_TEXT: usize = 16 << 10;

/// Maximum number of requests of a login.
const MAX_REQUESTS: u8 = 32;

/// Target portal group tag: all portals are one group.
pub(super) const PORTAL_GROUP: &str = "1";

/// The CHAP name of this machine in discovery sessions.
const DISCOVERY_NAME: &str = "storagetm";

/// The login of one connection.
#[derive(Debug)]
pub(super) struct Login {
    link: Link,
    fixed: Option<Fixed>,
    stage: u8,
    requests: u8,
    /// Text of requests that are continued.
    text: Vec<u8>,
    names: Names,
    chap: Option<Chap>,
    random: RandomSource,
    negotiation: Negotiation,
    /// Whether the target's own keys were sent.
    declared: bool,
    /// The request whose answer waits for the writes of lost connections.
    pending: Option<LoginRequest>,
}

/// The fields that stay the same during a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fixed {
    isid: [u8; 6],
    tsih: u16,
    cid: u16,
}

/// What the initiator wants to use.
#[derive(Debug, Default)]
struct Names {
    initiator: Option<String>,
    target: Option<String>,
    discovery: Option<bool>,
}

/// Why a login fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    Violation(Violation),
    Refused(LoginRefusal),
}

/// What a request leads to.
#[derive(Debug)]
pub(super) enum Progress {
    /// The response was sent.
    More,
    /// The login is complete but for the last response, for which see [`Login::accept`].
    Complete,
}

/// A login that was accepted.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) link: Link,
    pub(super) parameters: Parameters,
    pub(super) cid: u16,
}

impl From<Violation> for Failure {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

impl From<LoginRefusal> for Failure {
    fn from(refusal: LoginRefusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Failed> for Failure {
    fn from(Failed(reason): Failed) -> Self {
        refused(Status::AUTHENTICATION_FAILURE, reason)
    }
}

impl From<Status> for Failure {
    fn from(_: Status) -> Self {
        Violation::KeyInvalid.into()
    }
}

pub(super) fn refused(status: Status, reason: &'static str) -> Failure {
    LoginRefusal { status, reason }.into()
}

impl Login {
    pub(super) fn new(random: RandomSource) -> Self {
        Self {
            link: Link::new(0, 0, MAX_TASKS.into()),
            fixed: None,
            stage: SECURITY,
            requests: 0,
            text: Vec::new(),
            names: Names::default(),
            chap: None,
            random,
            negotiation: Negotiation::new(),
            declared: false,
            pending: None,
        }
    }

    /// Checks the header of a PDU before its data is received.
    pub(super) fn check(header: &Bhs) -> Result<(), Violation> {
        match header.opcode() {
            opcode::LOGIN_REQUEST if header.data_len.get() as usize > MAX_TEXT => {
                Err(Violation::SegmentTooLong)
            }
            opcode::LOGIN_REQUEST => Ok(()),
            _ => Err(Violation::LoginExpected),
        }
    }

    /// Returns whether the last response waits for something.
    pub(super) fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Returns whether this is a discovery session.
    pub(super) fn is_discovery(&self) -> bool {
        self.names.discovery == Some(true)
    }

    pub(super) fn isid(&self) -> [u8; 6] {
        self.fixed.map_or([0; 6], |fixed| fixed.isid)
    }

    /// Checks that the initiator does not add a connection to a session (MaxConnections is 1).
    pub(super) fn check_handle(&self, exists: impl Fn(u16) -> bool) -> Result<(), Failure> {
        let status = match self.fixed.map_or(0, |fixed| fixed.tsih) {
            0 => return Ok(()),
            tsih if exists(tsih) => Status::TOO_MANY_CONNECTIONS,
            _ => Status::NO_SESSION,
        };
        Err(refused(status, "it wants to continue a session, which is not supported"))
    }

    /// Returns the name of the target, in lower case; empty if there is none.
    pub(super) fn target(&self) -> &str {
        self.names.target.as_deref().unwrap_or_default()
    }

    /// Processes a request.
    pub(super) fn request(
        &mut self,
        header: &Bhs,
        data: &[u8],
        authorizer: &mut Authorizer,
        out: &mut Outbox,
    ) -> Result<Progress, Failure> {
        let request = LoginRequest::of(header);
        let (stage, next) = self.check_request(&request)?;
        if self.text.len() + data.len() > MAX_LONG_TEXT {
            return Err(Violation::TextTooLong.into());
        }
        self.text.extend_from_slice(data);
        let mut reply = Vec::new();
        if request.flags & CONTINUE != 0 {
            self.respond(&request, 0, reply, out);
            return Ok(Progress::More);
        }
        let text = std::mem::take(&mut self.text);
        let mut pairs = text::parse(&text).map_err(|_| Violation::TextMalformed)?;
        // FirstBurstLength depends on it.
        pairs.sort_by_key(|(key, _)| *key != "MaxBurstLength");
        self.keys(&pairs, stage, authorizer, &mut reply)?;
        let transit = request.flags & TRANSIT != 0 && self.may_leave(stage, authorizer)?;
        if reply.len() > MAX_TEXT {
            return Err(Violation::AnswersTooLong.into());
        }
        if !transit {
            self.respond(&request, 0, reply, out);
            return Ok(Progress::More);
        }
        self.stage = next;
        if next != FULL_FEATURE {
            self.respond(&request, TRANSIT, reply, out);
            return Ok(Progress::More);
        }
        self.text = reply;
        self.pending = Some(request);
        Ok(Progress::Complete)
    }

    /// Checks the fields of a request. Returns its stage and the next one.
    fn check_request(&mut self, request: &LoginRequest) -> Result<(u8, u8), Violation> {
        let fixed = Fixed { isid: request.isid, tsih: request.tsih.get(), cid: request.cid.get() };
        let (stage, next) = stages(request.flags);
        if self.fixed.is_none() {
            let (cmd_sn, stat_sn) = (request.cmd_sn.get(), request.exp_stat_sn.get());
            self.link = Link::new(cmd_sn, stat_sn, MAX_TASKS.into());
            self.stage = stage;
        }
        if self.pending.is_some() || *self.fixed.get_or_insert(fixed) != fixed {
            return Err(Violation::LoginFieldsChanged);
        }
        if request.version_min != 0 {
            return Err(Violation::VersionUnsupported);
        }
        self.requests += 1;
        if self.requests > MAX_REQUESTS {
            return Err(Violation::LoginRequestsTooMany);
        }
        let transit = request.flags & TRANSIT != 0;
        let valid_next = matches!(
            (stage, next),
            (SECURITY, OPERATIONAL | FULL_FEATURE) | (OPERATIONAL, FULL_FEATURE)
        );
        let valid = matches!(stage, SECURITY | OPERATIONAL)
            && stage == self.stage
            && (!transit || valid_next && request.flags & CONTINUE == 0);
        if valid { Ok((stage, next)) } else { Err(Violation::LoginFlagsInvalid) }
    }

    /// Processes the keys of a request, and appends those of the response to `reply`.
    fn keys(
        &mut self,
        pairs: &[(&str, &str)],
        stage: u8,
        authorizer: &mut Authorizer,
        reply: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        let is_first = self.names.initiator.is_none();
        let mut chap_keys = ChapKeys::default();
        let mut methods = None;
        for (key, value) in pairs {
            match *key {
                "InitiatorName" | "TargetName" | "SessionType" => self.name(key, value)?,
                "InitiatorAlias" => {}
                "AuthMethod" if stage == SECURITY && methods.is_none() => methods = Some(*value),
                "AuthMethod" => return Err(Violation::KeyInvalid.into()),
                _ if stage == SECURITY && chap_keys.take(key, value)? => {}
                _ => {
                    if let Some(answer) = self.negotiation.answer(key, value)? {
                        text::push(reply, key, &answer);
                    }
                }
            }
        }
        if is_first {
            self.first(authorizer, reply)?;
        }
        if let Some(methods) = methods {
            self.choose_method(methods, authorizer, reply)?;
        }
        if let Some(chap) = &mut self.chap {
            let target = self.names.target.as_deref().unwrap_or(DISCOVERY_NAME);
            let (host, md5) = (authorizer.host(), authorizer.offers_md5());
            chap.step(&chap_keys, host.as_ref(), md5, target, reply)?;
            authorizer.proven = chap.proven();
        }
        if stage == OPERATIONAL && !std::mem::replace(&mut self.declared, true) {
            text::push(reply, "MaxRecvDataSegmentLength", &MAX_RECV.to_string());
        }
        Ok(())
    }

    /// Takes a name. libiscsi sends some with every request.
    fn name(&mut self, key: &str, value: &str) -> Result<(), Violation> {
        let name = || iqn::normalized(value).ok_or(Violation::KeyInvalid);
        let names = &mut self.names;
        let same = match (key, value) {
            ("InitiatorName", _) => {
                let name = name()?;
                *names.initiator.get_or_insert_with(|| name.clone()) == name
            }
            ("TargetName", _) => {
                let name = name()?;
                *names.target.get_or_insert_with(|| name.clone()) == name
            }
            (_, "Normal") => !*names.discovery.get_or_insert(false),
            (_, "Discovery") => *names.discovery.get_or_insert(true),
            _ => false,
        };
        if same { Ok(()) } else { Err(Violation::KeyInvalid) }
    }

    /// Checks the names of the first request.
    fn first(&mut self, authorizer: &mut Authorizer, reply: &mut Vec<u8>) -> Result<(), Failure> {
        let missing = |reason| refused(Status::MISSING_PARAMETER, reason);
        let initiator = self.names.initiator.clone();
        authorizer.initiator = initiator.ok_or_else(|| missing("it sent no InitiatorName"))?;
        self.names.discovery.get_or_insert(false);
        if self.is_discovery() {
            return Ok(());
        }
        if self.names.target.is_none() {
            return Err(missing("it sent no TargetName"));
        }
        text::push(reply, "TargetPortalGroupTag", PORTAL_GROUP);
        Ok(())
    }

    /// Chooses an authentication method of the initiator's list.
    fn choose_method(
        &mut self,
        list: &str,
        authorizer: &Authorizer,
        reply: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        let offers = |method: &str| list.split(',').any(|offer| offer == method);
        let required = authorizer.must_authenticate();
        let chosen = match required || !offers("None") {
            false => "None",
            true if offers("CHAP") && self.chap.is_none() => "CHAP",
            true => {
                let reason = "it does not authenticate by CHAP";
                return Err(refused(Status::AUTHENTICATION_FAILURE, reason));
            }
        };
        text::push(reply, "AuthMethod", chosen);
        if chosen == "CHAP" {
            self.chap = Some(Chap::new(self.random));
        }
        Ok(())
    }

    /// Returns whether the initiator may leave the stage.
    fn may_leave(&self, stage: u8, authorizer: &Authorizer) -> Result<bool, Failure> {
        match &self.chap {
            Some(chap) if stage == SECURITY && chap.proven().is_none() => Ok(false),
            Some(_) => Ok(true),
            None if authorizer.must_authenticate() => {
                let reason = "it does not authenticate by CHAP";
                Err(refused(Status::AUTHENTICATION_FAILURE, reason))
            }
            None => Ok(true),
        }
    }

    /// Returns the access of the initiator to its target; `None` for a discovery session.
    pub(super) fn grant(&self, authorizer: &Authorizer) -> Result<Option<Grant>, Failure> {
        if self.is_discovery() {
            return Ok(authorizer.authenticate().map(|()| None)?);
        }
        Ok(Some(authorizer.grant(self.target())?))
    }

    /// Sends the last response. `tsih` is the handle of the session.
    pub(super) fn accept(mut self, tsih: u16, out: &mut Outbox) -> Accepted {
        let reply = std::mem::take(&mut self.text);
        let cid = self.fixed.map_or(0, |fixed| fixed.cid);
        if let Some(request) = self.pending.take() {
            if let Some(fixed) = &mut self.fixed {
                fixed.tsih = tsih;
            }
            self.respond(&request, TRANSIT, reply, out);
        }
        Accepted { parameters: self.negotiation.parameters(), link: self.link, cid }
    }

    /// Ends a login whose last response has waited for too long.
    pub(super) fn time_out(&mut self, out: &mut Outbox) -> LoginRefusal {
        let reason = "the disk has not ended writes of a connection that was lost";
        let refusal = LoginRefusal { status: Status::UNAVAILABLE, reason };
        self.fail(&of_target(opcode::LOGIN_REQUEST), refusal.into(), out);
        refusal
    }

    /// Sends the response to a login that failed. Nothing is sent to what is no initiator.
    pub(super) fn fail(&mut self, header: &Bhs, failure: Failure, out: &mut Outbox) {
        let status = match failure {
            Failure::Violation(Violation::LoginExpected) => return,
            Failure::Violation(violation) => violation.login_status(),
            Failure::Refused(refusal) => refusal.status,
        };
        let request = self.pending.take().unwrap_or_else(|| LoginRequest::of(header));
        let mut response = self.response(&request, 0);
        response.status = status.bytes();
        self.link.send(&response, Data::NONE, out);
    }

    fn respond(&mut self, request: &LoginRequest, transit: u8, reply: Vec<u8>, out: &mut Outbox) {
        let response = self.response(request, transit);
        self.link.send(&response, Data::of(reply), out);
    }

    fn response(&mut self, request: &LoginRequest, transit: u8) -> LoginResponse {
        let mut response = LoginResponse::of(&of_target(opcode::LOGIN_RESPONSE));
        let (stage, next) = stages(request.flags);
        response.flags = transit | stage << 2 | if transit != 0 { next } else { 0 };
        (response.isid, response.itt) = (request.isid, request.itt);
        response.tsih = self.fixed.map_or(request.tsih, |fixed| fixed.tsih.into());
        response.numbers = self.link.next_numbers();
        response
    }
}
