//! Plans over simulated disks, given by their bad sectors.

use proptest::prelude::*;

use super::*;

const LIMITS: Limits =
    Limits { sector: 512, chunk: 1 << 16, zeros: 1 << 25, extents: false, retries: 1 };

/// A disk with bad sectors, and all reads of it.
struct Disk {
    bad: Vec<u64>,
    reads: Vec<(Range<u64>, bool)>,
}

impl Disk {
    fn new(bad: impl IntoIterator<Item = u64>) -> Self {
        Self { bad: bad.into_iter().collect(), reads: Vec::new() }
    }

    fn is_good(&mut self, range: &Range<u64>) -> bool {
        let sectors = range.start / 512..range.end.div_ceil(512);
        let good = !self.bad.iter().any(|bad| sectors.contains(bad));
        self.reads.push((range.clone(), good));
        good
    }

    /// Executes a plan with up to `depth` requests in flight, which complete in the order of
    /// `pick`.
    fn copy(&mut self, plan: &mut Plan, depth: usize, mut pick: impl FnMut(usize) -> usize) {
        let mut in_flight = Vec::new();
        for _ in 0..1_000_000 {
            match plan.next() {
                Next::Read(range) if in_flight.len() < depth => in_flight.push(range),
                Next::Read(range) => plan.requeue(range, false),
                Next::Zero(range) => plan.written(range),
                Next::QueryExtents(range) => plan.extents_received(range, &[]),
                Next::Done => return assert!(in_flight.is_empty()),
                Next::Wait => assert!(!in_flight.is_empty(), "nothing to wait for"),
            }
            if in_flight.len() == depth || plan.in_flight >= plan.max_in_flight() {
                let range = in_flight.remove(pick(in_flight.len()) % in_flight.len());
                self.end(plan, range);
            } else if let Some(range) = (pick(4) == 0).then(|| in_flight.pop()).flatten() {
                self.end(plan, range);
            }
            if plan.step_is_over() && !in_flight.is_empty() {
                in_flight.drain(..).for_each(|range| self.end(plan, range));
            }
        }
        panic!("it does not end");
    }

    fn end(&mut self, plan: &mut Plan, range: Range<u64>) {
        if self.is_good(&range) {
            plan.read(&range);
            plan.written(range);
        } else {
            plan.failed(&range);
        }
    }
}

impl Plan {
    fn step_is_over(&self) -> bool {
        self.requeued.is_empty() && self.map.next(State::Untried, self.cursor).is_none()
    }
}

