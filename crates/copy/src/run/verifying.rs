//! The stage that reads the destination and compares it with what was read from the source. It reads no disk itself.

use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use super::Ended;
use super::copying::{chunk, how, now, sector, start, threads};
use super::course::{Course, Now, spawn};
use crate::compare::{Compare, Item};
use crate::forest::Forest;
use crate::map::{Map, State};
use crate::plan::{Limits, Plan};
use crate::rate::Limit;
use crate::shared::Shared;
use crate::traffic::Target;
use crate::{Outcome, Phase, Settings, Trouble};

/// Ranges that differ are narrowed down if there are not more than this.
const NARROWED: usize = 64;

/// Bytes of zeros that are looked at in one piece.
const ZEROS: u64 = 1 << 30;

/// Compares all that was copied, in this run and in those before it. Without a source nothing is read again from it.
pub(crate) fn verify(
    source: Option<&Target>,
    destination: &Target,
    map: &Map,
    forest: Forest,
    settings: &Settings,
    course: &mut Course<'_>,
) -> Ended {
    let forest = Arc::new(forest);
    let wanted = settings.hash && course.report.bad.is_empty();
    let known = wanted && forest.gaps().is_empty();
    let mut root = known.then(|| hash(forest.clone())).transpose()?;
    let mut items: Vec<Item> = forest.pieces().map(Item::Piece).collect();
    let mut unknown = unknown(map, &forest);
    if source.is_some() {
        items.extend(unknown.drain(..).map(Item::Both));
    }
    let later = items.iter().map(Item::len).sum();
    let ranges: Vec<_> = forest.nodes().map(|mark| mark.range()).collect();
    let seen = read_back(destination, &ranges, settings, course, map.bytes(), later)?;
    let mut differing = forest.differing(&seen);
    // What can be compared with nothing is not known to be the same.
    differing.append(&mut unknown);
    let narrow = differing.len() <= NARROWED && course.report.bad.is_empty() && source.is_some();
    if narrow {
        items.extend(differing.iter().cloned().map(Item::Both));
    }
    let (mut wrong, learned) =
        compare(source.unwrap_or(destination), destination, items, settings, course)?;
    let vague = |leaf: &Range<u64>| !wrong.iter().any(|range| overlap(range, leaf));
    let vague: Vec<Range<u64>> = differing.into_iter().filter(vague).collect();
    wrong.extend(vague);
    if wanted && root.is_none() && wrong.is_empty() {
        let whole = fill(&forest, &learned, destination, settings, course)?;
        root = Some(hash(Arc::new(whole))?);
    }
    conclude(map, joined(wrong), root, course)
}

fn conclude(
    map: &Map,
    wrong: Vec<Range<u64>>,
    hash: Option<JoinHandle<Option<[u8; 32]>>>,
    course: &mut Course<'_>,
) -> Ended {
    let compared = map.sum(State::Finished);
    if !wrong.is_empty() {
        let bytes: u64 = wrong.iter().map(|range| range.end - range.start).sum();
        course.report.verified = compared.saturating_sub(bytes);
        return Err(Outcome::VerifyFailed(wrong));
    }
    if let Some(thread) = hash {
        let total = Some(map.bytes());
        let last = || Now { done: map.bytes(), total, ..Now::only(Phase::Verifying) };
        course.report.hash = course.attend(vec![thread], &mut |_| last())?.pop().flatten();
    }
    course.report.verified = compared;
    Ok(())
}

/// The hash of the whole disk takes a while if there are many holes.
fn hash(forest: Arc<Forest>) -> Result<JoinHandle<Option<[u8; 32]>>, Outcome> {
    spawn(move || forest.root())
}

