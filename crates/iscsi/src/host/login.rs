//! The login phase (RFC 7143 §6.3): CHAP, then the operational keys.

use super::keys::push_offer;
use super::{Credentials, End, Initiator, Phase, Refusal, Step, Violation};
use crate::chap::Algorithm;
use crate::wire::bhs::{Bhs, LoginRequest, LoginResponse, of_target};
use crate::wire::login::{CONTINUE, FULL_FEATURE, OPERATIONAL, SECURITY, TRANSIT, stages};
use crate::wire::opcode::{self, IMMEDIATE};
use crate::wire::text::{self, push};

/// The task tag of all login requests.
const LOGIN_TAG: u32 = 0;

/// Maximum number of responses in one login.
const MAX_RESPONSES: u32 = 64;

/// Maximum length of the text of one exchange in bytes.
const MAX_LOGIN_TEXT: usize = 64 << 10;

/// Longest address to which a login is redirected, in bytes: a name, brackets and a port.
const MAX_ADDRESS: usize = 270;

/// What the next response answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Await {
    /// `AuthMethod=CHAP`.
    Method,
    /// `CHAP_A`: the algorithm and the challenge.
    Challenge,
    /// `CHAP_R`: the end of the security stage.
    Proof,
    /// The operational keys.
    Keys,
}

/// State of the login.
#[derive(Debug)]
pub(super) struct Login {
    pub(super) awaits: Await,
    responses: u32,
    /// Text of responses with the C bit.
    text: Vec<u8>,
    /// Identifier and challenge that the target must answer.
    challenge: Option<(Algorithm, u8, [u8; 16])>,
}

impl Login {
    pub(super) fn new(authenticates: bool) -> Self {
        let awaits = if authenticates { Await::Method } else { Await::Keys };
        Self { awaits, responses: 0, text: Vec::new(), challenge: None }
    }
}

impl Initiator {
    /// Sends the first request.
    pub(super) fn begin_login(&mut self) {
        let equal = |it: &Credentials| it.target.as_ref() == Some(&it.secret);
        if self.options.credentials.as_ref().is_some_and(equal) {
            return self.refuse(Refusal::SecretsEqual);
        }
        let mut text = Vec::new();
        push(&mut text, "InitiatorName", &self.options.initiator);
        match &self.options.target {
            Some(target) => {
                push(&mut text, "TargetName", target);
                push(&mut text, "SessionType", "Normal");
            }
            None => push(&mut text, "SessionType", "Discovery"),
        }
        match self.login.awaits {
            Await::Keys => self.send_keys(text),
            _ => {
                push(&mut text, "AuthMethod", "CHAP");
                self.send_login(SECURITY << 2 | OPERATIONAL, &text);
            }
        }
    }

    fn send_keys(&mut self, mut text: Vec<u8>) {
        self.login.awaits = Await::Keys;
        push_offer(&mut text, &self.options.offer, self.options.target.is_some());
        self.send_login(TRANSIT | OPERATIONAL << 2 | FULL_FEATURE, &text);
    }

    fn send_login(&mut self, flags: u8, text: &[u8]) {
        let mut login = LoginRequest::of(&of_target(opcode::LOGIN_REQUEST | IMMEDIATE));
        (login.flags, login.isid, login.itt) = (flags, self.options.isid, LOGIN_TAG.into());
        login.tsih = self.tsih.into();
        (login.cmd_sn, login.exp_stat_sn) = (self.cmd_sn.into(), self.exp_stat_sn.into());
        self.send_bytes(&login, text);
    }

    /// Processes a response.
    pub(super) fn login_response(&mut self, header: &Bhs, data: &[u8]) -> Result<(), Violation> {
        if header.opcode() != opcode::LOGIN_RESPONSE {
            return Err(Violation::LoginExpected);
        }
        let response = LoginResponse::of(header);
        if response.itt.get() != LOGIN_TAG {
            return Err(Violation::TagUnknown);
        }
        if response.status != [0, 0] {
            self.login_failed(response.status, data);
            return Ok(());
        }
        self.login.responses += 1;
        self.login.text.extend_from_slice(data);
        if self.login.text.len() > MAX_LOGIN_TEXT {
            return Err(Violation::TextTooLong);
        }
        if self.login.responses > MAX_RESPONSES {
            return Err(Violation::LoginTooLong);
        }
        if self.login.responses == 1 {
            self.exp_stat_sn = response.numbers.stat_sn.get();
        }
        self.count_status(&response.numbers)?;
        self.tsih = response.tsih.get();
        self.update_window(&response.numbers);
        let (current, next) = stages(response.flags);
        let awaits = self.login.awaits;
        let stage = if awaits == Await::Keys { OPERATIONAL } else { SECURITY };
        if current != stage {
            return Err(Violation::LoginStageWrong);
        }
        if response.flags & CONTINUE != 0 {
            self.send_login(stage << 2, &[]);
            return Ok(());
        }
        let text = std::mem::take(&mut self.login.text);
        let pairs = text::parse(&text).map_err(|_| Violation::TextMalformed)?;
        let transit = (response.flags & TRANSIT != 0).then_some(next);
        match awaits {
            Await::Method => self.method_chosen(&pairs),
            Await::Challenge => self.challenged(&pairs)?,
            Await::Proof => self.proved(&pairs, transit)?,
            Await::Keys => self.keys_answered(&pairs, transit)?,
        }
        Ok(())
    }

