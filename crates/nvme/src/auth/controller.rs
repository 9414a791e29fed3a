//! The controller's end of DH-HMAC-CHAP: messages in, messages out (NVMe Base 2.0 §8.13.5). It knows no command, and no
//! policy: the keys are given.

use std::time::Duration;

use export::{KeyId, Secret};
use subtle::ConstantTimeEq;

use super::chap::{Key, Names, Prover, Question, Random, draw, generated_psk};
use super::group::{Exchange, Group, PRIVATE};
use super::hash::Hash;
use super::psk::{self, Psk};
use crate::wire::auth::{Challenge, Explanation, FromController, FromHost, Negotiate, Reply, sc_c};

/// What is asked of hosts, and where random bytes come from.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The hashes that may be used, the one that is liked best first; where a TLS key is to come of it, the shortest.
    pub hashes: Vec<Hash>,
    /// The groups that may be used, the one that is liked best first.
    ///
    /// By default all but [`Group::Null`], the smallest first. A peer that has proven nothing yet has us calculate in the
    /// group: with ffdhe2048 for two milliseconds, with ffdhe8192 for twenty times as long; and the keys, of 256 bits,
    /// are what is proven: the group adds that nobody can try keys on what he overheard, however many there are.
    pub groups: Vec<Group>,
    /// Whether connections in a secured channel can be had: a generated key is of use for nothing else.
    pub tls: bool,
    /// Random bytes.
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
    /// The same, but a host may also do without a group, if it has none that may be used.
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
        // It is the hash of the TLS key, too: no cipher suite has SHA-512, and hosts whose TLS library is GnuTLS before
        // 3.8.11 cannot use a key of SHA-384.
        mine.filter(|hash| *hash != Hash::Sha512).min_by_key(|hash| hash.id())
    }

    pub(super) fn group(&self, offer: &Negotiate<'_>) -> Option<Group> {
        let common = |group: &Group| offer.groups.contains(&group.id());
        let mut mine = self.groups.iter().copied().filter(common);
        if offer.sc_c == sc_c::NONE {
            return mine.next();
        }
        // The group protects not only a proof then, but all that goes through the channel: 128 bits, if there are.
        let mine: Vec<Group> = mine.filter(|group| *group != Group::Null).collect();
        mine.iter()
            .copied()
            .find(|group| *group >= Group::Ffdhe3072)
            .or_else(|| mine.first().copied())
    }
}

/// The keys of one host.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    pub(crate) id: KeyId,
    /// What the host proves to know.
    pub(crate) host: Key,
    /// What the controller proves to know, if the host asks.
    pub(crate) controller: Option<Key>,
    /// Whether a generated key is derived as Linux 6.15 did.
    pub(crate) compat: bool,
}

/// One end of a conversation on one queue.
#[derive(Debug)]
pub(crate) struct Controller {
    names: Names,
    rules: Rules,
    setting: Setting,
    t_id: u16,
    /// How often the host has begun since it last proved anything.
    begun: u8,
    stage: Stage,
}

/// How often a host may begin before it proves anything: each beginning has us calculate.
const BEGINNINGS: u8 = 2;

/// Where the conversation takes place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    /// On the Admin queue: a secured channel can be asked for there only.
    pub(crate) admin: bool,
    /// In a secured channel.
    pub(crate) secured: bool,
}

#[derive(Debug)]
enum Stage {
    /// AUTH_Negotiate is due.
    Idle,
    /// The challenge waits to be fetched.
    Challenge(Box<Asked>, Vec<u8>),
    /// DH-HMAC-CHAP_Reply is due.
    Reply(Box<Asked>),
    /// Success1 waits to be fetched; then Success2 is due, or all is done.
    Success1(Vec<u8>, Option<Box<Shown>>),
    /// DH-HMAC-CHAP_Success2 is due.
    Success2(Box<Shown>),
    /// AUTH_Failure1 waits to be fetched.
    Failure1(Vec<u8>),
    /// It failed, and the host has been told, or said so itself.
    Over,
}

