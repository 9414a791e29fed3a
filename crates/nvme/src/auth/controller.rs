//! The controller side of DH-HMAC-CHAP (NVMe Base 2.0 §8.13.5): a state machine from messages to
//! messages. The caller supplies the secrets.

use std::time::Duration;

use export::{KeyId, Secret};
use subtle::ConstantTimeEq;

use super::chap::{Key, Names, Prover, Question, Random, draw, generated_psk};
use super::group::{Exchange, Group, PRIVATE};
use super::hash::Hash;
use super::psk::{self, Psk};
use crate::wire::auth::{Challenge, Explanation, FromController, FromHost, Negotiate, Reply, sc_c};

/// Authentication settings of a target.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Accepted hashes in order of preference. With secure channel concatenation the shortest is used.
    pub hashes: Vec<Hash>,
    /// Accepted DH groups in order of preference.
    ///
    /// Default: all but [`Group::Null`], the smallest first. An unauthenticated peer makes the
    /// controller calculate in the group: about 2 ms with ffdhe2048, 20 times as long with ffdhe8192.
    /// The secrets have 256 bits or more; the group prevents offline attacks on weak ones.
    pub groups: Vec<Group>,
    /// Whether TLS is available. Required for secure channel concatenation.
    pub tls: bool,
    /// Source of random bytes.
    pub random: Random,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            hashes: vec![Hash::Sha512, Hash::Sha384, Hash::Sha256],
            groups: Group::ALL.into_iter().filter(|group| *group != Group::Null).collect(),
            tls: true,
            random: super::chap::system_random,
        }
    }
}

impl Rules {
    /// Accepts the NULL group from hosts that support no other accepted group.
    #[must_use]
    pub fn allow_null_group(mut self) -> Self {
        if !self.groups.contains(&Group::Null) {
            self.groups.push(Group::Null);
        }
        self
    }

    pub(super) fn hash(&self, offer: &Negotiate<'_>) -> Option<Hash> {
        let common = |hash: &Hash| offer.hashes.contains(&hash.id());
        let mut mine = self.hashes.iter().copied().filter(common);
        if offer.sc_c == sc_c::NONE {
            return mine.next();
        }
        // The hash also selects the TLS cipher suite. None uses SHA-512, and hosts with GnuTLS before
        // 3.8.11 cannot use a PSK with SHA-384.
        mine.filter(|hash| *hash != Hash::Sha512).min_by_key(|hash| hash.id())
    }

    pub(super) fn group(&self, offer: &Negotiate<'_>) -> Option<Group> {
        let common = |group: &Group| offer.groups.contains(&group.id());
        let mut mine = self.groups.iter().copied().filter(common);
        if offer.sc_c == sc_c::NONE {
            return mine.next();
        }
        // The group protects the TLS channel as well: prefers a strength of at least 128 bits.
        let mine: Vec<Group> = mine.filter(|group| *group != Group::Null).collect();
        mine.iter()
            .copied()
            .find(|group| *group >= Group::Ffdhe3072)
            .or_else(|| mine.first().copied())
    }
}

/// The secrets of one host.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    pub(crate) id: KeyId,
    /// Secret of the host.
    pub(crate) host: Key,
    /// Secret of the controller, for bidirectional authentication.
    pub(crate) controller: Option<Key>,
    /// Whether to derive generated PSKs as Linux 6.15 does.
    pub(crate) compat: bool,
}

/// The controller side of authentication on one queue.
#[derive(Debug)]
pub(crate) struct Controller {
    names: Names,
    rules: Rules,
    setting: Setting,
    t_id: u16,
    /// Negotiations since the host last authenticated.
    begun: u8,
    stage: Stage,
}

/// Maximum of negotiations before the host authenticates: each one costs calculation time.
const BEGINNINGS: u8 = 2;

/// Properties of the queue that authenticates.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    /// Admin queue. Secure channel concatenation is valid only there.
    pub(crate) admin: bool,
    /// The connection uses TLS.
    pub(crate) secured: bool,
}

