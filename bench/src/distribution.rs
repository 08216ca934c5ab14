//! How long things took.

use std::time::Duration;

use crate::report::{Curve, Section, Unit, milliseconds};

/// Durations in order, each of them: no histogram's rounding.
pub(crate) struct Distribution(Vec<Duration>);

/// Percentiles that a table shows.
const SHOWN: [(&str, f64); 4] = [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9)];

/// Percentiles that a curve goes through.
const DRAWN: [f64; 13] = [1.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.9, 99.95, 99.99];

impl Distribution {
    pub(crate) fn of(durations: impl Iterator<Item = Duration>) -> Self {
        let mut durations: Vec<_> = durations.collect();
        durations.sort_unstable();
        Self(durations)
    }

    /// The duration that so many percent do not exceed.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a place in a list"
    )]
    pub(crate) fn at(&self, percentile: f64) -> Duration {
        let rank = (self.0.len() as f64 * percentile / 100.0).ceil() as usize;
        self.0.get(rank.clamp(1, self.0.len().max(1)) - 1).copied().unwrap_or_default()
    }

    /// Adds the usual percentiles to a section. `key` and `name` get the percentile appended.
    pub(crate) fn add_to(&self, section: &mut Section, key: &str, name: &str) {
        for (percentile, value) in SHOWN {
            let (key, name) = (format!("{key}.{percentile}"), format!("{name}, {percentile}"));
            section.add(&key, &name, Unit::Milliseconds, milliseconds(self.at(value)));
        }
    }

    /// Milliseconds over percentiles.
    pub(crate) fn curve(&self, name: &str) -> Curve {
        let points = DRAWN.iter().map(|&percentile| (percentile, milliseconds(self.at(percentile))));
        Curve { name: name.to_owned(), points: points.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_nearest_rank() {
        let distribution = Distribution::of((1..=1_000).rev().map(Duration::from_millis));
        assert_eq!(distribution.at(50.0), Duration::from_millis(500));
        assert_eq!(distribution.at(99.9), Duration::from_millis(999));
        assert_eq!(distribution.at(100.0), Duration::from_secs(1));
        assert_eq!(Distribution::of(std::iter::empty()).at(50.0), Duration::ZERO);
    }
}
