//! Those who are not let in yet: what the owner's list, the code on the screen and the keys pressed there do for them. It
//! knows no disk but what is told of it.

use std::time::Instant;

use console::Answer;
use export::{Access, Event, Policy};
use pair::{ServerStatus, Verdict};

use super::Server;
use daemon::admission::{self, Caller};
use daemon::happening::Happening;
use daemon::listen::Protocol;

impl Server {
    /// Somebody knew the code: it may read. To change disks takes an answer at the screen.
    pub(super) fn knocked(&mut self, caller: Caller, now: Instant) {
        let somebody = self.desk.is_some() || self.keyboard.is_some();
        if caller.knock.writable && somebody {
            let Caller { peer, knock } = &caller;
            let asking = Event::PairingRequested { peer: peer.clone(), request: knock.clone() };
            let asking = Happening::of(asking, &Policy::default(), Protocol::Nvme);
            self.say(&asking);
            self.admission.wait(caller);
            return;
        }
        if caller.knock.writable {
            self.say(&Happening::note(
                "There is no screen here to ask at whether the machine that knew the code may change \
                 disks: it may read them.",
            ));
        }
        self.decide(&caller, Some(Access::ReadOnly), now);
    }

    /// Lets in, or not, who knew the code, and tells it so.
    fn decide(&mut self, caller: &Caller, access: Option<Access>, now: Instant) {
        let Caller { peer, knock } = caller;
        let kept = access.map(|access| (access, self.admission.let_in(knock, access)));
        let verdict = match kept {
            None => Verdict::Denied,
            Some((_, Err(failure))) => {
                self.say(&Happening::note(format!("{} is not let in: {failure}", knock.name)));
                if failure.is_storage_full() { Verdict::NoSpace } else { Verdict::NotStored }
            }
            Some((access, Ok(()))) => {
                self.follow_owner(now);
                self.say(&Happening::paired(peer, knock, access));
                Verdict::Granted { access, disks: admission::told(self.ledger.exports(), access) }
            }
        };
        self.worker.answer(knock.number, verdict);
        self.draw_soon(false);
    }

    /// Answers the machine that the screen asks about.
    pub(super) fn answer(&mut self, answer: Answer, now: Instant) {
        if let Some(caller) = self.admission.answered() {
            self.decide(&caller, admission::allowed(answer), now);
        }
    }

    /// Shows the code that is good from now on.
    pub(super) fn show_code(&mut self, view: ServerStatus) {
        self.alerts.code = view.wait_until;
        if view.locked && !self.admission.is_stopped() {
            let left = view.wait_until.map(|until| until.saturating_duration_since(Instant::now()));
            let minutes = left.unwrap_or_default().as_secs().div_ceil(60);
            self.say(&Happening::note(format!(
                "Pairing has stopped after too many wrong codes. It goes on by itself in {minutes} minutes; at once if c is \
                 pressed at this screen, or by: kill -USR1 {}",
                std::process::id()
            )));
        }
        let another = self.admission.show(view);
        let code = self.admission.code(&self.endpoints());
        if let Some((code, link)) = code.filter(|_| another && self.tells_codes) {
            self.output.say_to_programs(&Happening::Pairing { code, link });
        }
        self.draw_soon(another && self.tells_codes);
    }

    /// Lets in whom the owner's list has now, and cuts off whom it has no longer.
    pub(super) fn follow_owner(&mut self, now: Instant) {
        let (policy, complaints) = self.admission.read(now);
        policy.into_iter().for_each(|policy| self.worker.follow(policy));
        for complaint in complaints {
            self.say(&Happening::note(complaint));
        }
    }
}
