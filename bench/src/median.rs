//! The middle of several figures.

/// The middle one, or the mean of the two in the middle; nothing of nothing.
pub(crate) fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let upper = *figures.get(figures.len() / 2)?;
    match figures.len() % 2 {
        0 => Some(f64::midpoint(upper, *figures.get(figures.len() / 2 - 1)?)),
        _ => Some(upper),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_middle_is_taken() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 9.0]), Some(3.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }
}
