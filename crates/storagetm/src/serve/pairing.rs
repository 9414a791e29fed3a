//! Pairing requests, and changes of the access rules.

use std::time::Instant;

use console::Answer;
use export::{Access, Event, Policy};
use pair::{ServerStatus, Verdict};

use super::Server;
use daemon::access_control::{self, PendingPairing};
use daemon::event::ServeEvent;

impl Server {
    /// Grants read access to a host that knew the code; write access is asked for on the screen.
    pub(super) fn pairing_requested(&mut self, caller: PendingPairing, now: Instant) {
        let somebody = self.console_ui.is_some() || self.terminal_keys.is_some();
        if caller.request.writable && somebody {
            let PendingPairing { peer, request } = &caller;
            let asking = Event::PairingRequested { peer: peer.clone(), request: request.clone() };
            let protocol = self.listeners.protocol_of(peer);
            let asking = ServeEvent::of(asking, &Policy::default(), protocol);
            self.report(&asking);
            self.access_control.enqueue(caller);
            return;
        }
        if caller.request.writable {
            self.report(&ServeEvent::note(
                "There is no screen here to ask at whether the machine that knew the code may change \
                 disks: it may read them.",
            ));
        }
        self.decide(&caller, Some(Access::ReadOnly), now);
    }

    /// Stores the host if access is granted, and sends the verdict.
    fn decide(&mut self, caller: &PendingPairing, access: Option<Access>, now: Instant) {
        let PendingPairing { peer, request } = caller;
        let kept = access.map(|access| (access, self.access_control.add_host(request, access)));
        let verdict = match kept {
            None => Verdict::Denied,
            Some((_, Err(failure))) => {
                self.report(&ServeEvent::note(format!(
                    "{} is not authorized: {failure}",
                    request.name
                )));
                if failure.is_storage_full() { Verdict::NoSpace } else { Verdict::NotStored }
            }
            Some((access, Ok(()))) => {
                self.apply_host_changes(now);
                self.report(&ServeEvent::paired(peer, request, access));
                Verdict::Granted {
                    access,
                    disks: access_control::disk_list(self.status.exports(), access),
                }
            }
        };
        self.worker.answer(request.number, verdict);
        self.draw_soon(false);
    }

    /// Applies the user's answer to the pending request.
    pub(super) fn answer(&mut self, answer: Answer, now: Instant) {
        if let Some(caller) = self.access_control.take_answered() {
            self.decide(&caller, access_control::granted_access(answer), now);
        }
    }

    /// Shows the current pairing code.
    pub(super) fn show_code(&mut self, view: ServerStatus) {
        self.timers.code = view.wait_until;
        if view.locked && !self.access_control.is_stopped() {
            let left = view.wait_until.map(|until| until.saturating_duration_since(Instant::now()));
            let minutes = left.unwrap_or_default().as_secs().div_ceil(60);
            self.report(&ServeEvent::note(format!(
                "Pairing has stopped after too many wrong codes. It goes on by itself in {minutes} minutes; at once if c is \
                 pressed at this screen, or by: kill -USR1 {}",
                std::process::id()
            )));
        }
        let another = self.access_control.set_view(view);
        let code = self.access_control.code(&self.endpoints());
        if let Some((code, link)) = code.filter(|_| another && self.reports_codes) {
            self.output.report_json(&ServeEvent::Pairing { code, link });
        }
        self.draw_soon(another && self.reports_codes);
    }

    /// Applies changed access rules: hosts that have lost their access are disconnected.
    pub(super) fn apply_host_changes(&mut self, now: Instant) {
        let (policy, complaints) = self.access_control.read(now);
        policy.into_iter().for_each(|policy| self.worker.set_policy(policy));
        for complaint in complaints {
            self.report(&ServeEvent::note(complaint));
        }
    }
}
