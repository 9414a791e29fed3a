//! How `storagetm serve` ends: hosts are let go, and what they wrote is on the disks. It knows no event.

use std::io;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use export::{Access, Export, Fault};

use super::{End, Server, happening};
use crate::announce::Announcer;
use crate::happening::{Happening, Which};

/// How long hosts may take to end what is under way when the program is told to stop.
const PATIENCE: Duration = Duration::from_secs(7);
/// How long the disks may then take to put everything on stable storage, and the reader to take the last words.
const LAST: Duration = Duration::from_secs(1);

impl Server {
    /// Ends: hosts are told and disconnected, the disks put everything on stable storage.
    pub(super) fn close(mut self, end: End) {
        if let Some(desk) = self.desk.take() {
            desk.end(match end {
                End::Restart => "Disconnecting the hosts; then this machine restarts.\n",
                End::PowerOff => "Disconnecting the hosts; then this machine powers off.\n",
                End::Told | End::Broken => "Disconnecting the hosts; then this machine ends.\n",
            });
        }
        self.keyboard = None;
        self.output.stopping();
        let writable: Vec<Arc<Export>> = self
            .ledger
            .exports()
            .filter(|export| export.access == Access::Writable)
            .cloned()
            .collect();
        self.announcer.take().into_iter().for_each(Announcer::stop);
        let in_time = self.worker.stop(PATIENCE);
        for event in self.mailbox.receive().events {
            let happening = happening(event, &self.listeners, &self.admission);
            self.output.say(&happening);
        }
        if !in_time {
            self.output.say(&Happening::note("some hosts did not let go in time and were cut off"));
        }
        for happening in flush(writable) {
            self.output.say(&happening);
        }
        self.output.say(&Happening::Stopped);
        self.output.drain(LAST);
    }
}

/// Puts everything on stable storage; what failed comes back. A disk that takes too long is not waited for.
fn flush(exports: Vec<Arc<Export>>) -> Vec<Happening> {
    let (done, waiting) = mpsc::channel();
    let count = exports.len();
    for export in exports {
        let done = done.clone();
        std::thread::spawn(move || {
            let result = rustix::fs::fdatasync(&*export).map_err(io::Error::from);
            let _ = done.send((export, result));
        });
    }
    let end = Instant::now() + LAST;
    let next = || waiting.recv_timeout(end.saturating_duration_since(Instant::now())).ok();
    let ended = std::iter::from_fn(next).take(count);
    ended.filter_map(|(export, result)| Some(failed_flush(&export, result.err()?))).collect()
}

fn failed_flush(export: &Export, error: io::Error) -> Happening {
    let reason = Fault::from(error).to_string();
    Happening::Fault { which: Which::of(export), op: "flush", offset: 0, bytes: 0, reason }
}
