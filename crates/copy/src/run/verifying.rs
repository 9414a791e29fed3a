//! Verifying stage: reads the destination back and compares it with the hashes of the source.

use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use super::StageResult;
use super::copying::{chunk, now, processors, sector, stage_config, start, threads};
use super::monitor::{Monitor, StageProgress, spawn};
use crate::compare::{Compare, Item};
use crate::hash_tree::HashTree;
use crate::map::{Map, State};
use crate::plan::{Limits, Plan};
use crate::rate::RateLimit;
use crate::read_back::ReadBack;
use crate::shared::Shared;
use crate::thread_io::OpenedEndpoint;
use crate::{CopyError, Outcome, Phase, Settings};

/// Maximum number of differing ranges that are narrowed down.
const NARROWED: usize = 64;

/// Maximum bytes of a piece of zeros.
const ZEROS: u64 = 1 << 30;

/// What is known of the data that was copied.
pub(crate) struct Written {
    /// Hashes of what was written, by this run and earlier ones.
    pub(crate) tree: HashTree,
    /// What was already read back from the destination.
    pub(crate) read_back: ReadBack,
}

/// Compares everything copied in this run and earlier ones. Without a source, nothing is read from
/// it again.
pub(crate) fn verify(
    source: Option<&OpenedEndpoint>,
    destination: &OpenedEndpoint,
    map: &Map,
    Written { tree, read_back }: Written,
    settings: &Settings,
    monitor: &mut Monitor<'_>,
) -> StageResult {
    let tree = Arc::new(tree);
    let wanted = settings.hash && monitor.report.bad.is_empty();
    let known = wanted && tree.gaps().is_empty();
    let mut root = known.then(|| hash(tree.clone())).transpose()?;
    let mut items: Vec<Item> = tree.fragments().map(Item::Hashed).collect();
    let mut unknown = unknown(map, &tree, &read_back);
    if source.is_some() {
        items.extend(unknown.drain(..).map(Item::BothEnds));
    }
    let later = items.iter().map(Item::len).sum();
    let ranges: Vec<_> = tree.nodes().map(|hash| hash.range()).collect();
    let seen = read(destination, &ranges, read_back.into_hashes(), settings, monitor, later)?;
    let mut differing = tree.differing(&seen);
    // A range without anything to compare it with counts as different.
    differing.append(&mut unknown);
    let narrow = differing.len() <= NARROWED && monitor.report.bad.is_empty() && source.is_some();
    if narrow {
        items.extend(differing.iter().cloned().map(Item::BothEnds));
    }
    let (mut differing_ranges, new_hashes) =
        compare(source.unwrap_or(destination), destination, items, settings, monitor)?;
    let whole_leaves =
        |leaf: &Range<u64>| !differing_ranges.iter().any(|range| overlap(range, leaf));
    let whole_leaves: Vec<Range<u64>> = differing.into_iter().filter(whole_leaves).collect();
    differing_ranges.extend(whole_leaves);
    if wanted && root.is_none() && differing_ranges.is_empty() {
        let whole = fill(&tree, &new_hashes, destination, settings, monitor)?;
        root = Some(hash(Arc::new(whole))?);
    }
    conclude(map, merged(differing_ranges), root, monitor)
}

fn conclude(
    map: &Map,
    differing_ranges: Vec<Range<u64>>,
    hash: Option<JoinHandle<Option<[u8; 32]>>>,
    monitor: &mut Monitor<'_>,
) -> StageResult {
    let compared = map.sum(State::Finished);
    if !differing_ranges.is_empty() {
        let bytes: u64 = differing_ranges.iter().map(|range| range.end - range.start).sum();
        monitor.report.verified = compared.saturating_sub(bytes);
        return Err(Outcome::VerifyFailed(differing_ranges));
    }
    if let Some(thread) = hash {
        let total = Some(map.bytes());
        let last =
            || StageProgress { done: map.bytes(), total, ..StageProgress::only(Phase::Verifying) };
        monitor.report.hash = monitor.join(vec![thread], &mut |_| last())?.pop().flatten();
    }
    monitor.report.verified = compared;
    Ok(())
}

/// Computes the hash of the whole disk in a thread: it takes a while if there are many holes.
fn hash(tree: Arc<HashTree>) -> Result<JoinHandle<Option<[u8; 32]>>, Outcome> {
    spawn(move || tree.root(processors()))
}

