//! The host side of DH-HMAC-CHAP (NVMe Base 2.0 §8.13.5): a state machine from messages to
//! messages.

use std::sync::Arc;

use export::Secret;
use subtle::ConstantTimeEq;

use super::chap::{
    Key, Names, RandomSource, ResponseInput, Role, generated_psk, random_bytes, system_random,
};
use super::group::{DhExchange, Group, PRIVATE_KEY_LEN};
use super::hash::Hash;
use super::psk::{self, Psk};
use crate::wire::auth::{Challenge, Explanation, FromController, FromHost, Negotiate, Reply, sc_c};

/// Credentials and settings of a host for authentication.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Secret of the host.
    pub key: Key,
    /// Secret of the controller. If set, the controller must authenticate, or the connection fails.
    pub controller: Option<Key>,
    /// Hashes to offer.
    pub hashes: Vec<Hash>,
    /// DH groups to offer.
    pub groups: Vec<Group>,
    /// Whether to request secure channel concatenation. Only for an Admin queue without TLS.
    pub concatenate: bool,
    /// Source of random bytes.
    pub random: RandomSource,
}

impl Credentials {
    /// Creates credentials with all hashes, all groups but [`Group::Null`], and unidirectional
    /// authentication.
    #[must_use]
    pub fn new(key: Key) -> Self {
        Self {
            key,
            controller: None,
            hashes: Hash::ALL.to_vec(),
            groups: Group::ALL.into_iter().filter(|group| *group != Group::Null).collect(),
            concatenate: false,
            random: system_random,
        }
    }

    fn sc_c(&self) -> u8 {
        if self.concatenate { sc_c::NEW_TLS_PSK } else { sc_c::NONE }
    }
}

/// The host side of authentication on one queue.
#[derive(Debug)]
pub(crate) struct HostAuth {
    names: Names,
    credentials: Arc<Credentials>,
    t_id: u16,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Expects DH-HMAC-CHAP_Challenge.
    Challenge,
    /// Expects DH-HMAC-CHAP_Success1, with this response if authentication is bidirectional.
    Success1 {
        response: Option<Secret>,
        psks: Vec<Psk>,
    },
    Closed,
}

/// Action after a message of the controller.
#[derive(Debug)]
pub(crate) enum HostAction {
    /// Send this message, then read the reply.
    Send(Vec<u8>),
    /// Success. Send the message if any. With the generated PSKs, if requested.
    Done(Option<Vec<u8>>, Vec<Psk>),
    /// Failure. Send the message if any.
    Failed(Option<Vec<u8>>, Explanation),
}

impl HostAuth {
    /// Starts a transaction. Returns the first message.
    pub(crate) fn open(names: Names, credentials: Arc<Credentials>, t_id: u16) -> (Self, Vec<u8>) {
        let ids = |hashes: &[Hash]| hashes.iter().map(|hash| hash.id()).collect::<Vec<u8>>();
        let groups: Vec<u8> = credentials.groups.iter().map(|group| group.id()).collect();
        let hashes = ids(&credentials.hashes);
        let offer = Negotiate { sc_c: credentials.sc_c(), hashes: &hashes, groups: &groups };
        let message = FromHost::Negotiate(offer).emit(t_id);
        (Self { names, credentials, t_id, state: State::Challenge }, message)
    }

    /// Processes a message of the controller.
    pub(crate) fn receive(&mut self, bytes: &[u8]) -> HostAction {
        self.handle(bytes).unwrap_or_else(|reason| {
            self.state = State::Closed;
            HostAction::Failed(Some(FromHost::Failure2(reason).emit(self.t_id)), reason)
        })
    }

    fn handle(&mut self, bytes: &[u8]) -> Result<HostAction, Explanation> {
        let (t_id, message) = FromController::parse(bytes)?;
        if let FromController::Failure1(reason) = message {
            self.state = State::Closed;
            return Ok(HostAction::Failed(None, reason));
        }
        if t_id != self.t_id {
            return Err(Explanation::IncorrectPayload);
        }
        match (std::mem::replace(&mut self.state, State::Closed), message) {
            (State::Challenge, FromController::Challenge(challenge)) => self.challenged(&challenge),
            (State::Success1 { response, psks }, FromController::Success1(proof)) => {
                self.succeeded(response, psks, proof)
            }
            _ => Err(Explanation::IncorrectMessage),
        }
    }