    /// Ends a login that the target has refused, or that it wants to have at another address.
    fn login_failed(&mut self, status: [u8; 2], data: &[u8]) {
        let address =
            text::parse(data).ok().and_then(|pairs| portal(value(&pairs, "TargetAddress")?));
        match (status, address) {
            // A discovery session finds what is at this address.
            ([1, _], Some(address)) if self.options.target.is_some() => {
                self.out.push_back(Step::Redirected(address));
                self.close(End::Finished);
            }
            ([2, 1], _) if self.login.awaits == Await::Challenge => {
                self.refuse(Refusal::NoChallenge);
            }
            _ => self.refuse(Refusal::Status(status)),
        }
    }

    fn method_chosen(&mut self, pairs: &[(&str, &str)]) {
        if value(pairs, "AuthMethod") != Some("CHAP") {
            return self.refuse(Refusal::NoChap);
        }
        let Some(credentials) = &self.options.credentials else { return };
        let list: Vec<String> =
            credentials.algorithms.iter().map(|a| a.number().to_string()).collect();
        let mut text = Vec::new();
        push(&mut text, "CHAP_A", &list.join(","));
        self.login.awaits = Await::Challenge;
        self.send_login(SECURITY << 2 | OPERATIONAL, &text);
    }

    /// Answers the challenge, and challenges the target if it has a secret.
    fn challenged(&mut self, pairs: &[(&str, &str)]) -> Result<(), Violation> {
        let Some(credentials) = &self.options.credentials else { return Ok(()) };
        let Some(algorithm) = value(pairs, "CHAP_A").and_then(text::number) else {
            self.refuse(Refusal::NoAlgorithm);
            return Ok(());
        };
        let known = credentials.algorithms.iter().find(|known| known.number() == algorithm);
        let algorithm = *known.ok_or(Violation::ChapInvalid)?;
        let id = value(pairs, "CHAP_I").and_then(text::number).map(u8::try_from);
        let id = id.and_then(Result::ok).ok_or(Violation::ChapInvalid)?;
        let challenge = value(pairs, "CHAP_C").and_then(text::binary);
        let challenge = challenge.filter(|it| !it.is_empty() && it.len() <= 1024);
        let challenge = challenge.ok_or(Violation::ChapInvalid)?;
        let mut answer = Vec::new();
        push(&mut answer, "CHAP_N", &credentials.name);
        let response = algorithm.response(id, &credentials.secret, &challenge);
        push(&mut answer, "CHAP_R", &text::to_hex(response.bytes()));
        if credentials.target.is_some() {
            let mut random = [0; 17];
            if !(self.options.random)(&mut random) {
                self.refuse(Refusal::NoRandom);
                return Ok(());
            }
            let [own_id, ours @ ..] = random;
            // A target that knows it in advance could answer with a response of the initiator.
            if ours[..] == challenge[..] {
                return Err(Violation::ChapInvalid);
            }
            push(&mut answer, "CHAP_I", &own_id.to_string());
            push(&mut answer, "CHAP_C", &text::to_hex(&ours));
            self.login.challenge = Some((algorithm, own_id, ours));
        }
        self.login.awaits = Await::Proof;
        self.send_login(TRANSIT | SECURITY << 2 | OPERATIONAL, &answer);
        Ok(())
    }

    fn proved(&mut self, pairs: &[(&str, &str)], next: Option<u8>) -> Result<(), Violation> {
        let secret = self.options.credentials.as_ref().and_then(|it| it.target.as_ref());
        if let (Some(secret), Some((algorithm, id, challenge))) = (secret, self.login.challenge) {
            let expected = algorithm.response(id, secret, &challenge);
            let proof = value(pairs, "CHAP_R").and_then(text::binary).map(export::Secret::new);
            if proof != Some(expected) {
                self.refuse(Refusal::TargetUnproved);
                return Ok(());
            }
            self.login.challenge = None;
        }
        match next {
            None => self.send_login(TRANSIT | SECURITY << 2 | OPERATIONAL, &[]),
            Some(OPERATIONAL) => self.send_keys(Vec::new()),
            Some(_) => return Err(Violation::LoginStageWrong),
        }
        Ok(())
    }

    fn keys_answered(&mut self, pairs: &[(&str, &str)], next: Option<u8>) -> Result<(), Violation> {
        for (key, value) in pairs {
            self.parameters.receive(&self.options.offer, key, value)?;
        }
        match next {
            None => self.send_login(TRANSIT | OPERATIONAL << 2 | FULL_FEATURE, &[]),
            Some(FULL_FEATURE) => self.logged_in(),
            Some(_) => return Err(Violation::LoginStageWrong),
        }
        Ok(())
    }

    fn logged_in(&mut self) {
        self.phase = Phase::FullFeature;
        self.receiver.header_digest = self.parameters.header_digest;
        self.receiver.data_digest = self.parameters.data_digest;
        match self.options.target {
            Some(_) => self.out.push_back(Step::LoggedIn),
            None => self.send_targets(),
        }
    }

    pub(super) fn refuse(&mut self, refusal: Refusal) {
        self.out.push_back(Step::Refused(refusal));
        self.close(End::Finished);
    }
}

/// Returns the address of a portal without its portal group tag (RFC 7143 §13.8).
fn portal(value: &str) -> Option<String> {
    let address = value.split(',').next().unwrap_or_default();
    let is_valid = !address.is_empty()
        && address.len() <= MAX_ADDRESS
        && address.bytes().all(|byte| byte.is_ascii_graphic());
    is_valid.then(|| address.to_owned())
}

fn value<'a>(pairs: &[(&str, &'a str)], key: &str) -> Option<&'a str> {
    pairs.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
}
