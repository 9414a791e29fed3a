//! Creates the sessions of the worker's connections, and derives the PSKs that are accepted in TLS
//! handshakes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use engine::tls::{self, Certificates, Psk};
use engine::{
    AnswerControl, ControlReply, MakeSession, NegotiationStep, Negotiator, NextStep, Security,
};
use export::{Auth, Catalogue, Host, KeyId, Peer, Secret, Session};
use nbd::server::{self as nbd_server, Next, Reaction};
use nvme::auth::{self, AuthConfig, Group, credential};
use nvme::nqn;
use nvme::target::{Port, Target};
use nvme::wire::fabrics::DISCOVERY_NQN;
use pair::{FailedAttempts, PairingServer};

use super::disks::Disks;
use crate::listen::Service;
use protocol::{Protocol, Role};

/// Factory of sessions.
pub(super) struct Sessions {
    pub(super) catalogue: Arc<Catalogue>,
    disks: Arc<Disks>,
    target: Arc<Target>,
    nbd: Arc<nbd_server::Server>,
    iscsi: Arc<iscsi::target::Server>,
    usb: Arc<usb::Server>,
    web: Arc<web::Server>,
    certificates: OwnCertificates,
    pairing: Mutex<Option<Arc<PairingServer>>>,
    keys: Mutex<HostKeys>,
}

/// The certificates of this machine.
#[derive(Default)]
pub(super) struct OwnCertificates {
    /// For NBD clients that use TLS without a PSK.
    pub(super) nbd: Option<Certificates>,
    /// For HTTPS.
    pub(super) web: Option<Certificates>,
}

/// PSKs of the hosts in the access policy, as of a generation of the catalogue.
#[derive(Default)]
struct HostKeys {
    generation: Option<u64>,
    nvme: Vec<Psk>,
    nbd: Vec<Psk>,
}

impl Sessions {
    /// `null_dh`: whether DH-HMAC-CHAP is accepted without a Diffie-Hellman exchange. Controller
    /// IDs start at `first_controller`. `machine` is the name of this machine.
    pub(super) fn new(
        disks: Arc<Disks>,
        machine: &str,
        null_dh: bool,
        certificates: OwnCertificates,
        first_controller: u16,
    ) -> Arc<Self> {
        let catalogue = Arc::new(Catalogue::default());
        let mut rules = AuthConfig::default();
        if null_dh {
            rules.groups.push(Group::Null);
        }
        Arc::new(Self {
            target: Target::with_config(catalogue.clone(), rules, first_controller),
            nbd: nbd_server::Server::new(catalogue.clone()),
            iscsi: iscsi::target::Server::new(catalogue.clone()),
            usb: usb::Server::new(catalogue.clone()),
            web: web::Server::new(
                catalogue.clone(),
                machine,
                Box::new(fill_random),
                SystemTime::now,
            ),
            certificates,
            catalogue,
            disks,
            pairing: Mutex::default(),
            keys: Mutex::default(),
        })
    }

    /// The pairing server, if pairing is enabled.
    pub(super) fn pairing_server(&self) -> Option<Arc<PairingServer>> {
        lock(&self.pairing).clone()
    }

    /// Enables pairing under the machine name `name`, with the failed attempts so far.
    pub(super) fn pair(&self, name: &str, tries: FailedAttempts, now: Instant) {
        *lock(&self.pairing) = Some(PairingServer::resume(name, now, Box::new(fill_random), tries));
    }

    /// Replaces the code for reading by HTTPS. The opener sends no malformed one.
    pub(super) fn set_reading_code(&self, code: &Secret) {
        let code = std::str::from_utf8(code.bytes()).ok().and_then(web::Code::parse);
        code.into_iter().for_each(|code| self.web.set_code(code));
    }

