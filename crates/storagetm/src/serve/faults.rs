//! Failed requests of exported disks, totaled at shutdown.

use export::Event;

/// Maximum number of disks that are tracked.
const MAX_DISKS: usize = 4096;

/// Totals by disk.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<Total>);

#[derive(Debug)]
struct Total {
    name: String,
    count: u64,
    from: u64,
    to: u64,
}

impl Faults {
    /// Adds `count` failures if `event` is a fault.
    pub(super) fn record(&mut self, event: &Event, count: u64) {
        let Event::Fault { export, offset, len, .. } = event else { return };
        let (from, to) = (*offset, offset.saturating_add(*len));
        if let Some(total) = self.0.iter_mut().find(|total| total.name == export.name) {
            total.count = total.count.saturating_add(count);
            (total.from, total.to) = (total.from.min(from), total.to.max(to));
        } else if self.0.len() < MAX_DISKS {
            self.0.push(Total { name: export.name.clone(), count, from, to });
        }
    }

    /// Returns a sentence for each disk with more than one failed request.
    pub(super) fn totals(&self) -> Vec<String> {
        let several = self.0.iter().filter(|total| total.count > 1);
        let sentence = |Total { name, count, from, to }: &Total| {
            format!("{name}: {count} requests failed in total, between bytes {from} and {to}")
        };
        several.map(sentence).collect()
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use export::{Fault, Identity};
    use std::sync::Arc;

    #[test]
    fn the_total_spans_all_failures_of_a_disk() {
        let export = Arc::new(testkit::export("sda", "n", Identity::default(), (512, 512), 8192));
        let fault = |offset| Event::Fault {
            export: export.clone(),
            op: "read",
            offset,
            len: 512,
            fault: Fault::Io,
        };
        let mut faults = Faults::default();
        faults.record(&fault(1024), 1);
        assert!(faults.totals().is_empty(), "a single one was reported as such");
        faults.record(&fault(4096), 7);
        assert_eq!(
            faults.totals(),
            ["sda: 8 requests failed in total, between bytes 1024 and 4608"]
        );
    }
}
