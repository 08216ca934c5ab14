//! How long the queue was of late, as the lanes were told. Pure: time is a parameter.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outbox::due::missing::LOST_AFTER;
use tokio::time::Instant;

/// Lanes ask at least this often. After a longer time it is not known what happened meanwhile.
const LONGEST_GAP: Duration = Duration::from_secs(3);

/// What is asked more often counts as one.
const SHORTEST_GAP: Duration = Duration::from_millis(200);

/// Shared by all lanes of the process.
#[derive(Clone, Debug, Default)]
pub(crate) struct QueueLength(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    /// Since when there is no gap.
    since: Option<Instant>,
    /// The longest of each moment; as many as there are in [`LOST_AFTER`].
    lengths: VecDeque<(Instant, u32)>,
}

impl QueueLength {
    /// Notes how many tasks wait for a worker.
    pub(crate) fn saw(&self, ready: u32, now: Instant) {
        let seen = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.lengths.back_mut() {
            Some((at, _)) if now - *at > LONGEST_GAP => {
                *seen = Seen { since: Some(now), lengths: [(now, ready)].into() }
            }
            Some((at, length)) if now - *at < SHORTEST_GAP => *length = (*length).max(ready),
            _ => seen.lengths.push_back((now, ready)),
        }
        seen.since.get_or_insert(now);
        while seen.lengths.front().is_some_and(|(at, _)| now - *at > LOST_AFTER) {
            seen.lengths.pop_front();
        }
    }

    /// The longest that it was in [`LOST_AFTER`], if that is known without a gap.
    pub(crate) fn longest(&self, now: Instant) -> Option<u32> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = seen.since.is_some_and(|since| now - since >= LOST_AFTER)
            && seen.lengths.back().is_some_and(|(at, _)| now - *at <= LONGEST_GAP);
        let recent = seen.lengths.iter().map(|(_, length)| *length);
        if is_known { recent.max() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn only_what_was_seen_without_a_gap_counts() {
        let (length, start) = (QueueLength::default(), Instant::now());
        assert_eq!(length.longest(start), None);
        for (second, ready) in (0..7).zip([9, 3, 2, 1, 0, 0, 0]) {
            length.saw(ready, start + SECOND * second);
        }
        assert_eq!(length.longest(start + SECOND * 5), None, "nobody knows what was before");
        assert_eq!(length.longest(start + SECOND * 6), Some(9));
        length.saw(0, start + SECOND * 8);
        assert_eq!(length.longest(start + SECOND * 8), Some(2));
        length.saw(0, start + SECOND * 12);
        assert_eq!(length.longest(start + SECOND * 12), None, "there was a gap");
    }
}