    /// The session factory of a listener.
    pub(super) fn open(self: &Arc<Self>, serves: Service) -> MakeSession {
        match serves.protocol {
            Protocol::Nvme => self.open_nvme(match serves.role {
                Role::Disks => Port::Any,
                Role::Discovery => Port::Discovery { disks_at: nvme::PORT },
            }),
            Protocol::Nbd => self.open_nbd(nbd_server::Start::HelloSent),
            Protocol::Iscsi => self.open_iscsi(),
            Protocol::Http | Protocol::Https => self.open_http(),
        }
    }

    fn open_nvme(self: &Arc<Self>, port: Port) -> MakeSession {
        let sessions = self.clone();
        Arc::new(move |peer, account, now| {
            let pairing = sessions.pairing_server().filter(|_| is_pairing_channel(&peer));
            match pairing {
                Some(pairing) => Box::new(pairing.open_session(peer, now)) as Box<dyn Session>,
                None => Box::new(sessions.target.session(peer, port, account, now)),
            }
        })
    }

    fn open_iscsi(&self) -> MakeSession {
        let server = self.iscsi.clone();
        Arc::new(move |peer, account, now| Box::new(server.session(peer, account, now)))
    }

    fn open_http(&self) -> MakeSession {
        let server = self.web.clone();
        Arc::new(move |peer, account, now| Box::new(server.session(peer, account, now)))
    }

    /// The session factory of a USB cable, and what answers its class requests.
    pub(super) fn open_usb(&self) -> (MakeSession, AnswerControl) {
        let (sessions, control) = (self.usb.clone(), self.usb.clone());
        let open = move |peer, account, now| {
            Box::new(sessions.session(peer, account, now)) as Box<dyn Session>
        };
        let answer = move |setup| match usb::control::reply(setup, control.units(&Peer::usb())) {
            usb::control::Reply::Data(byte) => ControlReply::Data(byte),
            usb::control::Reply::Reset => ControlReply::Reset,
            usb::control::Reply::Stall => ControlReply::Stall,
        };
        (Arc::new(open), Arc::new(answer))
    }

    fn open_nbd(&self, start: nbd_server::Start) -> MakeSession {
        let server = self.nbd.clone();
        Arc::new(move |peer, account, now| Box::new(server.session(peer, start, account, now)))
    }

    /// What a listener demands of connections.
    pub(super) fn security(self: &Arc<Self>, auth: Auth, serves: Service) -> Security {
        let (keys, catalogue) = (self.clone(), self.catalogue.clone());
        let schemes = serves.protocol.row().schemes;
        let plain = move || {
            if auth == Auth::None {
                return true;
            }
            let policy = catalogue.policy();
            policy.hosts.iter().any(|host| host.authenticates_in_plaintext(schemes))
        };
        let security = Security { auth, plain: Arc::new(plain), ..Security::open() };
        match serves.protocol {
            Protocol::Nvme => Security { keys: Some(Arc::new(move || keys.keys())), ..security },
            Protocol::Iscsi | Protocol::Http => security,
            Protocol::Https => Security {
                plain: Arc::new(|| false),
                certificates: self.certificates.web.clone(),
                ..security
            },
            Protocol::Nbd => Security {
                keys: Some(Arc::new(move || keys.with_host_keys(|keys| keys.nbd.clone()))),
                negotiation: Some(self.negotiators(auth)),
                certificates: self.certificates.nbd.clone(),
                ..security
            },
        }
    }

    /// Factory of the plaintext negotiation before TLS with NBD clients.
    fn negotiators(self: &Arc<Self>, auth: Auth) -> Arc<dyn Fn(&Peer) -> Negotiator + Send + Sync> {
        let sessions = self.clone();
        Arc::new(move |_| {
            let sessions = sessions.clone();
            let mut greeter = nbd_server::greet(auth == Auth::Required, sessions.can_secure());
            Box::new(move |bytes| sessions.negotiation_step(greeter.receive(bytes)))
        })
    }

    /// Whether there is a key or certificate for TLS.
    fn can_secure(&self) -> bool {
        self.certificates.nbd.is_some() || self.with_host_keys(|keys| !keys.nbd.is_empty())
    }

