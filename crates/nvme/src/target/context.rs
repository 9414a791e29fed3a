//! Environment of a connection: target, peer, port, time and the identity that the peer has proven.

use std::sync::Arc;
use std::time::Instant;

use export::{Auth, Caller, KeyId, Peer};

use super::{HANDSHAKE_TIMEOUT, Port, Target};

/// Target, peer and time of a connection.
#[derive(Debug)]
pub(super) struct Context {
    target: Arc<Target>,
    peer: Peer,
    port: Port,
    opened_at: Instant,
    now: Instant,
    /// The key that the host has authenticated with in band.
    proven: Option<KeyId>,
}

impl Context {
    pub(super) fn new(target: Arc<Target>, peer: Peer, port: Port, now: Instant) -> Self {
        Self { target, peer, port, opened_at: now, now, proven: None }
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    pub(super) fn peer(&self) -> &Peer {
        &self.peer
    }

    pub(super) fn port(&self) -> Port {
        self.port
    }

    pub(super) fn now(&self) -> Instant {
        self.now
    }

    pub(super) fn set_now(&mut self, now: Instant) {
        self.now = now;
    }

    /// Returns when Connect and authentication must have completed.
    pub(super) fn handshake_deadline(&self) -> Instant {
        self.opened_at + HANDSHAKE_TIMEOUT
    }

    /// Returns whether hosts need a key here.
    pub(super) fn requires_keys(&self) -> bool {
        self.peer.auth == Auth::Required
    }

    /// Returns the key of the TLS channel. The outer option is `None` without TLS, the inner one if the
    /// channel was opened with a public key.
    pub(super) fn channel(&self) -> Option<Option<KeyId>> {
        self.peer.channel.as_ref().map(|channel| channel.key)
    }

    /// Returns the key that the host has authenticated with in band.
    pub(super) fn proven(&self) -> Option<KeyId> {
        self.proven
    }

    pub(super) fn set_proven(&mut self, key: Option<KeyId>) {
        self.proven = key;
    }

    /// Returns the caller for the policy: peer, host NQN, authenticated key.
    pub(super) fn caller<'a>(&'a self, host: &'a str) -> Caller<'a> {
        Caller { peer: &self.peer, host, proven: self.proven }
    }
}
