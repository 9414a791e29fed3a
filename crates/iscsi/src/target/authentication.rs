//! Authentication by CHAP in the login phase (RFC 7143 §12).

use std::sync::Arc;

use export::{Host, KeyId, Secret};

use crate::chap::{Algorithm, RandomSource};
use crate::credential::{CHAP_INITIATOR, CHAP_TARGET, allows_md5};
use crate::wire::text::{self, binary, number};

/// The lengths of challenges that are answered, in bytes.
const CHALLENGE_LENGTHS: std::ops::RangeInclusive<usize> = 1..=1024;

/// The exchange of one login.
#[derive(Debug)]
pub(super) struct Chap {
    random: RandomSource,
    state: State,
}

#[derive(Debug)]
enum State {
    /// No list of algorithms was received yet.
    Chosen,
    Challenged {
        algorithm: Algorithm,
        id: u8,
        challenge: Vec<u8>,
    },
    /// The initiator has authenticated, with the keys of that host.
    Done(KeyId),
}

/// The keys of CHAP that the initiator sent in one request.
#[derive(Debug, Default)]
pub(super) struct ChapKeys {
    algorithms: Option<String>,
    name: Option<String>,
    response: Option<Vec<u8>>,
    id: Option<u8>,
    challenge: Option<Vec<u8>>,
}

/// The initiator has failed to authenticate, for this reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failed(pub(super) &'static str);

impl ChapKeys {
    fn is_empty(&self) -> bool {
        let Self { algorithms, name, response, id, challenge } = self;
        let texts = [algorithms, name].iter().all(|text| text.is_none());
        texts && [response, challenge].iter().all(|bytes| bytes.is_none()) && id.is_none()
    }

    /// Takes a key. Returns whether it is one of CHAP.
    ///
    /// # Errors
    /// Fails if the value is invalid, or the key was sent before.
    pub(super) fn take(&mut self, key: &str, value: &str) -> Result<bool, Failed> {
        match key {
            "CHAP_A" => set(&mut self.algorithms, Some(value.to_owned())),
            "CHAP_N" => set(&mut self.name, Some(value.to_owned())),
            "CHAP_R" => set(&mut self.response, binary(value)),
            "CHAP_I" => set(&mut self.id, number(value).and_then(|id| id.try_into().ok())),
            "CHAP_C" => set(&mut self.challenge, binary(value)),
            _ => Ok(false),
        }
    }
}

fn set<T>(place: &mut Option<T>, value: Option<T>) -> Result<bool, Failed> {
    match (value, place.is_none()) {
        (Some(value), true) => {
            *place = Some(value);
            Ok(true)
        }
        _ => Err(Failed("it sent an invalid CHAP key")),
    }
}

impl Chap {
    pub(super) fn new(random: RandomSource) -> Self {
        Self { random, state: State::Chosen }
    }

    /// Returns the keys of the host that the initiator has proven.
    pub(super) fn proven(&self) -> Option<KeyId> {
        match &self.state {
            State::Done(key) => Some(*key),
            _ => None,
        }
    }

    /// Processes the keys of a request, and appends those of the response to `reply`. `host` is that
    /// of the initiator's name, if the policy has it; for an unknown one the exchange fails at its end.
    /// `md5`: the weak algorithm MD5 is chosen if no other is offered; the exchange fails at its end for a
    /// host that may not use it. `target` is the name of the target.
    pub(super) fn step(
        &mut self,
        keys: &ChapKeys,
        host: Option<&Arc<Host>>,
        md5: bool,
        target: &str,
        reply: &mut Vec<u8>,
    ) -> Result<(), Failed> {
        match (&self.state, &keys.algorithms) {
            (State::Chosen, Some(list)) => self.challenge(list, md5, reply),
            (State::Challenged { .. }, None) if keys.response.is_some() => {
                self.check(keys, host, target, reply)
            }
            _ if keys.is_empty() => Ok(()),
            _ => Err(Failed("its CHAP messages are out of order")),
        }
    }

    fn challenge(&mut self, list: &str, md5: bool, reply: &mut Vec<u8>) -> Result<(), Failed> {
        let Some(algorithm) = Algorithm::choose(list, md5) else {
            text::push(reply, "CHAP_A", "Reject");
            return Err(Failed("it offers no CHAP algorithm that is allowed"));
        };
        let mut random = vec![0; algorithm.response_len() + 1];
        if !(self.random)(&mut random) {
            return Err(Failed("the system has no random bytes"));
        }
        let id = random.pop().unwrap_or(0);
        text::push(reply, "CHAP_A", &algorithm.number().to_string());
        text::push(reply, "CHAP_I", &id.to_string());
        text::push(reply, "CHAP_C", &text::to_hex(&random));
        self.state = State::Challenged { algorithm, id, challenge: random };
        Ok(())
    }

    /// Checks the response of the initiator, and answers its challenge if it has sent one.
    fn check(
        &mut self,
        keys: &ChapKeys,
        host: Option<&Arc<Host>>,
        target: &str,
        reply: &mut Vec<u8>,
    ) -> Result<(), Failed> {
        let State::Challenged { algorithm, id, challenge } = &self.state else { return Ok(()) };
        let unknown = Secret::new(vec![0; 16]);
        let credential = host.and_then(|host| host.credential(CHAP_INITIATOR));
        let secret = credential.map_or(&unknown, |credential| &credential.secret);
        let response = Secret::new(keys.response.clone().unwrap_or_default());
        let is_right = algorithm.response(*id, secret, challenge) == response;
        let (Some(host), Some(_), true) = (host, credential, is_right) else {
            return Err(Failed("its CHAP name or secret is wrong"));
        };
        let name = keys.name.as_deref().unwrap_or_default();
        if !name.eq_ignore_ascii_case(&host.id) && name != host.name {
            return Err(Failed("its CHAP name or secret is wrong"));
        }
        if *algorithm == Algorithm::Md5 && !allows_md5(host) {
            return Err(Failed("it offers CHAP with MD5 only, which is not allowed for it"));
        }
        let own = host.credential(CHAP_TARGET).map(|credential| &credential.secret);
        if own == Some(secret) {
            return Err(Failed("its CHAP secret is the same in both directions"));
        }
        if keys.id.is_some() || keys.challenge.is_some() {
            let own = own.ok_or(Failed("it requires mutual CHAP, which was not set up"))?;
            let (Some(theirs), Some(bytes)) = (keys.id, &keys.challenge) else {
                return Err(Failed("it sent an incomplete CHAP challenge"));
            };
            if !CHALLENGE_LENGTHS.contains(&bytes.len()) || bytes == challenge {
                return Err(Failed("its CHAP challenge is reflected or has an invalid length"));
            }
            let answer = algorithm.response(theirs, own, bytes);
            text::push(reply, "CHAP_N", target);
            text::push(reply, "CHAP_R", &text::to_hex(answer.bytes()));
        }
        self.state = State::Done(host.key);
        Ok(())
    }
}