/// Completes the hash tree of a verified disk with hashes computed while comparing and, for chunks
/// that were compared in fragments, from the destination.
fn fill(
    tree: &HashTree,
    new_hashes: &HashTree,
    destination: &OpenedEndpoint,
    settings: &Settings,
    monitor: &mut Monitor<'_>,
) -> Result<HashTree, Outcome> {
    let mut whole = tree.clone();
    new_hashes.nodes().for_each(|hash| whole.insert(hash));
    let gaps = whole.gaps();
    let sector = u64::from(destination.disk.block.max(1));
    // Less than a block cannot be read, and has no hash.
    let readable = gaps.iter().all(|gap| gap.start.is_multiple_of(sector));
    if !gaps.is_empty() && readable {
        let seen = HashTree::new(whole.bytes());
        let seen = read(destination, &gaps, seen, settings, monitor, 0)?;
        seen.nodes().for_each(|hash| whole.insert(hash));
    }
    Ok(whole)
}

/// Finished ranges that have no hash and were not compared.
fn unknown(map: &Map, tree: &HashTree, read_back: &ReadBack) -> Vec<Range<u64>> {
    let mut rest = Map::new(map.bytes());
    rest.set(0..map.bytes(), State::Bad);
    map.all(State::Finished).for_each(|range| rest.set(range, State::Untried));
    let known = tree.hashes().map(|hash| hash.range()).chain(read_back.same());
    known.for_each(|range| rest.set(range, State::Finished));
    rest.all(State::Untried).collect()
}

/// Hashes of these ranges of the destination. Those of `seen` are not read again.
fn read(
    end: &OpenedEndpoint,
    ranges: &[Range<u64>],
    seen: HashTree,
    settings: &Settings,
    monitor: &mut Monitor<'_>,
    later: u64,
) -> Result<HashTree, Outcome> {
    let bytes = seen.bytes();
    let mut map = Map::new(bytes);
    map.set(0..bytes, State::Finished);
    ranges.iter().for_each(|range| map.set(range.clone(), State::Untried));
    seen.nodes().for_each(|hash| map.set(hash.range(), State::Finished));
    if map.sum(State::Untried) == 0 {
        return Ok(seen);
    }
    let limits = Limits {
        sector: sector(&[end]),
        chunk: chunk(settings, &[end]),
        zeros: ZEROS,
        extents: end.disk.reports_extents,
        retries: 0,
    };
    // The rate limit is for the network: a local disk is read without it.
    let limit = RateLimit::new(settings.rate.filter(|_| end.disk.remote), Instant::now());
    let (plan, seen) = (Plan::new(map, limits), Some(seen));
    let shared = Shared::new(end, None, stage_config(settings, &[end]), plan, seen, limit);
    let shared = Arc::new(shared);
    let threads = start(&shared, threads(settings, &[end]))?;
    monitor.join(threads, &mut |stop| {
        if stop {
            shared.halt();
        }
        let now = now(&shared);
        StageProgress { done: now.done.saturating_sub(later), bad: 0, errors: 0, zeroes: 0, ..now }
    })?;
    if let Some(error) = shared.take_error() {
        return Err(Outcome::Failed(error));
    }
    if monitor.is_stopped() {
        return Err(Outcome::Interrupted);
    }
    shared.tree().ok_or(Outcome::Failed(CopyError::Internal))
}

/// Compares items one by one. Returns the differing ranges and new hashes.
fn compare(
    source: &OpenedEndpoint,
    destination: &OpenedEndpoint,
    items: Vec<Item>,
    settings: &Settings,
    monitor: &mut Monitor<'_>,
) -> Result<(Vec<Range<u64>>, HashTree), Outcome> {
    if items.is_empty() {
        return Ok((Vec::new(), HashTree::new(source.disk.bytes)));
    }
    let ends = [source, destination];
    let compare =
        Arc::new(Compare::new(ends, items, settings.reconnect_timeout, chunk(settings, &ends)));
    let one = |_| {
        let (compare, halt) = (compare.clone(), monitor.halt.clone());
        spawn(move || compare.run(&halt))
    };
    let threads = (0..threads(settings, &ends)).map(one).collect::<Result<Vec<_>, _>>()?;
    let total = source.disk.bytes;
    let ended = monitor.join(threads, &mut |_| {
        let done = total.saturating_sub(compare.remaining());
        StageProgress { done, total: Some(total), ..StageProgress::only(Phase::Verifying) }
    })?;
    ended.into_iter().collect::<Result<(), _>>().map_err(super::sync_io_error)?;
    Ok((compare.take_differing(), compare.take_new_hashes()))
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// Sorts ranges, and merges adjacent ones.
fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}
