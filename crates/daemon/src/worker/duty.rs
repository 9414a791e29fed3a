//! `storagetm worker`: the process that serves. It takes orders from the one that started it, and knows nothing else of
//! the machine: no file, no name, no address that it was not handed.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use std::{io, thread};

use engine::{Config, Engine};
use export::Notice;
use linux::sandbox;
use linux::signal::Signals;
use rustix::net::{AddressFamily, getsockname};

use super::disks::Disks;
use super::scribe::{Scribe, nudge};
use super::sessions::Sessions;
use super::words::{self, CertificatesWord, LONGEST_ORDER, Lent, Order, Report, Start};
use super::{check_locked, words::auth};
use crate::listen::Serves;
use crate::mailbox::Mailbox;
use crate::tally::Tally;
use failure::{Failure, spawn_error};
use ipc::channel::{self, Receiver, Sender};

/// Serves, until it is told to stop or nobody is there to tell.
///
/// # Errors
/// It was not started by `storagetm serve`.
pub fn work() -> Result<(), Failure> {
    let socket = socket().ok_or_else(|| {
        Failure::usage("storagetm worker is a part of storagetm serve, which starts it by itself")
    })?;
    // What a terminal or a service manager tells all processes is the opener's to act upon.
    let _deaf = Signals::open();
    let Some(parent) = rustix::process::getppid() else { return Ok(()) };
    let Ok(unconfined) = sandbox::drop_privileges(parent) else { return Ok(()) };
    let Ok((sender, mut orders)) = channel::split(socket, LONGEST_ORDER) else { return Ok(()) };
    let Ok(Some((Order::Start(start), _))) = orders.receive() else { return Ok(()) };
    match Duty::begin(&start, &sender, unconfined) {
        Ok(duty) => duty.run(sender, orders),
        Err(sentence) => drop(sender.send(&Report::Failed { sentence }, None)),
    }
    Ok(())
}

/// The socket to the opener: where others have their standard input.
fn socket() -> Option<UnixStream> {
    let input = io::stdin().as_fd().try_clone_to_owned().ok()?;
    let address = getsockname(&input).ok()?;
    (address.address_family() == AddressFamily::UNIX).then(|| input.into())
}

/// What the worker works with.
struct Duty {
    engine: Engine,
    sessions: Arc<Sessions>,
    disks: Arc<Disks>,
    mailbox: Mailbox,
    stopped: Arc<OnceLock<bool>>,
    scribe: Option<thread::JoinHandle<()>>,
}

impl Duty {
    /// Opens all that is ever opened, and gives away the right to open more. In what that did not work is reported.
    ///
    /// # Errors
    /// A sentence.
    fn begin(start: &Start, sender: &Sender, mut unconfined: Vec<String>) -> Result<Self, String> {
        let cannot = |error: io::Error| format!("cannot start to serve: {}", spawn_error(&error));
        engine::tls::prepare().map_err(cannot)?;
        let certificates = start.certificates.as_ref();
        let certificates = certificates.map(CertificatesWord::certificates).transpose()?;
        unconfined.extend(sandbox::restrict_files());
        let mailbox = Mailbox::open().map_err(|error| cannot(error.into()))?;
        let events = mailbox.clone();
        let config = Config {
            driver: start.driver.into(),
            threads: start.threads,
            memory: start.memory,
            budget: start.budget,
            connections: start.connections,
            ..Config::default()
        };
        let sink = Arc::new(move |event| events.put(event));
        let engine = Engine::start(config, sink).map_err(cannot)?;
        unconfined.extend(sandbox::restrict_syscalls());
        let report = Report::running(engine.driver(), unconfined);
        sender.send(&report, None).map_err(cannot)?;
        let disks = Arc::<Disks>::default();
        Ok(Self {
            engine,
            sessions: Sessions::new(
                disks.clone(),
                start.null_dh,
                certificates,
                start.first_controller,
            ),
            disks,
            mailbox,
            stopped: Arc::default(),
            scribe: None,
        })
    }