    fn negotiation_step(&self, reaction: Reaction) -> NegotiationStep {
        let next = match reaction.next {
            Next::Wait => NextStep::Wait,
            Next::Plain => NextStep::Plain,
            Next::StartTls { no_zeroes } => {
                NextStep::Secure(self.open_nbd(nbd_server::Start::InTls { no_zeroes }))
            }
            Next::Refuse(reason) => NextStep::Refuse(reason),
            Next::Close => NextStep::Close,
        };
        NegotiationStep { consumed: reaction.consumed, reply: reaction.reply, next }
    }

    /// The PSKs that NVMe/TCP hosts may use now.
    fn keys(&self) -> Vec<Psk> {
        let mut psks = self.with_host_keys(|keys| keys.nvme.clone());
        let generated = self.target.generated_psks(Instant::now());
        psks.extend(generated.into_iter().filter_map(|(key, psk)| to_tls_psk(psk, key)));
        psks.extend(self.pairing_server().map(|_| pairing_psk()));
        psks
    }

    /// Calls `look` with the PSKs of all hosts; derives them again if exports or policy have
    /// changed.
    fn with_host_keys<T>(&self, look: impl FnOnce(&HostKeys) -> T) -> T {
        let mut keys = lock(&self.keys);
        let generation = self.catalogue.generation();
        if keys.generation != Some(generation) {
            let policy = self.catalogue.policy();
            keys.nvme = policy.hosts.iter().flat_map(|host| self.psks_of(host)).collect();
            keys.nbd = policy.hosts.iter().flat_map(|host| nbd_psks_of(host)).collect();
            keys.generation = Some(generation);
        }
        look(&keys)
    }

    /// PSKs of a host: one per NQN that it may connect to.
    fn psks_of(&self, host: &Host) -> Vec<Psk> {
        let Some(own) = host.credential(credential::TLS_PSK) else { return Vec::new() };
        let lent = self.disks.lent();
        let allowed = lent.iter().filter(|export| host.access(export).is_some());
        let names = allowed.map(|export| nqn::of(&export.id)).chain([DISCOVERY_NQN.to_owned()]);
        let compat = credential::is_compat(own);
        let derived = |name: &str| auth::psk::derive_psks(&own.secret, compat, &host.id, name);
        // Invalid keys were reported when they were read.
        let psks = names.flat_map(|name| derived(&name).unwrap_or_default());
        psks.filter_map(|psk| to_tls_psk(psk, host.key)).collect()
    }
}

/// NBD PSKs of a host: one per identity that it may present.
fn nbd_psks_of(host: &Host) -> Vec<Psk> {
    let Some(own) = host.credential(nbd::credential::TLS_PSK) else { return Vec::new() };
    let named = |name: &String| Psk {
        identity: name.clone(),
        secret: own.secret.clone(),
        hash: tls::Hash::Sha256,
        key: Some(host.key),
    };
    [&host.name, &host.id].map(named).into()
}

/// Whether the peer used the well-known pairing PSK.
fn is_pairing_channel(peer: &Peer) -> bool {
    peer.channel.as_ref().is_some_and(|channel| channel.identity == pair::IDENTITY)
}

fn to_tls_psk(psk: auth::psk::Psk, key: KeyId) -> Option<Psk> {
    let hash = match psk.hash {
        auth::Hash::Sha256 => tls::Hash::Sha256,
        auth::Hash::Sha384 => tls::Hash::Sha384,
        auth::Hash::Sha512 => return None,
    };
    Some(Psk { identity: psk.identity, secret: psk.secret, hash, key: Some(key) })
}

fn pairing_psk() -> Psk {
    let secret = Secret::new(pair::PSK.to_vec());
    Psk { identity: pair::IDENTITY.to_owned(), secret, hash: tls::Hash::Sha256, key: None }
}

/// Aborts if the CSPRNG fails: a predictable pairing code must never be shown, and no entity tag be used
/// twice.
fn fill_random(bytes: &mut [u8]) {
    if !auth::chap::system_random(bytes) {
        std::process::abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
