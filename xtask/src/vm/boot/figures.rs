//! The boot times of each way into target mode, as a Markdown table.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::ways::Way;

/// The maximum ratio of our time to upstream's until a disk is attached.
const BAR: f64 = 1.0 / 3.0;

/// The times of one boot, from power on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// The attach command is on the screen.
    pub(super) shown: Duration,
    /// All disks are attached to the second machine.
    pub(super) attached: Duration,
}

/// The times of all boots.
#[derive(Debug, Default)]
pub(super) struct Figures {
    boots: Vec<(Way, Times)>,
}

impl Figures {
    /// Adds the times of a boot.
    pub(super) fn add(&mut self, way: Way, times: Times) {
        self.boots.push((way, times));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.boots.is_empty()
    }

    /// Returns the medians of every way.
    pub(super) fn table(&self) -> String {
        let mut table = String::from(
            "| way into target mode | power on to attach line | power on to disks attached | of upstream | boots |\n\
             |---|---|---|---|---|\n",
        );
        for way in Way::ALL {
            let Some(times) = self.median(way) else { continue };
            let part = self.part(way).map_or_else(|| "-".to_owned(), |part| format!("{part:.2}"));
            let boots = self.boots.iter().filter(|boot| boot.0 == way).count();
            let (shown, attached) = (times.shown.as_secs_f64(), times.attached.as_secs_f64());
            let title = way.title();
            table.push_str(&format!(
                "| {title} | {shown:.1} s | {attached:.1} s | {part} | {boots} |\n"
            ));
        }
        table
    }

    /// Checks that our initramfs has its disks attached in a third of upstream's time.
    pub(super) fn bar(&self) -> Result<()> {
        let part = self.part(Way::Init).context("not both were measured")?;
        ensure!(part <= BAR, "it takes {part:.2} of upstream's time, {BAR:.2} are allowed");
        Ok(())
    }

    fn part(&self, way: Way) -> Option<f64> {
        let upstream = self.median(Way::Upstream)?.attached.as_secs_f64();
        Some(self.median(way)?.attached.as_secs_f64() / upstream)
    }

    fn median(&self, way: Way) -> Option<Times> {
        let of = |take: fn(&Times) -> Duration| {
            let mut times: Vec<Duration> =
                self.boots.iter().filter(|boot| boot.0 == way).map(|boot| take(&boot.1)).collect();
            times.sort();
            times.get(times.len() / 2).copied()
        };
        Some(Times { shown: of(|times| times.shown)?, attached: of(|times| times.attached)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(shown: u64, attached: u64) -> Times {
        Times { shown: Duration::from_secs(shown), attached: Duration::from_secs(attached) }
    }

    #[test]
    fn table_has_medians_and_ratios() {
        let mut figures = Figures::default();
        assert!(figures.bar().is_err());
        for seconds in [30, 90, 36] {
            figures.add(Way::Upstream, times(seconds - 6, seconds));
        }
        figures.add(Way::Init, times(5, 9));
        let table = figures.table();
        assert!(table.contains("initrd of systemd | 30.0 s | 36.0 s | 1.00 | 3 |"), "{table}");
        assert!(table.contains("initramfs | 5.0 s | 9.0 s | 0.25 | 1 |"), "{table}");
        figures.bar().unwrap();
        figures.add(Way::Init, times(5, 19));
        assert!(figures.bar().is_err());
    }
}