fn found(plan: &Plan) -> Vec<u64> {
    plan.map().all(State::Bad).flat_map(|run| run.start / 512..run.end / 512).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn r15_all_bad_sectors_are_found_and_no_others(
        bad in prop::collection::btree_set(0u64..20_000, 0..500),
        depth in 1usize..9,
        seed: usize,
    ) {
        let mut disk = Disk::new(bad.iter().copied());
        let mut plan = Plan::new(Map::new(20_000 * 512), LIMITS);
        let mut state = seed;
        disk.copy(&mut plan, depth, |of| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % of.max(1)
        });
        prop_assert_eq!(found(&plan), bad.into_iter().collect::<Vec<_>>());
        prop_assert_eq!(plan.map().sum(State::Finished) + plan.map().sum(State::Bad), 20_000 * 512);
    }

    #[test]
    fn interrupted_copy_resumes_from_its_map(bad in prop::collection::btree_set(0u64..4_000, 0..60), cut in 1usize..400) {
        let mut disk = Disk::new(bad.iter().copied());
        let mut plan = Plan::new(Map::new(4_000 * 512), LIMITS);
        for _ in 0..cut {
            match plan.next() {
                Next::Read(range) => disk.end(&mut plan, range),
                _ => break,
            }
        }
        let text = plan.snapshot(std::iter::empty()).emit();
        let mut requeued = Plan::new(Map::parse(&text).unwrap(), LIMITS);
        disk.copy(&mut requeued, 3, |_| 0);
        prop_assert_eq!(found(&requeued), bad.into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn healthy_disk_is_read_once_in_order_in_large_pieces() {
    let mut disk = Disk::new([]);
    let mut plan = Plan::new(Map::new(10 << 20), LIMITS);
    disk.copy(&mut plan, 4, |_| 0);
    let mut starts: Vec<u64> = disk.reads.iter().map(|(range, _)| range.start).collect();
    starts.sort_unstable();
    assert_eq!(starts, (0..160).map(|n| n << 16).collect::<Vec<_>>());
    assert_eq!(plan.map().position.doing, State::Untried);
    assert_eq!(plan.snapshot(std::iter::empty()).position.doing, State::Finished);
}

#[test]
fn r15_good_areas_are_read_before_bad_ones() {
    // A scratch of 1 MiB in the middle of 64 MiB.
    let mut disk = Disk::new(65_536..67_584);
    let mut plan = Plan::new(Map::new(64 << 20), LIMITS);
    disk.copy(&mut plan, 1, |_| 0);
    let first_small =
        disk.reads.iter().position(|(range, _)| range.end - range.start <= 512).unwrap();
    let easy: u64 = disk.reads[..first_small]
        .iter()
        .filter(|(_, good)| *good)
        .map(|(r, _)| r.end - r.start)
        .sum();
    assert_eq!(easy, 63 << 20, "all that is good came first");
    let failed = disk.reads[..first_small].iter().filter(|(_, good)| !good).count();
    assert!(failed <= 16, "{failed} large reads failed");
    // A sector is read at most once in a large read, once alone, and once per retry.
    for bad in 65_536..67_584u64 {
        let tries =
            disk.reads.iter().filter(|(r, _)| (r.start..r.end).contains(&(bad * 512))).count();
        assert!(tries <= 3, "sector {bad}: {tries}");
    }
}

#[test]
fn bad_disk_gets_one_request_at_a_time() {
    let mut plan = Plan::new(Map::new(1 << 30), LIMITS);
    let Next::Read(first) = plan.next() else { panic!() };
    assert!(matches!(plan.next(), Next::Read(_)));
    plan.failed(&first);
    assert_eq!(plan.next(), Next::Wait);
}

#[test]
fn piece_that_loses_the_source_repeatedly_is_bad() {
    let mut plan = Plan::new(Map::new(1 << 20), LIMITS);
    let Next::Read(first) = plan.next() else { panic!() };
    for _ in 0..2 {
        plan.lost(first.clone());
        assert_eq!(plan.next(), Next::Read(first.clone()));
    }
    plan.lost(first.clone());
    assert_eq!((plan.map().state(0), plan.errors()), (Some(State::Untrimmed), 1));
}

#[test]
fn unflushed_range_is_requeued_even_at_the_end() {
    let mut disk = Disk::new([]);
    let mut plan = Plan::new(Map::new(1 << 20), LIMITS);
    disk.copy(&mut plan, 2, |_| 0);
    assert_eq!(plan.next(), Next::Done);
    plan.invalidate(65_536..150_000);
    for piece in [65_536..131_072, 131_072..150_000] {
        assert_eq!(plan.next(), Next::Read(piece.clone()));
        plan.read(&piece);
    }
    assert_eq!(plan.next(), Next::Wait);
    plan.written(65_536..131_072);
    plan.written(131_072..150_000);
    assert_eq!(plan.next(), Next::Done);
}

#[test]
fn holes_are_not_read() {
    let mut plan = Plan::new(Map::new(1 << 30), Limits { extents: true, ..LIMITS });
    assert_eq!(plan.next(), Next::QueryExtents(0..1 << 30));
    assert_eq!(plan.next(), Next::Wait);
    let extents = [Extent::hole(256 << 20), Extent::data(1 << 16), Extent::hole(1 << 30)];
    plan.extents_received(0..1 << 30, &extents);
    let mut taken = Vec::new();
    while let next @ (Next::Read(_) | Next::Zero(_)) = plan.next() {
        let (Next::Read(range) | Next::Zero(range)) = next.clone() else { continue };
        plan.written(range);
        taken.push(next);
    }
    let reads: Vec<_> = taken.iter().filter(|next| matches!(next, Next::Read(_))).collect();
    assert_eq!(reads, [&Next::Read(256 << 20..(256 << 20) + (1 << 16))]);
    assert_eq!(plan.next(), Next::Done);
}
