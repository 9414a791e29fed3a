//! `storagetm worker`: the worker process. It receives requests from the opener and has access to
//! nothing but the descriptors that it receives.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use std::{io, thread};

use engine::{Endpoints, Engine};
use export::{Auth, BaseLayout, Layout, Notice};
use linux::sandbox;
use linux::signal::Signals;
use rustix::net::{AddressFamily, getsockname};

use super::Config;
use super::disks::{Disks, check_locked};
use super::messages::{ExportWire, MAX_REQUEST, Report, Request, ReservationsWire};
use super::reporter::Reporter;
use super::reservations::UnreportedReservations;
use super::sessions::{OwnCertificates, Sessions};
use crate::certificates::Certificates;
use crate::inbox::Inbox;
use crate::listen::Service;
use crate::rate_limit::EventRateLimit;
use failure::{Failure, spawn_error};
use ipc::channel::{self, Receiver, Sender};

/// Serves until told to stop, or until the opener exits.
///
/// # Errors
/// Fails if it was not started by `storagetm serve`.
pub fn work() -> Result<(), Failure> {
    let socket = socket().ok_or_else(|| {
        Failure::usage("storagetm worker is a part of storagetm serve, which starts it by itself")
    })?;
    // Signals from the terminal or the service manager are handled by the opener.
    let _ignored = Signals::open();
    let Some(parent) = rustix::process::getppid() else { return Ok(()) };
    let Ok(unconfined) = sandbox::drop_privileges(parent) else { return Ok(()) };
    let Ok((sender, mut requests)) = channel::split(socket, MAX_REQUEST) else { return Ok(()) };
    let Ok(Some((Request::Start(config), _))) = requests.receive() else { return Ok(()) };
    match WorkerProcess::start(*config, &sender, unconfined) {
        Ok(worker) => worker.run(sender, requests),
        Err(sentence) => drop(sender.send(&Report::Failed { sentence }, &[])),
    }
    Ok(())
}

/// The socket to the opener, passed as standard input.
fn socket() -> Option<UnixStream> {
    let input = io::stdin().as_fd().try_clone_to_owned().ok()?;
    let address = getsockname(&input).ok()?;
    (address.address_family() == AddressFamily::UNIX).then(|| input.into())
}

/// State of the worker process.
struct WorkerProcess {
    engine: Engine,
    sessions: Arc<Sessions>,
    disks: Arc<Disks>,
    inbox: Inbox,
    stopped: Arc<OnceLock<bool>>,
    reporter: Option<thread::JoinHandle<()>>,
}

impl WorkerProcess {
    /// Opens all resources, then drops the right to open more. Reports what could not be
    /// restricted.
    ///
    /// # Errors
    /// Fails with a message for the user.
    fn start(config: Config, sender: &Sender, mut unconfined: Vec<String>) -> Result<Self, String> {
        let cannot = |error: io::Error| format!("cannot start to serve: {}", spawn_error(&error));
        engine::tls::prepare().map_err(cannot)?;
        let certificates = config.certificates.as_ref().map(Certificates::parse).transpose()?;
        let web_certificate = config.web_certificate.as_ref().map(Certificates::parse_in_band);
        let web_certificate = web_certificate.transpose()?;
        let machine = linux::net::hostname();
        unconfined.extend(sandbox::restrict_files());
        let inbox = Inbox::open().map_err(|error| cannot(error.into()))?;
        let events = inbox.clone();
        let sink = Arc::new(move |event| events.put(event));
        let engine = Engine::start(config.engine, sink).map_err(cannot)?;
        unconfined.extend(sandbox::restrict_syscalls());
        let report = Report::Running { running: engine.driver().clone(), unconfined };
        sender.send(&report, &[]).map_err(cannot)?;
        let disks = Arc::<Disks>::default();
        Ok(Self {
            engine,
            sessions: Sessions::new(
                disks.clone(),
                &machine,
                config.null_dh,
                OwnCertificates { nbd: certificates, web: web_certificate },
                config.first_controller,
            ),
            disks,
            inbox,
            stopped: Arc::default(),
            reporter: None,
        })
    }

    /// Handles requests until the channel is closed.
    fn run(mut self, sender: Sender, mut requests: Receiver) {
        let reporter = Reporter {
            sender,
            inbox: self.inbox.clone(),
            disks: self.disks.clone(),
            sessions: self.sessions.clone(),
            stopped: self.stopped.clone(),
            attached: 0,
            rate_limit: EventRateLimit::default(),
            lost: 0,
            pairing: None,
        };
        let reporter = thread::Builder::new().name("reporter".to_owned()).spawn(|| reporter.run());
        // Without the reporter no event would reach the opener: exit, and be replaced.
        let Ok(reporter) = reporter else { return };
        self.reporter = Some(reporter);
        while let Ok(Some((request, descriptors))) = requests.receive() {
            if let Request::Stop { milliseconds } = request {
                return self.stop(Duration::from_millis(milliseconds));
            }
            self.handle(request, descriptors);
        }
    }

