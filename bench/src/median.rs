//! Medians of rounds.

use std::fmt;

/// Returns the median; `None` for an empty list.
pub(crate) fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let upper = *figures.get(figures.len() / 2)?;
    match figures.len() % 2 {
        0 => Some(f64::midpoint(upper, *figures.get(figures.len() / 2 - 1)?)),
        _ => Some(upper),
    }
}

/// The ratios of all rounds. Displayed as their median and range.
#[derive(Debug, Clone)]
pub(crate) struct Ratios(pub(crate) Vec<f64>);

impl fmt::Display for Ratios {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let least = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.0.iter().copied().fold(0.0, f64::max);
        match median(self.0.clone()) {
            None => f.pad("-"),
            Some(median) => f.pad(&format!("{median:.2} [{least:.2}-{most:.2}]")),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn median_of_odd_and_even_lists() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 9.0]), Some(3.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }

    #[test]
    fn ratios_are_shown_with_their_range() {
        assert_eq!(Ratios(vec![1.0, 0.5, 2.0]).to_string(), "1.00 [0.50-2.00]");
        assert_eq!(Ratios(vec![]).to_string(), "-");
    }
}
