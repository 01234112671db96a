//! Things measured in turn, so that what disturbs one disturbs all: each round goes through them there and back, and
//! only figures of the same round are held against each other.

use anyhow::Result;
use serde::Serialize;

/// How often the medians are drawn anew for an interval.
const DRAWS: usize = 2000;

/// The figures of all counted rounds: one list for each subject.
pub(crate) type Rounds = Vec<Vec<f64>>;

/// A median, and where 95 of 100 medians of such rounds lie.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Interval {
    /// The lower end.
    pub(crate) low: f64,
    /// The median.
    pub(crate) median: f64,
    /// The upper end: what a goal is held against.
    pub(crate) high: f64,
}

/// Measures each subject twice in each round, A B C C B A; the first round warms up and is not counted.
pub(crate) fn rounds(subjects: usize, counted: usize, mut measure: impl FnMut(usize) -> Result<f64>) -> Result<Rounds> {
    let mut all = vec![Vec::with_capacity(counted); subjects];
    for round in 0..=counted {
        let mut sums = vec![0.0; subjects];
        for subject in (0..subjects).chain((0..subjects).rev()) {
            let figure = measure(subject)?;
            if let Some(sum) = sums.get_mut(subject) {
                *sum += figure / 2.0;
            }
        }
        if round > 0 {
            for (list, sum) in all.iter_mut().zip(sums) {
                list.push(sum);
            }
        }
    }
    Ok(all)
}

/// The ratio of two subjects, round by round.
pub(crate) fn ratios(ours: &[f64], theirs: &[f64]) -> Vec<f64> {
    ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect()
}

/// The median of some figures with its bootstrap interval; the draws are the same in every run.
pub(crate) fn interval(figures: &[f64]) -> Interval {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut medians: Vec<f64> = (0..DRAWS)
        .map(|_| {
            let drawn: Vec<f64> =
                (0..figures.len()).filter_map(|_| figures.get(below(&mut seed, figures.len())).copied()).collect();
            median(&drawn)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    let at = |share: usize| medians.get(DRAWS * share / 1000).copied().unwrap_or(f64::NAN);
    Interval { low: at(25), median: median(figures), high: at(975) }
}

/// The middle of some figures; of an even number the mean of the two middle ones.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN);
    if sorted.len() % 2 == 1 {
        return upper;
    }
    let lower = sorted.len().checked_sub(2).and_then(|n| sorted.get(n / 2)).copied().unwrap_or(f64::NAN);
    f64::midpoint(lower, upper)
}

/// A number below `limit` (SplitMix64).
fn below(seed: &mut u64, limit: usize) -> usize {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *seed;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    usize::try_from((mixed ^ (mixed >> 31)) % limit.max(1) as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_there_and_back_and_drops_the_first_round() {
        let mut order = Vec::new();
        let figures = rounds(3, 2, |subject| {
            order.push(subject);
            Ok(order.len() as f64)
        })
        .unwrap();
        assert_eq!(order[..6], [0, 1, 2, 2, 1, 0]);
        assert_eq!(order.len(), 18);
        // A steady drift costs every subject of a round the same.
        assert_eq!(figures, [[9.5, 15.5], [9.5, 15.5], [9.5, 15.5]]);
    }

    #[test]
    fn a_median_lies_in_its_interval_and_one_outlier_does_not_move_it() {
        let seen = interval(&[0.30, 0.31, 0.29, 0.30, 0.32, 0.30, 3.0]);
        assert_eq!(seen.median, 0.30);
        assert!(seen.low >= 0.29 && seen.low <= seen.median && seen.median <= seen.high, "{seen:?}");
        assert_eq!(interval(&[2.0]), Interval { low: 2.0, median: 2.0, high: 2.0 });
        assert_eq!(median(&[1.0, 2.0, 4.0, 8.0]), 3.0);
    }

    #[test]
    fn the_noisier_the_rounds_the_wider_the_interval() {
        let width = |figures: &[f64]| interval(figures).high - interval(figures).low;
        assert!(width(&[1.0, 1.4, 0.7, 1.2, 0.9, 1.3, 0.6]) > width(&[1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0]));
    }
}
