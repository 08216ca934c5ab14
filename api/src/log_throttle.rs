//! Keeps strangers from filling the log: what happens a thousand times a second is said every few seconds, with how often
//! it happened.

use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_secs(5);

#[derive(Default)]
pub(crate) struct LogThrottle {
    said: Option<Instant>,
    times: u64,
}

impl LogThrottle {
    /// It happened. The first time, and when it was not said for a while, returns how often since it was last said.
    pub(crate) fn happened(&mut self) -> Option<u64> {
        self.times += 1;
        if self.said.is_some_and(|said| said.elapsed() < PERIOD) {
            return None;
        }
        self.said = Some(Instant::now());
        Some(std::mem::take(&mut self.times))
    }
}
