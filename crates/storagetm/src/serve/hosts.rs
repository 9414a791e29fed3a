//! The access rules of hosts, and pairing.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use console::{AccessRequest, Answer, Pairing, Unavailable};
use daemon::access_control::{self, AccessControl, PendingPairing};
use daemon::event::ServeEvent;
use export::{Access, Event, Policy};
use keys::store::NotAdded;
use linux::tree::Tree;
use pair::{ServerStatus, Verdict};
use protocol::endpoint::Endpoint;

use super::Context;
use super::config::{PairingMode, ServeConfig};
use super::exports::Exports;
use super::network::Network;
use super::ui::Ui;

pub(super) struct Hosts {
    access_control: AccessControl,
    /// Why no pairing code is shown, if so.
    unavailable: Option<Unavailable>,
    /// Whether pairing codes are reported as events.
    reports_codes: bool,
    /// When the lockout after a wrong pairing code ends.
    lockout_end: Option<Instant>,
}

impl Hosts {
    /// Opens the access rules. Without a state directory no host is authorized by key, and the
    /// reason is returned.
    pub(super) fn open(config: &ServeConfig, may_require_key: bool) -> (Self, Option<String>) {
        let boot = config.is_target().then(Tree::machine);
        let keys = config.keys.as_deref();
        let opened = match may_require_key || config.is_target() {
            true => AccessControl::open(keys, boot.as_ref()),
            false => AccessControl::open_existing(keys),
        };
        let (access_control, note) = match opened {
            Ok(access_control) => (access_control, None),
            Err(failure) => {
                let note = format!("No host can be authorized by a key: {failure}.");
                (AccessControl::none(), Some(note))
            }
        };
        let reports_codes = config.pairing == PairingMode::Reported;
        (Self { access_control, unavailable: None, reports_codes, lockout_end: None }, note)
    }

    /// Starts pairing if the code can be shown and hosts can be stored.
    pub(super) fn start_pairing(&mut self, mode: PairingMode, network: &Network, cx: &Context<'_>) {
        self.unavailable = match mode {
            _ if !self.access_control.can_pair() => Some(Unavailable::NoStore),
            _ if !network.may_require_key() => Some(Unavailable::Disabled),
            PairingMode::Disabled => Some(Unavailable::Disabled),
            PairingMode::OnScreen if !cx.ui.has_screen() => Some(Unavailable::NoTerminal),
            PairingMode::OnScreen | PairingMode::Reported => None,
        };
        if self.unavailable.is_none() {
            cx.worker.enable_pairing(network.machine());
        }
    }

    pub(super) fn policy(&self) -> &Policy {
        self.access_control.policy()
    }

    /// Returns the state of pairing for the screen.
    pub(super) fn pairing(&self, endpoints: &[Endpoint]) -> Option<Pairing> {
        let unavailable = || self.unavailable.map(Pairing::Unavailable);
        self.access_control.pairing(endpoints).or_else(unavailable)
    }

    /// Returns the request that the screen asks about.
    pub(super) fn prompt(&self) -> Option<AccessRequest> {
        self.access_control.prompt()
    }

    /// Records that the screen asks about the current request.
    pub(super) fn mark_prompted(&mut self) {
        self.access_control.mark_prompted();
    }

    /// Grants read access to a host that knew the code; write access is asked for on the screen.
    pub(super) fn pairing_requested(
        &mut self,
        caller: PendingPairing,
        network: &Network,
        exports: &Exports,
        cx: &mut Context<'_>,
    ) {
        if caller.request.writable && cx.ui.has_screen() {
            let PendingPairing { peer, request } = &caller;
            let asking = Event::PairingRequested { peer: peer.clone(), request: request.clone() };
            let protocol = network.protocol_of(peer);
            cx.ui.report(&ServeEvent::of(asking, &Policy::default(), protocol));
            self.access_control.enqueue(caller);
            return;
        }
        if caller.request.writable {
            cx.ui.report(&ServeEvent::note(
                "There is no screen here to ask at whether the machine that knew the code may change \
                 disks: it may read them.",
            ));
        }
        self.decide(&caller, Some(Access::ReadOnly), exports, cx);
    }