    /// Takes orders to the last one. Without the opener there is nothing left to do.
    fn run(mut self, sender: Sender, mut orders: Receiver) {
        let scribe = Scribe {
            sender,
            mailbox: self.mailbox.clone(),
            disks: self.disks.clone(),
            sessions: self.sessions.clone(),
            stopped: self.stopped.clone(),
            attached: 0,
            tally: Tally::default(),
            lost: 0,
            pairing: None,
        };
        let scribe = thread::Builder::new().name("scribe".to_owned()).spawn(|| scribe.run());
        // Without it nobody would hear what happens here: another worker may have more luck.
        let Ok(scribe) = scribe else { return };
        self.scribe = Some(scribe);
        while let Ok(Some((order, descriptor))) = orders.receive() {
            if let Order::Stop { milliseconds } = order {
                return self.stop(Duration::from_millis(milliseconds));
            }
            self.obey(order, descriptor);
        }
    }

    fn obey(&self, order: Order, descriptor: Option<OwnedFd>) {
        match (order, descriptor) {
            (Order::Accept { keyed, serves }, Some(listener)) => {
                self.accept(listener, keyed, serves);
            }
            (Order::Adopt { keyed, serves }, Some(connection)) => {
                self.adopt(connection, keyed, serves);
            }
            (Order::Lend(lent), Some(disk)) => self.lend(*lent, disk),
            (Order::Withdraw { disk }, _) => self.withdraw(disk),
            (Order::Resize { disk, bytes }, _) => {
                let export = self.disks.find(disk);
                let _ = export.is_some_and(|export| export.resize(bytes));
            }
            (Order::FailFlush { disk }, _) => {
                if let Some(export) = self.disks.find(disk) {
                    export.flush_failed();
                }
            }
            (Order::Follow { hosts }, _) => {
                self.sessions.catalogue.set_policy(words::policy(hosts))
            }
            (Order::Pair { name, tries }, _) => {
                let now = Instant::now();
                self.sessions.pair(&name, tries.tries(now), now);
            }
            (Order::Unlock, _) => self.with_desk(|desk| desk.unlock(Instant::now())),
            (Order::Answer { number, verdict }, _) => {
                // Nobody hears it who waits no longer.
                self.with_desk(|desk| {
                    let _ = desk.answer(number, verdict.into());
                });
            }
            // The opener says this once, or with a descriptor.
            (Order::Start(_) | Order::Stop { .. }, _)
            | (Order::Accept { .. } | Order::Adopt { .. } | Order::Lend(_), None) => return,
        }
        self.engine.notify(Notice::StateChanged);
        nudge(&self.mailbox);
    }

    fn accept(&self, listener: OwnedFd, keyed: bool, serves: Serves) {
        let security = self.sessions.security(auth(keyed), serves);
        let open = self.sessions.open(serves);
        if let Err(error) = self.engine.accept(listener, security, open) {
            self.mailbox.note(format!("connections cannot be accepted: {error}"));
        }
    }

    fn adopt(&self, connection: OwnedFd, keyed: bool, serves: Serves) {
        let security = self.sessions.security(auth(keyed), serves);
        let open = self.sessions.open(serves);
        if let Err(error) = self.engine.adopt(connection, security, open) {
            self.mailbox.note(format!("the connection cannot be served: {error}"));
        }
    }

    fn lend(&self, lent: Lent, descriptor: OwnedFd) {
        let disk = lent.disk;
        let Some(export) = lent.export(descriptor) else { return };
        if let Err(sentence) = check_locked(&export) {
            return self.mailbox.note(sentence);
        }
        let export = Arc::new(export);
        self.disks.add(disk, export.clone());
        self.sessions.catalogue.publish(export);
    }

    fn withdraw(&self, disk: u64) {
        let Some(export) = self.disks.find(disk) else { return };
        self.disks.withdraw(disk);
        let catalogue = &self.sessions.catalogue;
        export.withdraw();
        // Another disk may be lent by that name meanwhile.
        if catalogue.find(&export.nqn).is_some_and(|lent| Arc::ptr_eq(&lent, &export)) {
            catalogue.withdraw(&export.nqn);
        }
    }

    fn with_desk(&self, act: impl FnOnce(&pair::PairingServer)) {
        if let Some(desk) = self.sessions.desk() {
            act(&desk);
        }
    }

    fn stop(self, patience: Duration) {
        let in_time = self.engine.stop(patience);
        let _ = self.stopped.set(in_time);
        nudge(&self.mailbox);
        if let Some(scribe) = self.scribe {
            // One that panicked has said so.
            drop(scribe.join());
        }
    }
}
