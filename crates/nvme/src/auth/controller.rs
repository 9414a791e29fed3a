//! The controller side of DH-HMAC-CHAP (NVMe Base 2.0 §8.13.5): a state machine from messages to
//! messages. The caller supplies the secrets.

use std::time::Duration;

use export::{KeyId, Secret};
use subtle::ConstantTimeEq;

use super::chap::{Key, Names, RandomSource, ResponseInput, Role, generated_psk, random_bytes};
use super::group::{DhExchange, Group, PRIVATE_KEY_LEN};
use super::hash::Hash;
use super::psk::{self, Psk};
use crate::wire::auth::{Challenge, Explanation, FromController, FromHost, Negotiate, Reply, sc_c};

/// Authentication settings of a target.
#[derive(Clone, Debug)]
pub struct AuthConfig {
    /// Accepted hashes in order of preference. With secure channel concatenation the shortest is
    /// used.
    pub hashes: Vec<Hash>,
    /// Accepted DH groups in order of preference.
    ///
    /// Default: all but [`Group::Null`], the smallest first. An unauthenticated peer makes the
    /// controller calculate in the group: about 2 ms with ffdhe2048, 20 times as long with
    /// ffdhe8192. The strength of the authentication is that of the secrets, 256 bits or more; the
    /// group prevents offline attacks on recorded exchanges.
    pub groups: Vec<Group>,
    /// Whether TLS is available. Required for secure channel concatenation.
    pub tls: bool,
    /// Source of random bytes.
    pub random: RandomSource,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            hashes: vec![Hash::Sha512, Hash::Sha384, Hash::Sha256],
            groups: Group::ALL.into_iter().filter(|group| *group != Group::Null).collect(),
            tls: true,
            random: super::chap::system_random,
        }
    }
}

impl AuthConfig {
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
        // The hash also selects the TLS cipher suite. None uses SHA-512, and hosts with GnuTLS
        // before 3.8.11 cannot use a PSK with SHA-384.
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
pub(crate) struct ControllerAuth {
    names: Names,
    config: AuthConfig,
    context: QueueContext,
    t_id: u16,
    /// Negotiations since the host last authenticated.
    negotiations: u8,
    state: State,
}

/// Maximum of negotiations before the host authenticates: each one costs calculation time.
const MAX_NEGOTIATIONS: u8 = 2;

/// Properties of the queue that authenticates.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueContext {
    /// Admin queue. Secure channel concatenation is valid only there.
    pub(crate) admin: bool,
    /// The connection uses TLS.
    pub(crate) secured: bool,
}

#[derive(Debug)]
enum State {
    /// Expects AUTH_Negotiate.
    Idle,
    /// DH-HMAC-CHAP_Challenge is to be read.
    Challenge(Box<PendingChallenge>, Vec<u8>),
    /// Expects DH-HMAC-CHAP_Reply.
    Reply(Box<PendingChallenge>),
    /// DH-HMAC-CHAP_Success1 is to be read. Then expects DH-HMAC-CHAP_Success2, if authentication
    /// is bidirectional.
    Success1(Vec<u8>, Option<Box<Authentication>>),
    /// Expects DH-HMAC-CHAP_Success2.
    Success2(Box<Authentication>),
    /// AUTH_Failure1 is to be read.
    Failure1(Vec<u8>),
    /// Failed; no message is left.
    Closed,
}

/// A challenge sent to the host.
#[derive(Debug)]
struct PendingChallenge {
    keys: Keys,
    hash: Hash,
    exchange: Option<DhExchange>,
    sc_c: u8,
    sequence: u32,
    challenge: Vec<u8>,
}

/// Result of a successful authentication.
#[derive(Debug)]
pub(crate) struct Authentication {
    /// Key identifier of the host.
    pub(crate) key: KeyId,
    /// Generated TLS PSKs, if the host requested secure channel concatenation.
    pub(crate) psks: Vec<Psk>,
    /// Whether no message is left for the host to read.
    pub(crate) is_last: bool,
}

/// Result of a message.
#[derive(Debug)]
pub(crate) enum Progress {
    /// The exchange continues.
    Continue,
    /// The host is authenticated. In the unidirectional case it still reads Success1.
    Authenticated(Box<Authentication>),
    /// Authentication failed; AUTH_Failure1 is to be read.
    Failed(Explanation),
    /// The host sent AUTH_Failure2.
    AbortedByHost,
}

impl ControllerAuth {
    pub(crate) fn new(names: Names, config: AuthConfig, context: QueueContext) -> Self {
        Self { names, config, context, t_id: 0, negotiations: 0, state: State::Idle }
    }

    /// Processes a message of Authentication Send. `keys` are the current secrets of the host.
    pub(crate) fn send(&mut self, bytes: &[u8], keys: Option<&Keys>) -> Progress {
        match self.handle(bytes, keys) {
            Ok(progress) => {
                if matches!(progress, Progress::Authenticated(_)) {
                    self.negotiations = 0;
                }
                progress
            }
            Err(reason) => self.refuse(reason),
        }
    }