/// Makes the hashes of a disk whole that was compared, and is the same at both ends: those that were learned meanwhile,
/// and those of the chunks that were compared in pieces, which come from the destination.
fn fill(
    forest: &Forest,
    learned: &Forest,
    destination: &Target,
    settings: &Settings,
    course: &mut Course<'_>,
) -> Result<Forest, Outcome> {
    let mut whole = forest.clone();
    learned.nodes().for_each(|mark| whole.insert(mark));
    let gaps = whole.gaps();
    let sector = u64::from(destination.disk.block.max(1));
    // Less than a block cannot be read: then there is no hash.
    let readable = gaps.iter().all(|gap| gap.start.is_multiple_of(sector));
    if !gaps.is_empty() && readable {
        let seen = read_back(destination, &gaps, settings, course, whole.bytes(), 0)?;
        seen.nodes().for_each(|mark| whole.insert(mark));
    }
    Ok(whole)
}

/// What was finished, and no hash is known of.
fn unknown(map: &Map, forest: &Forest) -> Vec<Range<u64>> {
    let mut rest = Map::new(map.bytes());
    rest.set(0..map.bytes(), State::Bad);
    map.all(State::Finished).for_each(|range| rest.set(range, State::Untried));
    forest.marks().for_each(|mark| rest.set(mark.range(), State::Finished));
    rest.all(State::Untried).collect()
}

/// Hashes of what the destination holds in these ranges.
fn read_back(
    end: &Target,
    ranges: &[Range<u64>],
    settings: &Settings,
    course: &mut Course<'_>,
    bytes: u64,
    later: u64,
) -> Result<Forest, Outcome> {
    let mut map = Map::new(bytes);
    map.set(0..bytes, State::Finished);
    ranges.iter().for_each(|range| map.set(range.clone(), State::Untried));
    let limits = Limits {
        sector: sector(&[end]),
        chunk: chunk(settings, &[end]),
        zeros: ZEROS,
        extents: end.disk.extents,
        retries: 0,
    };
    // What does not cross the network holds nobody up.
    let limit = Limit::new(settings.rate.filter(|_| end.disk.remote), Instant::now());
    let (plan, seen) = (Plan::new(map, limits), Some(Forest::new(bytes)));
    let shared = Shared::new(end, None, how(settings, &[end]), plan, seen, limit);
    let shared = Arc::new(shared);
    let threads = start(&shared, threads(settings, &[end]))?;
    course.attend(threads, &mut |stop| {
        if stop {
            shared.halt();
        }
        let now = now(&shared);
        Now { done: now.done.saturating_sub(later), bad: 0, errors: 0, zeroes: 0, ..now }
    })?;
    if let Some(trouble) = shared.take_trouble() {
        return Err(Outcome::Failed(trouble));
    }
    if course.is_stopped() {
        return Err(Outcome::Interrupted);
    }
    shared.take_forest().ok_or(Outcome::Failed(Trouble::Mistake))
}

/// Compares parts one by one, from both ends or with their own hashes; those that differ.
fn compare(
    source: &Target,
    destination: &Target,
    items: Vec<Item>,
    settings: &Settings,
    course: &mut Course<'_>,
) -> Result<(Vec<Range<u64>>, Forest), Outcome> {
    if items.is_empty() {
        return Ok((Vec::new(), Forest::new(source.disk.bytes)));
    }
    let ends = [source, destination];
    let compare = Arc::new(Compare::new(ends, items, settings.patience, chunk(settings, &ends)));
    let one = |_| {
        let (compare, halt) = (compare.clone(), course.halt.clone());
        spawn(move || compare.run(&halt))
    };
    let threads = (0..threads(settings, &ends)).map(one).collect::<Result<Vec<_>, _>>()?;
    let total = source.disk.bytes;
    let ended = course.attend(threads, &mut |_| {
        let done = total.saturating_sub(compare.rest());
        Now { done, total: Some(total), ..Now::only(Phase::Verifying) }
    })?;
    ended.into_iter().collect::<Result<(), _>>().map_err(super::undone)?;
    Ok((compare.take_wrong(), compare.take_learned()))
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// In rising order, those that touch made one.
fn joined(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}
