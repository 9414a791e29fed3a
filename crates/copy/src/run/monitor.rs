//! Waits for the threads of a job and reports progress several times per second, whatever they wait
//! for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::rate::RateMeter;
use crate::{CopyError, Outcome, Phase, Progress, Report};

/// The main thread of a job, and its report.
pub(crate) struct Monitor<'a> {
    stop: &'a AtomicBool,
    watch: &'a mut dyn FnMut(&Progress),
    /// Tells the threads to stop.
    pub(crate) halt: Arc<AtomicBool>,
    begun: Instant,
    last_report: Option<Instant>,
    stopped: Option<Instant>,
    meter: Option<(bool, RateMeter)>,
    pub(crate) report: Report,
}

/// Progress of a stage.
pub(crate) struct StageProgress {
    pub(crate) phase: Phase,
    pub(crate) done: u64,
    pub(crate) total: Option<u64>,
    pub(crate) bad: u64,
    pub(crate) errors: u64,
    pub(crate) zeroes: u64,
    pub(crate) reconnecting: Option<(String, String)>,
    pub(crate) stalled: Option<(String, Duration)>,
}

impl StageProgress {
    /// Progress of a phase without counters.
    pub(crate) fn only(phase: Phase) -> Self {
        Self {
            phase,
            done: 0,
            total: None,
            bad: 0,
            errors: 0,
            zeroes: 0,
            reconnecting: None,
            stalled: None,
        }
    }
}

/// Polling interval, its value while a thread is ending, and the reporting interval.
const POLL: Duration = Duration::from_millis(100);
const POLL_ENDING: Duration = Duration::from_millis(1);
const REPORT_INTERVAL: Duration = Duration::from_millis(250);

/// How long threads may take to stop. A thread that hangs in a system call on a broken disk is
/// abandoned.
const GRACE: Duration = Duration::from_secs(8);

impl<'a> Monitor<'a> {
    pub(crate) fn new(stop: &'a AtomicBool, watch: &'a mut dyn FnMut(&Progress)) -> Self {
        let report = Report {
            outcome: Outcome::Success,
            bytes: 0,
            copied: 0,
            zeroes: 0,
            earlier: 0,
            resent: 0,
            verified: 0,
            read_behind: 0,
            bad: Vec::new(),
            padded: 0,
            hash: None,
            elapsed: Duration::ZERO,
        };
        let halt = Arc::new(AtomicBool::new(false));
        let begun = Instant::now();
        Self { stop, watch, halt, begun, last_report: None, stopped: None, meter: None, report }
    }

    /// The report of the job.
    pub(crate) fn finish(mut self, early: Option<Outcome>) -> Report {
        let bad = !self.report.bad.is_empty();
        let full = if bad { Outcome::BadSectors } else { Outcome::Success };
        self.report.outcome = early.unwrap_or(full);
        self.report.elapsed = self.begun.elapsed();
        self.report
    }

    /// Whether the user has asked to stop.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Grants the next threads a new grace period.
    pub(crate) fn restart_grace(&mut self) {
        self.stopped = None;
    }

    /// Waits for threads and returns their results. `tick` is called periodically with whether to
    /// stop, and returns the progress. A panic of a thread is a [`CopyError::Internal`].
    pub(crate) fn join<T>(
        &mut self,
        threads: Vec<JoinHandle<T>>,
        tick: &mut dyn FnMut(bool) -> StageProgress,
    ) -> Result<Vec<T>, Outcome> {
        let mut pause = POLL;
        loop {
            let over = threads.iter().all(JoinHandle::is_finished);
            let stop = self.check_stop();
            let now = tick(stop);
            if over || self.last_report.is_none_or(|at| at.elapsed() >= REPORT_INTERVAL) {
                self.report_progress(now);
            }
            if over {
                let join = |thread: JoinHandle<T>| thread.join();
                let results: Result<Vec<T>, _> = threads.into_iter().map(join).collect();
                return results.map_err(|_| Outcome::Failed(CopyError::Internal));
            }
            if self.stopped.is_some_and(|since| since.elapsed() > GRACE) {
                return Err(Outcome::Interrupted);
            }
            let before = Instant::now();
            std::thread::park_timeout(pause);
            // Woken by a thread that is about to end.
            pause = if before.elapsed() < pause { POLL_ENDING } else { POLL.min(pause * 2) };
        }
    }

    /// Runs `work` in a thread and waits for it.
    pub(crate) fn run_in_thread<T: Send + 'static>(
        &mut self,
        phase: Phase,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Outcome> {
        let mut results = self.join(vec![spawn(work)?], &mut |_| StageProgress::only(phase))?;
        results.pop().ok_or(Outcome::Failed(CopyError::Internal))
    }

    fn check_stop(&mut self) -> bool {
        let stop = self.is_stopped();
        if stop {
            self.stopped.get_or_insert_with(Instant::now);
            self.halt.store(true, Ordering::Release);
        }
        stop
    }

    /// Reports progress.
    pub(crate) fn report_progress(&mut self, now: StageProgress) {
        let at = Instant::now();
        let verifying = now.phase == Phase::Verifying;
        let same = self.meter.as_ref().is_some_and(|(other, _)| *other == verifying);
        if !same && now.phase != Phase::Checking {
            self.meter = Some((verifying, RateMeter::new(at, now.done)));
        }
        let meter = self.meter.as_mut().map(|(_, meter)| meter);
        let (done, rate, eta) = meter.map_or((now.done, 0, None), |meter| {
            let done = meter.sample(at, now.done);
            (done, meter.rate(), now.total.and_then(|total| meter.eta(total)))
        });
        self.last_report = Some(at);
        (self.watch)(&Progress {
            phase: now.phase,
            done: now.total.map_or(done, |total| done.min(total)),
            total: now.total,
            rate,
            eta,
            bad: now.bad,
            errors: now.errors,
            zeroes: now.zeroes,
            reconnecting: now.reconnecting,
            stalled: now.stalled,
            elapsed: self.begun.elapsed(),
        });
    }
}

/// Starts a thread that wakes this one when it ends.
pub(crate) fn spawn<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, Outcome> {
    let builder = std::thread::Builder::new().name("copy".to_owned());
    let wake = Wake(std::thread::current());
    let work = move || {
        let _wake = wake;
        work()
    };
    builder.spawn(work).map_err(|error| Outcome::Failed(CopyError::Thread(error)))
}

/// Wakes a thread when dropped, also on a panic.
struct Wake(Thread);

impl Drop for Wake {
    fn drop(&mut self) {
        self.0.unpark();
    }
}