    /// Fails the exchange: the next message that the host reads is AUTH_Failure1.
    pub(crate) fn refuse(&mut self, reason: Explanation) -> Progress {
        self.state = State::Failure1(FromController::Failure1(reason).emit(self.t_id, 0));
        Progress::Failed(reason)
    }

    /// Estimates the calculation time of a message from an unauthenticated host.
    pub(crate) fn cost(&self, bytes: &[u8]) -> Duration {
        match FromHost::parse(bytes) {
            Ok((_, FromHost::Negotiate(offer))) if self.negotiations < MAX_NEGOTIATIONS => {
                self.config.group(&offer).map_or(Duration::ZERO, DhExchange::cost)
            }
            _ => Duration::ZERO,
        }
    }

    /// Returns whether the exchange failed, whether or not the host has read AUTH_Failure1.
    pub(crate) fn has_failed(&self) -> bool {
        matches!(self.state, State::Failure1(_) | State::Closed)
    }

    /// Returns whether the exchange failed and no message is left.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    fn handle(&mut self, bytes: &[u8], keys: Option<&Keys>) -> Result<Progress, Explanation> {
        if self.has_failed() {
            return Err(Explanation::IncorrectMessage);
        }
        let (t_id, message) = FromHost::parse(bytes)?;
        if let FromHost::Negotiate(offer) = message {
            self.t_id = t_id;
            return self.negotiate(&offer, keys).map(|()| Progress::Continue);
        }
        if t_id != self.t_id {
            return Err(Explanation::IncorrectPayload);
        }
        match (std::mem::replace(&mut self.state, State::Idle), message) {
            (State::Reply(pending), FromHost::Reply(reply)) => self.reply(&pending, &reply),
            (State::Success2(authentication), FromHost::Success2) => {
                Ok(Progress::Authenticated(authentication))
            }
            (State::Reply(_) | State::Success2(_), FromHost::Failure2(_)) => {
                self.state = State::Closed;
                Ok(Progress::AbortedByHost)
            }
            _ => Err(Explanation::IncorrectMessage),
        }
    }

    /// Starts a new transaction, whatever the state of the previous one (NVMe Base 2.0 §8.13.5.2).
    fn negotiate(&mut self, offer: &Negotiate<'_>, keys: Option<&Keys>) -> Result<(), Explanation> {
        if self.negotiations == MAX_NEGOTIATIONS {
            return Err(Explanation::IncorrectMessage);
        }
        self.negotiations += 1;
        self.check_channel(offer.sc_c)?;
        let hash = self.config.hash(offer).ok_or(Explanation::HashUnusable)?;
        let group = self.config.group(offer).ok_or(Explanation::GroupUnusable)?;
        let keys = keys.ok_or(Explanation::Failed)?.clone();
        let pending =
            self.create_challenge(hash, group, offer.sc_c, keys).ok_or(Explanation::Failed)?;
        let public = pending.exchange.as_ref().map_or(&[][..], DhExchange::public);
        let message = FromController::Challenge(Challenge {
            hash: hash.id(),
            group: group.id(),
            sequence: pending.sequence,
            challenge: &pending.challenge,
            public,
        });
        let bytes = message.emit(self.t_id, hash.size());
        self.state = State::Challenge(Box::new(pending), bytes);
        Ok(())
    }

    fn check_channel(&self, sc_c: u8) -> Result<(), Explanation> {
        let QueueContext { admin, secured } = self.context;
        let is_valid = match sc_c {
            sc_c::NONE => true,
            sc_c::NEW_TLS_PSK => admin && !secured && self.config.tls,
            sc_c::REPLACE_TLS_PSK => admin && secured && self.config.tls,
            _ => false,
        };
        if is_valid { Ok(()) } else { Err(Explanation::ConcatenationMismatch) }
    }

    /// Creates a challenge. Returns `None` without random bytes.
    fn create_challenge(
        &self,
        hash: Hash,
        group: Group,
        sc_c: u8,
        keys: Keys,
    ) -> Option<PendingChallenge> {
        let random = self.config.random;
        let challenge = random_bytes::<64>(random).ok()?.get(..hash.size())?.to_vec();
        // Zero is reserved: it means no sequence number (NVMe Base 2.0 §8.13.5.3).
        let sequence = u32::from_le_bytes(*random_bytes::<4>(random).ok()?).max(1);
        let exchange = match group {
            Group::Null => None,
            _ => {
                Some(DhExchange::generate(group, &*random_bytes::<PRIVATE_KEY_LEN>(random).ok()?)?)
            }
        };
        Some(PendingChallenge { keys, hash, exchange, sc_c, sequence, challenge })
    }

    fn reply(
        &mut self,
        pending: &PendingChallenge,
        reply: &Reply<'_>,
    ) -> Result<Progress, Explanation> {
        let shared_secret = pending.shared_secret(reply.public)?;
        if reply.response.len() != pending.hash.size() {
            return Err(Explanation::IncorrectPayload);
        }
        if !pending.is_valid_response(
            self.t_id,
            &self.names,
            shared_secret.as_ref(),
            reply.response,
        ) {
            return Err(Explanation::Failed);
        }
        let psks = self.psks(pending, shared_secret.as_ref(), reply.challenge)?;
        let response = match reply.challenge.filter(|_| reply.sequence != 0) {
            None => None,
            Some(challenge) => {
                Some(self.respond(pending, reply.sequence, challenge, shared_secret.as_ref())?)
            }
        };
        let message = FromController::Success1(response.as_ref().map(|response| &***response));
        let bytes = message.emit(self.t_id, pending.hash.size());
        let authentication =
            Box::new(Authentication { key: pending.keys.id, psks, is_last: response.is_some() });
        if authentication.is_last {
            self.state = State::Success1(bytes, Some(authentication));
            Ok(Progress::Continue)
        } else {
            self.state = State::Success1(bytes, None);
            Ok(Progress::Authenticated(authentication))
        }
    }

    /// Calculates the response to the host's challenge. Fails if that repeats the controller's own
    /// challenge (reflection).
    fn respond(
        &self,
        pending: &PendingChallenge,
        sequence: u32,
        challenge: &[u8],
        shared_secret: Option<&Secret>,
    ) -> Result<zeroize::Zeroizing<Vec<u8>>, Explanation> {
        let key = pending.keys.controller.as_ref().ok_or(Explanation::Failed)?;
        if challenge == pending.challenge {
            return Err(Explanation::Failed);
        }
        let input = pending.input(self.t_id, sequence, challenge, shared_secret);
        Ok(input.response(key, &self.names, Role::Controller))
    }

    /// Derives the TLS PSKs for secure channel concatenation, if requested.
    fn psks(
        &self,
        pending: &PendingChallenge,
        shared_secret: Option<&Secret>,
        challenge: Option<&[u8]>,
    ) -> Result<Vec<Psk>, Explanation> {
        if pending.sc_c == sc_c::NONE {
            return Ok(Vec::new());
        }
        let (Some(shared_secret), Some(challenge)) = (shared_secret, challenge) else {
            return Err(Explanation::Failed);
        };
        let psk = generated_psk(pending.hash, shared_secret, &pending.challenge, challenge);
        let Names { host, subsystem } = &self.names;
        Ok(psk::derive_generated(psk.bytes(), pending.hash, pending.keys.compat, host, subsystem))
    }

    /// Returns the message for Authentication Receive. Challenge and Success1 can be read once.
    ///
    /// # Errors
    /// Fails with the length of the message if it exceeds `room`.
    pub(crate) fn receive(&mut self, room: usize) -> Result<Vec<u8>, usize> {
        if let Some(len) = self.ready().filter(|&len| len > room) {
            return Err(len);
        }
        let (bytes, next) = match std::mem::replace(&mut self.state, State::Idle) {
            State::Challenge(pending, bytes) => (bytes, State::Reply(pending)),
            State::Success1(bytes, None) => (bytes, State::Idle),
            State::Success1(bytes, Some(authentication)) => {
                (bytes, State::Success2(authentication))
            }
            State::Failure1(bytes) => (bytes, State::Closed),
            // No message to read.
            _ => {
                let reason = FromController::Failure1(Explanation::IncorrectMessage);
                (reason.emit(self.t_id, 0), State::Closed)
            }
        };
        self.state = next;
        if bytes.len() > room { Err(bytes.len()) } else { Ok(bytes) }
    }

    fn ready(&self) -> Option<usize> {
        match &self.state {
            State::Challenge(_, bytes) | State::Success1(bytes, _) | State::Failure1(bytes) => {
                Some(bytes.len())
            }
            _ => None,
        }
    }
}

