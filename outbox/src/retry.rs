//! When to try again. Pure: randomness is a parameter.

use std::time::Duration;

use clap::Args;

/// How long to wait between attempts.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Retries")]
pub struct RetryPolicy {
    /// Attempts in all before a job fails, for jobs that do not say it themselves (`max_attempts`).
    #[arg(long, env, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub max_retries: u32,
    /// Longest wait before the second attempt, in milliseconds; doubled for each one after it.
    #[arg(long, env, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    pub backoff_base_ms: u64,
    /// No backoff is longer than this, in seconds.
    #[arg(long, env, default_value_t = 3_600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub backoff_max_sec: u64,
    /// A receiver's Retry-After counts up to this, in seconds.
    #[arg(long, env, default_value_t = 3_600, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub retry_after_max_sec: u64,
}

impl RetryPolicy {
    /// The longest that may be waited after this many failed attempts (1 or more).
    #[must_use]
    pub fn ceiling(&self, failed_attempts: u32) -> Duration {
        let doublings = failed_attempts.saturating_sub(1).min(63);
        let backoff = self.backoff_base_ms.saturating_mul(1 << doublings);
        Duration::from_millis(backoff.min(self.backoff_max_sec * 1_000))
    }

    /// How long to wait after this many failed attempts.
    ///
    /// Full jitter: `random`, from 0 up to but not including 1, picks a point below [`Self::ceiling`]
    /// ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015). A receiver's `retry_after`, as
    /// far as it is within bounds, is waited out in full.
    #[must_use]
    pub fn delay(&self, failed_attempts: u32, retry_after: Option<Duration>, random: f64) -> Duration {
        let backoff = self.ceiling(failed_attempts).mul_f64(random);
        let asked = retry_after.unwrap_or_default().min(Duration::from_secs(self.retry_after_max_sec));
        backoff.max(asked)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(backoff_base_ms: u64, backoff_max_sec: u64, retry_after_max_sec: u64) -> RetryPolicy {
        RetryPolicy { max_retries: 5, backoff_base_ms, backoff_max_sec, retry_after_max_sec }
    }

    #[test]
    fn the_ceiling_doubles_up_to_its_cap() {
        let policy = policy(1_000, 60, 0);
        let seconds: Vec<u64> = (1..=8).map(|failed| policy.ceiling(failed).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    proptest! {
        #[test]
        fn the_delay_stays_within_its_bounds(
            base in 1_u64..=3_600_000, max in 1_u64..=86_400, after_max in 0_u64..=86_400,
            failed in 0_u32..=u32::MAX, asked in prop::option::of(0_u64..=u64::MAX), random in 0.0..1.0_f64,
        ) {
            let policy = policy(base, max, after_max);
            let asked = asked.map(Duration::from_secs);
            let delay = policy.delay(failed, asked, random);
            let honoured = asked.unwrap_or_default().min(Duration::from_secs(after_max));
            prop_assert!(delay >= honoured);
            prop_assert!(delay <= policy.ceiling(failed).max(honoured));
            prop_assert!(policy.ceiling(failed) <= Duration::from_secs(max));
            prop_assert!(policy.ceiling(failed) <= policy.ceiling(failed.saturating_add(1)));
        }
    }
}
