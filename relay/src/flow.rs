//! How long the queue may be. Pure: what took how long is a parameter.

use std::time::Duration;

/// How fast the workers empty the queue, as far as this relay can see.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flow {
    /// Tasks that were published since the queue's length was asked last, and what that was.
    pub published: u32,
    ready: u32,
    /// Tasks a second that were taken from the queue.
    rate: f64,
}

impl Flow {
    /// Always allowed: workers that were idle need something to begin with.
    const LEAST: f64 = 256.0;

    /// What lies in the queue is gone in this many seconds.
    const DEPTH_SEC: f64 = 0.25;

    /// Takes in what the queue's length was found to be, after so long.
    pub(crate) fn saw(&mut self, ready: u32, after: Duration) {
        let taken = f64::from(self.ready) + f64::from(self.published) - f64::from(ready);
        let rate = (taken / after.as_secs_f64().max(0.001)).max(0.0);
        self.rate = f64::midpoint(self.rate, rate);
        (self.ready, self.published) = (ready, 0);
    }

    /// How long the queue may be.
    pub(crate) fn limit(self) -> u32 {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float's cast saturates")]
        let limit = (self.rate * Self::DEPTH_SEC).max(Self::LEAST) as u32;
        limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_is_as_long_as_workers_empty_in_a_moment() {
        let mut flow = Flow::default();
        assert_eq!(flow.limit(), 256);
        for _ in 0..10 {
            flow.published = 800;
            flow.saw(0, Duration::from_millis(100));
        }
        assert!((1_950..=2_000).contains(&flow.limit()), "{}", flow.limit());
        for _ in 0..10 {
            flow.saw(5_000, Duration::from_millis(100));
        }
        assert_eq!(flow.limit(), 256, "nobody takes anything");
    }
}