impl PendingChallenge {
    /// Calculates the DH shared secret (NVMe Base 2.0 §8.13.5.4).
    fn shared_secret(&self, public: &[u8]) -> Result<Option<Secret>, Explanation> {
        match &self.exchange {
            None if public.is_empty() => Ok(None),
            None => Err(Explanation::IncorrectPayload),
            Some(exchange) => {
                exchange.shared_secret(public).map(Some).ok_or(Explanation::GroupUnusable)
            }
        }
    }

    fn input<'a>(
        &'a self,
        t_id: u16,
        sequence: u32,
        challenge: &'a [u8],
        shared_secret: Option<&'a Secret>,
    ) -> ResponseInput<'a> {
        ResponseInput { hash: self.hash, t_id, sc_c: self.sc_c, sequence, challenge, shared_secret }
    }

    /// Verifies the host's response in constant time.
    fn is_valid_response(
        &self,
        t_id: u16,
        names: &Names,
        shared_secret: Option<&Secret>,
        response: &[u8],
    ) -> bool {
        let input = self.input(t_id, self.sequence, &self.challenge, shared_secret);
        let expected = input.response(&self.keys.host, names, Role::Host);
        let without_sc_c = input.without_sc_c().response(&self.keys.host, names, Role::Host);
        (expected.ct_eq(response) | without_sc_c.ct_eq(response)).into()
    }
}
