//! Flushes of disks whose last host has detached: one thread per flush, at most one per disk.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use export::Export;

/// Running and failed flushes.
#[derive(Debug, Clone, Default)]
pub(super) struct Flushes(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    running: Vec<Running>,
    failed: Vec<(Weak<Export>, String)>,
}

/// State of the flush of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FlushState {
    Running,
    /// It failed, as this sentence describes.
    Failed(String),
    /// It succeeded, or none was needed.
    Ended,
}

#[derive(Debug)]
struct Running {
    export: Arc<Export>,
    /// Whether another flush must follow, for later writes.
    again: bool,
}

impl Flushes {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether a flush must be started. A running one is repeated instead.
    pub(super) fn begin(&self, export: &Arc<Export>) -> bool {
        let mut state = self.state();
        if let Some(running) = state.of(export) {
            running.again = true;
            return false;
        }
        state.running.push(Running { export: export.clone(), again: false });
        true
    }

    /// Ends a successful flush. Returns whether it must be repeated.
    pub(super) fn end(&self, export: &Arc<Export>) -> bool {
        let mut state = self.state();
        let again = state.of(export).is_some_and(|running| std::mem::take(&mut running.again));
        if !again {
            state.remove(export);
            self.0.ended.notify_all();
        }
        again
    }

    /// Ends a failed flush. The failure is kept until shutdown.
    pub(super) fn fail(&self, export: &Arc<Export>, sentence: String) {
        let mut state = self.state();
        state.remove(export);
        state.failed.push((Arc::downgrade(export), sentence));
        self.0.ended.notify_all();
    }

    /// Returns the state of the flush of a disk.
    pub(super) fn state_of(&self, export: &Weak<Export>) -> FlushState {
        let state = self.state();
        let is_it = |running: &Running| std::ptr::eq(Arc::as_ptr(&running.export), export.as_ptr());
        if state.running.iter().any(is_it) {
            return FlushState::Running;
        }
        let failed = state.failed.iter().find(|(of, _)| Weak::ptr_eq(of, export));
        failed.map_or(FlushState::Ended, |(_, sentence)| FlushState::Failed(sentence.clone()))
    }

    /// Returns whether a disk is being flushed, or a flush has failed.
    pub(super) fn any_pending(&self) -> bool {
        let state = self.state();
        !state.running.is_empty() || !state.failed.is_empty()
    }

    /// Waits for running flushes until `end`. Returns a sentence for each possible loss.
    pub(super) fn wait(&self, end: Instant) -> Vec<String> {
        let left = end.saturating_duration_since(Instant::now());
        let is_running = |state: &mut State| !state.running.is_empty();
        let waited = self.0.ended.wait_timeout_while(self.state(), left, is_running);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let late = state.running.iter().map(|running| {
            let name = &running.export.name;
            format!("{name} does not answer: what was written to it last may be lost")
        });
        state.failed.iter().map(|(_, sentence)| sentence.clone()).chain(late).collect()
    }
}

impl State {
    fn of(&mut self, export: &Arc<Export>) -> Option<&mut Running> {
        self.running.iter_mut().find(|running| Arc::ptr_eq(&running.export, export))
    }

    fn remove(&mut self, export: &Arc<Export>) {
        self.running.retain(|running| !Arc::ptr_eq(&running.export, export));
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use export::Identity;
    use std::time::Duration;

    fn export() -> Arc<Export> {
        Arc::new(testkit::export("/dev/sdz", "nqn", Identity::default(), (512, 512), 512))
    }

    #[test]
    fn running_flush_is_repeated_for_later_writes() {
        let (flushes, export) = (Flushes::default(), export());
        assert!(flushes.begin(&export) && flushes.any_pending());
        assert_eq!(flushes.state_of(&Arc::downgrade(&export)), FlushState::Running);
        assert!(!flushes.begin(&export) && !flushes.begin(&export));
        assert!(flushes.end(&export) && flushes.any_pending());
        assert!(!flushes.end(&export) && !flushes.any_pending());
        assert_eq!(flushes.state_of(&Arc::downgrade(&export)), FlushState::Ended);
        assert!(flushes.wait(Instant::now()).is_empty());
    }

    #[test]
    fn flushes_are_waited_for_and_failures_stay() {
        let (flushes, one, other) = (Flushes::default(), export(), export());
        assert!(flushes.begin(&one) && flushes.begin(&other));
        let lost = flushes.wait(Instant::now());
        assert!(lost.len() == 2 && lost[0].contains("does not answer"), "{lost:?}");
        let (ended, failed) = (flushes.clone(), Arc::downgrade(&other));
        let end = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            ended.end(&one);
            ended.fail(&other, "it failed".to_owned());
        });
        assert_eq!(flushes.wait(Instant::now() + Duration::from_secs(60)), ["it failed"]);
        end.join().unwrap();
        assert!(flushes.any_pending());
        assert_eq!(flushes.state_of(&failed), FlushState::Failed("it failed".to_owned()));
    }
}