#[derive(Debug)]
enum Stage {
    /// Expects AUTH_Negotiate.
    Idle,
    /// DH-HMAC-CHAP_Challenge is to be read.
    Challenge(Box<Asked>, Vec<u8>),
    /// Expects DH-HMAC-CHAP_Reply.
    Reply(Box<Asked>),
    /// DH-HMAC-CHAP_Success1 is to be read. Then expects DH-HMAC-CHAP_Success2, if authentication is
    /// bidirectional.
    Success1(Vec<u8>, Option<Box<Shown>>),
    /// Expects DH-HMAC-CHAP_Success2.
    Success2(Box<Shown>),
    /// AUTH_Failure1 is to be read.
    Failure1(Vec<u8>),
    /// Failed; no message is left.
    Over,
}

/// A challenge sent to the host.
#[derive(Debug)]
struct Asked {
    keys: Keys,
    hash: Hash,
    exchange: Option<Exchange>,
    sc_c: u8,
    sequence: u32,
    challenge: Vec<u8>,
}

/// Result of a successful authentication.
#[derive(Debug)]
pub(crate) struct Shown {
    /// Key identifier of the host.
    pub(crate) key: KeyId,
    /// Generated TLS PSKs, if the host requested secure channel concatenation.
    pub(crate) psks: Vec<Psk>,
    /// Whether no message is left for the host to read.
    pub(crate) settled: bool,
}

/// Result of a message.
#[derive(Debug)]
pub(crate) enum Progress {
    /// The exchange continues.
    Going,
    /// The host is authenticated. In the unidirectional case it still reads Success1.
    Proven(Box<Shown>),
    /// Authentication failed; AUTH_Failure1 is to be read.
    Failed(Explanation),
    /// The host sent AUTH_Failure2.
    GivenUp,
}

impl Controller {
    pub(crate) fn new(names: Names, rules: Rules, setting: Setting) -> Self {
        Self { names, rules, setting, t_id: 0, begun: 0, stage: Stage::Idle }
    }

    /// Processes a message of Authentication Send. `keys` are the current secrets of the host.
    pub(crate) fn send(&mut self, bytes: &[u8], keys: Option<&Keys>) -> Progress {
        match self.hear(bytes, keys) {
            Ok(progress) => {
                if matches!(progress, Progress::Proven(_)) {
                    self.begun = 0;
                }
                progress
            }
            Err(why) => self.refuse(why),
        }
    }

    /// Fails the exchange: the next message that the host reads is AUTH_Failure1.
    pub(crate) fn refuse(&mut self, why: Explanation) -> Progress {
        self.stage = Stage::Failure1(FromController::Failure1(why).emit(self.t_id, 0));
        Progress::Failed(why)
    }

    /// Estimates the calculation time of a message from an unauthenticated host.
    pub(crate) fn cost(&self, bytes: &[u8]) -> Duration {
        match FromHost::parse(bytes) {
            Ok((_, FromHost::Negotiate(offer))) if self.begun < BEGINNINGS => {
                self.rules.group(&offer).map_or(Duration::ZERO, Exchange::cost)
            }
            _ => Duration::ZERO,
        }
    }

    /// Returns whether the exchange failed, whether or not the host has read AUTH_Failure1.
    pub(crate) fn has_failed(&self) -> bool {
        matches!(self.stage, Stage::Failure1(_) | Stage::Over)
    }

