//! Where a scan of an index begins. Pure: time is a parameter.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::scan_window::LATE_COMMIT;

/// Between two scans from the beginning, at the least and at the most.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// How far back to look for what is due, or listed.
///
/// What is done leaves dead index entries behind, which are stepped over one by one for as long as a transaction is
/// open anywhere that could still see the rows. So most looks begin where the last one ended, and one in a second, or in
/// twenty times what such a look takes, begins at the beginning.
#[derive(Debug)]
pub(crate) struct ScanStart<T> {
    full: Option<Instant>,
    pause: Duration,
    is_full: bool,
    last: Option<T>,
}

impl<T> Default for ScanStart<T> {
    fn default() -> Self {
        Self { full: None, pause: SHORTEST, is_full: false, last: None }
    }
}

impl<T: Copy> ScanStart<T> {
    /// `None` for all.
    pub(crate) fn since(&mut self, now: Instant) -> Option<T> {
        self.is_full = self.is_due(now);
        if self.is_full {
            // Also if it fails: it would fail again.
            self.full = Some(now);
        }
        if self.is_full { None } else { self.last }
    }

    /// Where the last look ended.
    pub(crate) const fn last(&self) -> Option<T> {
        self.last
    }

    /// Whether it is time to begin at the beginning.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.last.is_none() || self.full.is_none_or(|full| now - full >= self.pause)
    }

    /// What it came to, and what that took.
    pub(crate) fn saw(&mut self, last: Option<T>, took: Duration) {
        if self.is_full {
            self.pause = (took * 20).clamp(SHORTEST, LONGEST);
        }
        self.last = last.or(self.last);
    }
}

impl ScanStart<SystemTime> {
    /// The moment to look from: what commits late was due a while before.
    pub(crate) fn since_late(&mut self, now: Instant) -> Option<SystemTime> {
        self.since(now).map(|last| last - LATE_COMMIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_from_the_beginning_that_takes_long_comes_seldom() {
        let now = Instant::now();
        let mut look = ScanStart::default();
        assert_eq!(look.since(now), None);
        look.saw(Some(7_i64), Duration::from_millis(200));
        assert_eq!(look.since(now + Duration::from_secs(3)), Some(7));
        assert_eq!(look.since(now + Duration::from_secs(4)), None);
        look.saw(None, Duration::ZERO);
        assert_eq!(look.since(now + Duration::from_millis(4_999)), Some(7));
        assert_eq!(look.since(now + Duration::from_secs(5)), None);
    }
}