    fn handle(&self, request: Request, mut descriptors: Vec<OwnedFd>) {
        match request {
            Request::Accept { auth, serves } => {
                let Some(listener) = descriptors.pop() else { return };
                self.accept(listener, auth, serves);
            }
            Request::Adopt { auth, serves } => {
                let Some(connection) = descriptors.pop() else { return };
                self.adopt(connection, auth, serves);
            }
            Request::Plug => self.plug(descriptors),
            Request::Lend(lent) => self.lend(*lent, descriptors),
            Request::Withdraw { disk } => self.withdraw(disk),
            Request::Resize { disk, bytes } => {
                let Some(export) = self.disks.find(disk) else { return };
                export.resize(bytes);
                self.engine.export_changed(&export);
                return self.inbox.wake();
            }
            Request::ReservationsSaved { disk, sequence, is_stored } => {
                let Some(export) = self.disks.find(disk) else { return };
                export.reservations_saved(sequence, is_stored);
                return self.engine.export_changed(&export);
            }
            Request::FailFlush { disk } => {
                if let Some(export) = self.disks.find(disk) {
                    export.flush_failed();
                }
            }
            Request::SetPolicy { policy } => self.sessions.catalogue.set_policy(policy),
            Request::EnablePairing { name, tries } => {
                let now = Instant::now();
                self.sessions.pair(&name, tries.tries(now), now);
            }
            Request::SetReadingCode { code } => self.sessions.set_reading_code(&code),
            Request::Unlock => self.with_pairing_server(|server| server.unlock(Instant::now())),
            Request::Answer { number, verdict } => {
                // Fails if the client disconnected: nothing to do.
                self.with_pairing_server(|server| {
                    let _ = server.answer(number, verdict);
                });
            }
            // The opener does not send a second start, and the caller handles a stop.
            Request::Start(_) | Request::Stop { .. } => return,
        }
        self.engine.notify(Notice::StateChanged);
        self.inbox.wake();
    }

    fn accept(&self, listener: OwnedFd, auth: Auth, serves: Service) {
        let security = self.sessions.security(auth, serves);
        let open = self.sessions.open(serves);
        if let Err(error) = self.engine.accept(listener, security, open) {
            self.inbox.note(format!("connections cannot be accepted: {error}"));
        }
    }

    fn adopt(&self, connection: OwnedFd, auth: Auth, serves: Service) {
        let security = self.sessions.security(auth, serves);
        let open = self.sessions.open(serves);
        if let Err(error) = self.engine.adopt(connection, security, open) {
            self.inbox.note(format!("the connection cannot be served: {error}"));
        }
    }

    fn plug(&self, descriptors: Vec<OwnedFd>) {
        let Ok([control, bulk_in, bulk_out]) = <[OwnedFd; 3]>::try_from(descriptors) else {
            return;
        };
        let endpoints = Endpoints { control, bulk_in, bulk_out };
        let (open, answer) = self.sessions.open_usb();
        if let Err(error) = self.engine.serve_endpoints(endpoints, open, answer) {
            self.inbox.note(format!("the USB port cannot be served: {error}"));
        }
    }

    fn lend(&self, mut lent: ExportWire, descriptors: Vec<OwnedFd>) {
        let disk = lent.disk;
        let reservations = lent.reservations.take();
        let Some(export) = lent.export(descriptors) else { return };
        if let Err(sentence) = check_locked(&export) {
            return self.inbox.note(sentence);
        }
        let export = Arc::new(export);
        if let Err(fault) = engine::prepare(&export) {
            let name = &export.name;
            let what = match export.backing().layout() {
                Layout { base: BaseLayout::Virtual, overlay: None } => "the table of its blocks",
                Layout { base: BaseLayout::Virtual, .. } => {
                    "its overlay or the table of its blocks"
                }
                Layout { base: BaseLayout::Raw, .. } => "its overlay",
                Layout { base: BaseLayout::Rescued(_), .. } => "what is known of its blocks",
            };
            return self.inbox.note(format!("{name} is not lent: {what} cannot be read: {fault}"));
        }
        let unreported = reservations.map(|ReservationsWire { saved }| {
            let unreported = Arc::new(UnreportedReservations::new(self.inbox.clone()));
            export.set_reservation_store(unreported.clone(), saved);
            unreported
        });
        self.disks.add(disk, export, unreported, &self.sessions.catalogue);
    }

    fn withdraw(&self, disk: u64) {
        let Some(export) = self.disks.find(disk) else { return };
        self.disks.withdraw(disk);
        let catalogue = &self.sessions.catalogue;
        export.withdraw();
        // Another disk may be exported under this ID by now.
        if catalogue.find(&export.id).is_some_and(|lent| Arc::ptr_eq(&lent, &export)) {
            catalogue.withdraw(&export.id);
        }
    }

    fn with_pairing_server(&self, act: impl FnOnce(&pair::PairingServer)) {
        if let Some(server) = self.sessions.pairing_server() {
            act(&server);
        }
    }

    fn stop(self, patience: Duration) {
        let in_time = self.engine.stop(patience);
        let _ = self.stopped.set(in_time);
        self.inbox.wake();
        if let Some(reporter) = self.reporter {
            // A panic was already reported.
            drop(reporter.join());
        }
    }
}
