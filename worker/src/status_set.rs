//! Sets of HTTP statuses, as they are configured.

use std::ops::RangeInclusive;

/// Statuses from 100 to 999.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StatusSet(Vec<RangeInclusive<u16>>);

impl StatusSet {
    /// Reads `410`, `4xx`, `42x` or `400-404`, or several of them separated by commas, or nothing at all.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.map(|part| range(part).filter(is_sound)).collect::<Option<_>>().map(Self).ok_or_else(|| {
            "it must be statuses that are not 2xx, as in 410, 4xx or 400-404, separated by commas".to_owned()
        })
    }

    pub(crate) fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    if let Some((first, last)) = text.split_once('-') {
        return Some(first.parse().ok()?..=last.parse().ok()?);
    }
    Some(text.replace('x', "0").parse().ok()?..=text.replace('x', "9").parse().ok()?)
}

/// A success stays one.
fn is_sound(range: &RangeInclusive<u16>) -> bool {
    let (first, last) = (*range.start(), *range.end());
    first >= 100 && last <= 999 && first <= last && (last < 200 || first > 299)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_classes_and_ranges() {
        let set = StatusSet::parse("410, 42x,500-502").expect("it is a set");
        for (status, contained) in
            [(410, true), (411, false), (420, true), (429, true), (430, false), (502, true), (503, false)]
        {
            assert_eq!(set.contains(status), contained, "{status}");
        }
        assert!(!StatusSet::parse("").expect("an empty set").contains(410));
        assert!(StatusSet::parse("4xx").expect("a class").contains(499));
        for wrong in ["abc", "99", "1000", "2xx", "200", "150-250", "502-500", "4yy", "-"] {
            assert!(StatusSet::parse(wrong).is_err(), "{wrong}");
        }
    }
}