    /// Returns whether the exchange failed and no message is left.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    fn hear(&mut self, bytes: &[u8], keys: Option<&Keys>) -> Result<Progress, Explanation> {
        if self.has_failed() {
            return Err(Explanation::IncorrectMessage);
        }
        let (t_id, message) = FromHost::parse(bytes)?;
        if let FromHost::Negotiate(offer) = message {
            self.t_id = t_id;
            return self.negotiate(&offer, keys).map(|()| Progress::Going);
        }
        if t_id != self.t_id {
            return Err(Explanation::IncorrectPayload);
        }
        match (std::mem::replace(&mut self.stage, Stage::Idle), message) {
            (Stage::Reply(asked), FromHost::Reply(reply)) => self.reply(&asked, &reply),
            (Stage::Success2(shown), FromHost::Success2) => Ok(Progress::Proven(shown)),
            (Stage::Reply(_) | Stage::Success2(_), FromHost::Failure2(_)) => {
                self.stage = Stage::Over;
                Ok(Progress::GivenUp)
            }
            _ => Err(Explanation::IncorrectMessage),
        }
    }

    /// Starts a new transaction, whatever the state of the previous one (NVMe Base 2.0 §8.13.5.2).
    fn negotiate(&mut self, offer: &Negotiate<'_>, keys: Option<&Keys>) -> Result<(), Explanation> {
        if self.begun == BEGINNINGS {
            return Err(Explanation::IncorrectMessage);
        }
        self.begun += 1;
        self.check_channel(offer.sc_c)?;
        let hash = self.rules.hash(offer).ok_or(Explanation::HashUnusable)?;
        let group = self.rules.group(offer).ok_or(Explanation::GroupUnusable)?;
        let keys = keys.ok_or(Explanation::Failed)?.clone();
        let asked = self.ask(hash, group, offer.sc_c, keys).ok_or(Explanation::Failed)?;
        let public = asked.exchange.as_ref().map_or(&[][..], Exchange::public);
        let message = FromController::Challenge(Challenge {
            hash: hash.id(),
            group: group.id(),
            sequence: asked.sequence,
            challenge: &asked.challenge,
            public,
        });
        let bytes = message.emit(self.t_id, hash.size());
        self.stage = Stage::Challenge(Box::new(asked), bytes);
        Ok(())
    }

    fn check_channel(&self, sc_c: u8) -> Result<(), Explanation> {
        let Setting { admin, secured } = self.setting;
        let fits = match sc_c {
            sc_c::NONE => true,
            sc_c::NEW_TLS_PSK => admin && !secured && self.rules.tls,
            sc_c::REPLACE_TLS_PSK => admin && secured && self.rules.tls,
            _ => false,
        };
        if fits { Ok(()) } else { Err(Explanation::ConcatenationMismatch) }
    }

    /// Creates a challenge. Returns `None` without random bytes.
    fn ask(&self, hash: Hash, group: Group, sc_c: u8, keys: Keys) -> Option<Asked> {
        let random = self.rules.random;
        let challenge = draw::<64>(random).ok()?.get(..hash.size())?.to_vec();
        // Zero is reserved: it means no sequence number (NVMe Base 2.0 §8.13.5.3).
        let sequence = u32::from_le_bytes(*draw::<4>(random).ok()?).max(1);
        let exchange = match group {
            Group::Null => None,
            _ => Some(Exchange::open(group, &*draw::<PRIVATE>(random).ok()?)?),
        };
        Some(Asked { keys, hash, exchange, sc_c, sequence, challenge })
    }

    fn reply(&mut self, asked: &Asked, reply: &Reply<'_>) -> Result<Progress, Explanation> {
        let agreed = asked.agree(reply.public)?;
        if reply.response.len() != asked.hash.size() {
            return Err(Explanation::IncorrectPayload);
        }
        if !asked.is_answered(self.t_id, &self.names, agreed.as_ref(), reply.response) {
            return Err(Explanation::Failed);
        }
        let psks = self.psks(asked, agreed.as_ref(), reply.challenge)?;
        let response = match reply.challenge.filter(|_| reply.sequence != 0) {
            None => None,
            Some(challenge) => {
                Some(self.respond(asked, reply.sequence, challenge, agreed.as_ref())?)
            }
        };
        let message = FromController::Success1(response.as_ref().map(|response| &***response));
        let bytes = message.emit(self.t_id, asked.hash.size());
        let shown = Box::new(Shown { key: asked.keys.id, psks, settled: response.is_some() });
        if shown.settled {
            self.stage = Stage::Success1(bytes, Some(shown));
            Ok(Progress::Going)
        } else {
            self.stage = Stage::Success1(bytes, None);
            Ok(Progress::Proven(shown))
        }
    }

    /// Calculates the response to the host's challenge. Fails if that repeats the controller's own
    /// challenge (reflection).
    fn respond(
        &self,
        asked: &Asked,
        sequence: u32,
        challenge: &[u8],
        agreed: Option<&Secret>,
    ) -> Result<zeroize::Zeroizing<Vec<u8>>, Explanation> {
        let key = asked.keys.controller.as_ref().ok_or(Explanation::Failed)?;
        if challenge == asked.challenge {
            return Err(Explanation::Failed);
        }
        let question = asked.question(self.t_id, sequence, challenge, agreed);
        Ok(question.response(key, &self.names, Prover::Controller))
    }

    /// Derives the TLS PSKs for secure channel concatenation, if requested.
    fn psks(
        &self,
        asked: &Asked,
        agreed: Option<&Secret>,
        challenge: Option<&[u8]>,
    ) -> Result<Vec<Psk>, Explanation> {
        if asked.sc_c == sc_c::NONE {
            return Ok(Vec::new());
        }
        let (Some(agreed), Some(challenge)) = (agreed, challenge) else {
            return Err(Explanation::Failed);
        };
        let psk = generated_psk(asked.hash, agreed, &asked.challenge, challenge);
        let Names { host, subsystem } = &self.names;
        Ok(psk::generated(psk.bytes(), asked.hash, asked.keys.compat, host, subsystem))
    }

    /// Returns the message for Authentication Receive. Challenge and Success1 can be read once.
    ///
    /// # Errors
    /// Fails with the length of the message if it exceeds `room`.
    pub(crate) fn receive(&mut self, room: usize) -> Result<Vec<u8>, usize> {
        if let Some(len) = self.ready().filter(|&len| len > room) {
            return Err(len);
        }
        let (bytes, next) = match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Challenge(asked, bytes) => (bytes, Stage::Reply(asked)),
            Stage::Success1(bytes, None) => (bytes, Stage::Idle),
            Stage::Success1(bytes, Some(shown)) => (bytes, Stage::Success2(shown)),
            Stage::Failure1(bytes) => (bytes, Stage::Over),
            // No message to read.
            _ => {
                let why = FromController::Failure1(Explanation::IncorrectMessage);
                (why.emit(self.t_id, 0), Stage::Over)
            }
        };
        self.stage = next;
        if bytes.len() > room { Err(bytes.len()) } else { Ok(bytes) }
    }

    fn ready(&self) -> Option<usize> {
        match &self.stage {
            Stage::Challenge(_, bytes) | Stage::Success1(bytes, _) | Stage::Failure1(bytes) => {
                Some(bytes.len())
            }
            _ => None,
        }
    }
}

impl Asked {
    /// Calculates the DH shared secret (NVMe Base 2.0 §8.13.5.4).
    fn agree(&self, public: &[u8]) -> Result<Option<Secret>, Explanation> {
        match &self.exchange {
            None if public.is_empty() => Ok(None),
            None => Err(Explanation::IncorrectPayload),
            Some(exchange) => exchange.agree(public).map(Some).ok_or(Explanation::GroupUnusable),
        }
    }

    fn question<'a>(
        &'a self,
        t_id: u16,
        sequence: u32,
        challenge: &'a [u8],
        agreed: Option<&'a Secret>,
    ) -> Question<'a> {
        Question { hash: self.hash, t_id, sc_c: self.sc_c, sequence, challenge, agreed }
    }

    /// Verifies the host's response in constant time.
    fn is_answered(
        &self,
        t_id: u16,
        names: &Names,
        agreed: Option<&Secret>,
        response: &[u8],
    ) -> bool {
        let question = self.question(t_id, self.sequence, &self.challenge, agreed);
        let right = question.response(&self.keys.host, names, Prover::Host);
        let older = question.without_sc_c().response(&self.keys.host, names, Prover::Host);
        (right.ct_eq(response) | older.ct_eq(response)).into()
    }
}