    /// Stores the host if access is granted, and sends the verdict.
    fn decide(
        &mut self,
        caller: &PendingPairing,
        access: Option<Access>,
        exports: &Exports,
        cx: &mut Context<'_>,
    ) {
        let PendingPairing { peer, request } = caller;
        let kept = access.map(|access| (access, self.access_control.add_host(request, access)));
        let verdict = match kept {
            None => Verdict::Denied,
            Some((_, Err(reason))) => {
                let sentence = format!("{} is not authorized: {reason}", request.name);
                cx.ui.report(&ServeEvent::note(sentence));
                match reason {
                    NotAdded::Expired(_) => Verdict::Expired,
                    NotAdded::Failed(failure) if failure.is_storage_full() => Verdict::NoSpace,
                    NotAdded::Failed(_) => Verdict::NotStored,
                }
            }
            Some((access, Ok(()))) => {
                self.apply_changes(cx);
                cx.ui.report(&ServeEvent::paired(peer, request, access));
                // A known host has kept the disks of its rules.
                let host = self.policy().host(&request.host);
                let exports = || exports.status().exports();
                let disks = host.map(|host| access_control::disk_list(exports(), host));
                Verdict::Granted { access, disks: disks.unwrap_or_default() }
            }
        };
        cx.worker.answer(request.number, verdict);
        cx.ui.draw_soon(false);
    }

    /// Applies the user's answer to the pending request.
    pub(super) fn answer(&mut self, answer: Answer, exports: &Exports, cx: &mut Context<'_>) {
        if let Some(caller) = self.access_control.take_answered() {
            let access = access_control::granted_access(answer);
            self.decide(&caller, access, exports, cx);
        }
    }

    /// Shows the current pairing code.
    pub(super) fn show_code(&mut self, view: ServerStatus, endpoints: &[Endpoint], ui: &mut Ui) {
        self.lockout_end = view.wait_until;
        if view.locked && !self.access_control.is_stopped() {
            let left = view.wait_until.map(|until| until.saturating_duration_since(Instant::now()));
            let minutes = left.unwrap_or_default().as_secs().div_ceil(60);
            ui.report(&ServeEvent::note(format!(
                "Pairing has stopped after too many wrong codes. It goes on by itself in {minutes} minutes; at once if c is \
                 pressed at this screen, or by: kill -USR1 {}",
                std::process::id()
            )));
        }
        let is_reported = self.access_control.set_view(view) && self.reports_codes;
        let code = self.access_control.code(endpoints).filter(|_| is_reported);
        if let Some((code, link)) = code {
            ui.emit(&ServeEvent::Pairing { code, link });
        }
        ui.draw_soon(is_reported);
    }

    /// Readable when the access rules have changed.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.access_control.descriptor()
    }

    /// Returns the time of the next timer.
    pub(super) fn due(&self) -> Option<Instant> {
        self.access_control.due().into_iter().chain(self.lockout_end).min()
    }

    /// Shows the pairing code again when its lockout has ended.
    pub(super) fn run_timers(&mut self, ui: &mut Ui, now: Instant) {
        if self.lockout_end.take_if(|end| *end <= now).is_some() {
            ui.draw_soon(self.reports_codes);
        }
    }

    /// Applies the access rules if they have changed.
    pub(super) fn receive(&mut self, cx: &mut Context<'_>) {
        if self.access_control.has_changed(cx.now) {
            self.apply_changes(cx);
        }
    }

    /// Applies changed access rules: hosts that have lost their access are disconnected.
    pub(super) fn apply_changes(&mut self, cx: &mut Context<'_>) {
        let (policy, complaints) = self.access_control.read(cx.now);
        policy.into_iter().for_each(|policy| cx.worker.set_policy(policy));
        for complaint in complaints {
            cx.ui.report(&ServeEvent::note(complaint));
        }
    }
}