/// What the host was asked.
#[derive(Debug)]
struct Asked {
    keys: Keys,
    hash: Hash,
    exchange: Option<Exchange>,
    sc_c: u8,
    sequence: u32,
    challenge: Vec<u8>,
}

/// What a host has shown.
#[derive(Debug)]
pub(crate) struct Shown {
    /// It knows this key.
    pub(crate) key: KeyId,
    /// The keys for a secured channel that came out of it, if it asked for one.
    pub(crate) psks: Vec<Psk>,
    /// Whether nothing is left for the host to fetch.
    pub(crate) settled: bool,
}

/// How far a message has brought the conversation.
#[derive(Debug)]
pub(crate) enum Progress {
    /// On.
    Going,
    /// The host knows its key, and asks nothing more of us: it is done once it fetched Success1.
    Proven(Box<Shown>),
    /// It failed; the host can fetch why.
    Failed(Explanation),
    /// The host gave up.
    GivenUp,
}

impl Controller {
    pub(crate) fn new(names: Names, rules: Rules, setting: Setting) -> Self {
        Self { names, rules, setting, t_id: 0, begun: 0, stage: Stage::Idle }
    }

    /// A message came. `keys` are those that the host has just now.
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

    /// Ends it: the host finds `why` in place of what it waits for.
    pub(crate) fn refuse(&mut self, why: Explanation) -> Progress {
        self.stage = Stage::Failure1(FromController::Failure1(why).emit(self.t_id, 0));
        Progress::Failed(why)
    }

    /// How much calculation the message would cost, before who sent it has proven anything.
    pub(crate) fn cost(&self, bytes: &[u8]) -> Duration {
        match FromHost::parse(bytes) {
            Ok((_, FromHost::Negotiate(offer))) if self.begun < BEGINNINGS => {
                self.rules.group(&offer).map_or(Duration::ZERO, Exchange::cost)
            }
            _ => Duration::ZERO,
        }
    }

    /// Whether it failed: no message changes that, even if the host has not been told yet.
    pub(crate) fn has_failed(&self) -> bool {
        matches!(self.stage, Stage::Failure1(_) | Stage::Over)
    }

    /// Whether nothing more is to be said or heard after a failure.
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

    /// A new transaction, whatever became of the one before (NVMe Base 2.0 §8.13.5.2).
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

    /// Nothing if there are no random bytes.
    fn ask(&self, hash: Hash, group: Group, sc_c: u8, keys: Keys) -> Option<Asked> {
        let random = self.rules.random;
        let challenge = draw::<64>(random).ok()?.get(..hash.size())?.to_vec();
        // Zero would mean that there is none (NVMe Base 2.0 §8.13.5.3).
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

    /// The host asks for a proof, too. Its challenge is not ours sent back.
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

    /// The keys for the secured channel that the host asked for.
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

    /// The message that the host fetches, if it has room for it. It may fetch a challenge or Success1 once.
    ///
    /// # Errors
    /// Bytes that the message has, if they are more than `room`.
    pub(crate) fn receive(&mut self, room: usize) -> Result<Vec<u8>, usize> {
        if let Some(len) = self.ready().filter(|&len| len > room) {
            return Err(len);
        }
        let (bytes, next) = match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Challenge(asked, bytes) => (bytes, Stage::Reply(asked)),
            Stage::Success1(bytes, None) => (bytes, Stage::Idle),
            Stage::Success1(bytes, Some(shown)) => (bytes, Stage::Success2(shown)),
            Stage::Failure1(bytes) => (bytes, Stage::Over),
            // Nothing is there to be fetched.
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
    /// What both agree on, if they were to (NVMe Base 2.0 §8.13.5.4).
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

    /// Whether it is the right response, in the time that it takes whatever it is.
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
