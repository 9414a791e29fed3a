//! The course of a job: checks, copying, verifying, and what is to be told about it. It does none of the work itself: it
//! is the thread that waits, saves the map, and reports.

mod copying;
mod course;
pub(crate) mod verifying;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::begin::{self, Begun, Unlike};
use crate::errand::Undone;
use crate::map::{self, Map, Notes, Position, State};
use crate::{End, Job, Outcome, Phase, Place, Progress, Refusal, Report, Settings, Trouble, pour};
pub(crate) use course::{Course, Now, spawn};

/// Makes a copy.
pub(crate) fn run(job: Job, stop: &AtomicBool, watch: &mut dyn FnMut(&Progress)) -> Report {
    let Job { source, destination, settings } = job;
    let mut course = Course::new(stop, watch);
    let outcome = match (source, destination) {
        (End::Disk(source), End::Disk(destination)) => {
            disks(source.into(), destination.into(), &settings, &mut course)
        }
        (End::Pipe(_), End::Pipe(_)) => Err(Outcome::Refused(Refusal::Pipes)),
        _ if settings.map.is_some() => Err(Outcome::Refused(Refusal::PipeWithMap)),
        (End::Pipe(pipe), End::Disk(disk)) => {
            pour::into_disk(pipe, disk.into(), &settings, &mut course)
        }
        (End::Disk(disk), End::Pipe(pipe)) => {
            pour::into_pipe(disk.into(), pipe, &settings, &mut course)
        }
    };
    course.report(outcome.err())
}

/// A copy ends early with an outcome; else it is what the report shows.
pub(crate) type Ended = Result<(), Outcome>;

fn disks(
    source: Arc<dyn Place>,
    destination: Arc<dyn Place>,
    settings: &Settings,
    course: &mut Course<'_>,
) -> Ended {
    let begun = check(source, destination, settings, course)?;
    course.report.bytes = begun.source.disk.bytes;
    course.report.earlier = begun.map.sum(State::Finished);
    let copying::Copied { map, forest } = copying::copy(&begun, settings, course)?;
    let Some(forest) = forest.filter(|_| settings.verify) else { return Ok(()) };
    let (source, marks) = (Some(&begun.source), forest.marks().collect());
    let destination = begun.destination.unknown();
    let ended = verifying::verify(source, &destination, &map, forest, settings, course);
    if let (Err(Outcome::VerifyFailed(wrong)), Some(path)) = (&ended, &settings.map) {
        let notes = Notes { marks, ..begun.map.notes };
        // That it cannot be written down takes nothing from what is told.
        let _ = map::save(&undone_in(map, notes, wrong), path);
    }
    ended
}

/// The map of a copy that was found to be wrong: what differs is to be copied again.
fn undone_in(mut map: Map, notes: Notes, wrong: &[Range<u64>]) -> Map {
    wrong.iter().for_each(|range| map.set(range.clone(), State::Untried));
    map.notes = notes;
    map.position = Position::default();
    map
}

/// The checks, in a thread of their own: an address that does not answer must not silence the progress.
fn check(
    source: Arc<dyn Place>,
    destination: Arc<dyn Place>,
    settings: &Settings,
    course: &mut Course<'_>,
) -> Result<Begun, Outcome> {
    let (settings, halt) = (settings.clone(), course.halt.clone());
    let work = move || {
        let begun = begin::begin(source, destination, &settings, &halt).map_err(unlike)?;
        begin::confirm(&begun, &settings, &halt).map_err(unlike)?;
        Ok(begun)
    };
    course.aside(Phase::Checking, work)?
}

fn unlike(unlike: Unlike) -> Outcome {
    match unlike {
        Unlike::Refused(why) => Outcome::Refused(why),
        Unlike::Undone(undone) => self::undone(undone),
    }
}

/// What a single work that was not done makes of the copy.
pub(crate) fn undone(undone: Undone) -> Outcome {
    match undone {
        Undone::Stopped => Outcome::Interrupted,
        Undone::Lost => Outcome::Failed(Trouble::Mistake),
        Undone::Trouble(trouble) => Outcome::Failed(trouble),
    }
}

#[cfg(test)]
mod test;
