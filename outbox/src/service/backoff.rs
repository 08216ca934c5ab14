//! How long to wait before connecting again.

use std::time::Duration;

/// Exponential backoff with jitter for reconnecting: a fleet that lost its server must not return as one.
///
/// Each wait is between half of the current step and all of it; a step is twice the one before, up to the cap.
#[derive(Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    step: Duration,
}

impl Backoff {
    /// Backoff whose first step is `base` and whose longest is `cap`.
    #[must_use]
    pub const fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, step: base }
    }

    /// Backoff for connections to Postgres and RabbitMQ: 50 ms to 1 s, so that work flows again within
    /// 2 s of their return and a process that waits for them costs next to nothing.
    #[must_use]
    pub const fn reconnect() -> Self {
        Self::new(Duration::from_millis(50), Duration::from_secs(1))
    }

    /// The next wait.
    pub fn next_wait(&mut self) -> Duration {
        let wait = self.step.mul_f64(rand::random_range(0.5..=1.0));
        self.step = (self.step * 2).min(self.cap);
        wait
    }

    /// Starts over: what was waited for is there.
    pub const fn reset(&mut self) {
        self.step = self.base;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_start_over() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(300));
        for step in [100, 200, 300, 300] {
            let wait = backoff.next_wait().as_millis();
            assert!((step / 2..=step).contains(&wait), "{wait} ms is not between half of {step} ms and all of it");
        }
        backoff.reset();
        assert!(backoff.next_wait() <= Duration::from_millis(100));
    }
}
