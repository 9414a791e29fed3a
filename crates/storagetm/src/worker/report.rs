//! From what the worker says to what the program knows. The worker talks to strangers, and one of them may have taken it
//! over: what it says is a claim, bounded in size and number, about disks that it was given and no others.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use export::{Event, Export, KeyId, Knock, Peer, Reason};

use super::words::{Happened, PeerWord};
use super::{Said, Shared};

/// Attachments there may be at once, above what the engine lets in.
const ATTACHMENTS: usize = 4096;

/// Different rules and reasons that a worker may name.
const NAMES: usize = 512;

/// What stands for a name beyond these.
const ANOTHER: &str = "another";

/// Who has attached what, as the worker said.
#[derive(Debug, Default)]
pub(super) struct Witness {
    attached: Vec<Attachment>,
}

#[derive(Debug)]
struct Attachment {
    export: Arc<Export>,
    peer: Peer,
    host: String,
}

impl Witness {
    /// Says what happened. Nothing is said of disks that there are not.
    ///
    /// # Errors
    /// No honest worker says this.
    pub(super) fn hear(&mut self, shared: &Shared, happened: Happened) -> Result<(), ()> {
        let export = |disk: u64| {
            shared.standing().of_number(disk).map(|loaned| loaned.export.clone()).ok_or(())
        };
        let event = match happened {
            Happened::Attached { disk, peer, host, proven } => {
                self.attach(export(disk)?, peer, host, proven)?
            }
            Happened::Detached { disk, peer, host, reason, read, written } => {
                let (export, peer) = (export(disk)?, Peer::from(peer));
                self.detach(&export, &peer, &host)?;
                Event::Detached { export, peer, host, reason, read, written }
            }
            Happened::Fault { disk, op, offset, len, fault } => {
                Event::Fault { export: export(disk)?, op: name(&op), offset, len, fault }
            }
            Happened::Refused { peer, host, wanted, why } => {
                Event::Refused { peer: peer.into(), host, wanted, why: name(&why) }
            }
            Happened::Violation { peer, rule } => {
                Event::Violation { peer: peer.into(), rule: name(&rule) }
            }
            Happened::Knocked { peer, number, host, name, writable, secret } => {
                let knock = Knock { number, host, name, writable, secret: secret.0 };
                Event::Knocked { peer: peer.into(), knock: Arc::new(knock) }
            }
        };
        shared.say(Said::Event(event));
        Ok(())
    }

    fn attach(
        &mut self,
        export: Arc<Export>,
        peer: PeerWord,
        host: String,
        proven: Option<u64>,
    ) -> Result<Event, ()> {
        if self.attached.len() >= ATTACHMENTS {
            return Err(());
        }
        let peer = Peer::from(peer);
        let attachment = Attachment { export, peer, host };
        let Attachment { export, peer, host } = &attachment;
        let event = Event::Attached {
            export: export.clone(),
            peer: peer.clone(),
            host: host.clone(),
            proven: proven.map(KeyId::new),
        };
        self.attached.push(attachment);
        Ok(event)
    }

    fn detach(&mut self, export: &Arc<Export>, peer: &Peer, host: &str) -> Result<(), ()> {
        let is_it = |known: &Attachment| {
            Arc::ptr_eq(&known.export, export)
                && known.peer.remote == peer.remote
                && known.host == host
        };
        let at = self.attached.iter().position(is_it).ok_or(())?;
        self.attached.swap_remove(at);
        Ok(())
    }

    /// The worker is gone, and with it all connections.
    pub(super) fn lose(self, shared: &Shared) {
        for Attachment { export, peer, host } in self.attached {
            let reason = Reason::Ended;
            // How much it was, it took with it.
            let event = Event::Detached { export, peer, host, reason, read: 0, written: 0 };
            shared.say(Said::Event(event));
        }
    }
}

/// The name, kept for good: there are as many as there are rules.
fn name(text: &str) -> &'static str {
    static KNOWN: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(name) = known.get(text) {
        return name;
    }
    if known.len() >= NAMES || text.len() > 200 {
        return ANOTHER;
    }
    let name: &'static str = Box::leak(text.into());
    known.insert(name);
    name
}