    fn challenged(&mut self, challenge: &Challenge<'_>) -> Result<HostAction, Explanation> {
        let (hash, group) = self.check(challenge)?;
        let random = self.credentials.random;
        let exchange = match group {
            Group::Null => None,
            _ => Some(open(group, random).ok_or(Explanation::Failed)?),
        };
        let shared_secret = match &exchange {
            None => None,
            Some(own) => {
                Some(own.shared_secret(challenge.public).ok_or(Explanation::GroupUnusable)?)
            }
        };
        let (t_id, sc_c) = (self.t_id, self.credentials.sc_c());
        let input = |sequence, challenge| ResponseInput {
            hash,
            t_id,
            sc_c,
            sequence,
            challenge,
            shared_secret: shared_secret.as_ref(),
        };
        let first = input(challenge.sequence, challenge.challenge);
        let response = first.response(&self.credentials.key, &self.names, Role::Host);
        let random = random_bytes::<64>(random).map_err(|_| Explanation::Failed)?;
        let own = random.get(..hash.size()).unwrap_or_default();
        // Zero if the challenge serves only for the generated PSK.
        let sequence = match &self.credentials.controller {
            Some(_) => self.sequence()?,
            None => 0,
        };
        let asks = sequence != 0 || sc_c != sc_c::NONE;
        let proof = self.credentials.controller.as_ref().filter(|_| sequence != 0).map(|key| {
            let expected = input(sequence, own).response(key, &self.names, Role::Controller);
            Secret::new(expected.to_vec())
        });
        let psks = self.psks(hash, shared_secret.as_ref(), challenge.challenge, own);
        let reply = FromHost::Reply(Reply {
            sequence,
            response: &response,
            challenge: asks.then_some(own),
            public: exchange.as_ref().map_or(&[][..], DhExchange::public),
        });
        self.state = State::Success1 { response: proof, psks };
        Ok(HostAction::Send(reply.emit(t_id)))
    }

    fn sequence(&self) -> Result<u32, Explanation> {
        let random = random_bytes::<4>(self.credentials.random).map_err(|_| Explanation::Failed)?;
        Ok(u32::from_le_bytes(*random).max(1))
    }

    /// Checks that the controller chose from the offer, and the lengths.
    fn check(&self, challenge: &Challenge<'_>) -> Result<(Hash, Group), Explanation> {
        let hash =
            Hash::parse(challenge.hash).filter(|hash| self.credentials.hashes.contains(hash));
        let hash = hash.ok_or(Explanation::HashUnusable)?;
        let group =
            Group::parse(challenge.group).filter(|group| self.credentials.groups.contains(group));
        let group = group.ok_or(Explanation::GroupUnusable)?;
        let is_valid = challenge.challenge.len() == hash.size()
            && challenge.public.len() == group.size()
            && challenge.sequence != 0;
        if is_valid { Ok((hash, group)) } else { Err(Explanation::IncorrectPayload) }
    }

    fn psks(&self, hash: Hash, shared_secret: Option<&Secret>, c1: &[u8], c2: &[u8]) -> Vec<Psk> {
        let Some(shared_secret) = shared_secret.filter(|_| self.credentials.concatenate) else {
            return Vec::new();
        };
        let psk = generated_psk(hash, shared_secret, c1, c2);
        psk::derive_generated(psk.bytes(), hash, false, &self.names.host, &self.names.subsystem)
    }

    fn succeeded(
        &mut self,
        response: Option<Secret>,
        psks: Vec<Psk>,
        proof: Option<&[u8]>,
    ) -> Result<HostAction, Explanation> {
        let Some(expected) = response else { return Ok(HostAction::Done(None, psks)) };
        let proven: bool = proof.is_some_and(|proof| expected.bytes().ct_eq(proof).into());
        if proven {
            Ok(HostAction::Done(Some(FromHost::Success2.emit(self.t_id)), psks))
        } else {
            Err(Explanation::Failed)
        }
    }
}

fn open(group: Group, random: RandomSource) -> Option<DhExchange> {
    DhExchange::generate(group, &*random_bytes::<PRIVATE_KEY_LEN>(random).ok()?)
}
