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
    /// Waits between attempts instead of the exponential backoff, as in `5s,5m,2h`, the last one repeated as often
    /// as a job has attempts left; or `standard` for those of Standard Webhooks. A tenth of each is added at random.
    #[arg(long, env, value_parser = Schedule::parse)]
    pub retry_schedule: Option<Schedule>,
}

/// Waits after the first failed attempt, the second, and so on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule(Vec<Duration>);

/// "Standard Webhooks" 1.0.0, section "Deliverability and reliability".
const STANDARD: &str = "5s,5m,30m,2h,5h,10h,14h,20h,24h";

/// No wait of a schedule is longer.
const LONGEST_WAIT: Duration = Duration::from_hours(24);

impl Schedule {
    /// Reads `standard`, or waits separated by commas, each a number with `ms`, `s`, `m` or `h`.
    ///
    /// # Errors
    /// It is something else, or a wait is longer than a day.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = if text == "standard" { STANDARD } else { text };
        text.split(',').map(|wait| parse_wait(wait.trim())).collect::<Option<_>>().map(Self).ok_or_else(|| {
            "it must be `standard` or waits of at most a day separated by commas, as in 5s,5m,2h".to_owned()
        })
    }

    fn wait(&self, failed_attempts: u32) -> Duration {
        let index = (failed_attempts.max(1) as usize).min(self.0.len());
        self.0[index - 1]
    }
}

fn parse_wait(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|character: char| !character.is_ascii_digit())?);
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    let wait = Duration::from_millis(number.parse::<u64>().ok()?.checked_mul(milliseconds)?);
    (wait <= LONGEST_WAIT).then_some(wait)
}

impl RetryPolicy {
    /// The longest wait that a receiver may ask for.
    #[must_use]
    pub const fn retry_after_max(&self) -> Duration {
        Duration::from_secs(self.retry_after_max_sec)
    }

    /// The longest that may be waited after this many failed attempts (1 or more).
    #[must_use]
    pub fn ceiling(&self, failed_attempts: u32) -> Duration {
        if let Some(schedule) = &self.retry_schedule {
            return schedule.wait(failed_attempts).mul_f64(1.1);
        }
        let doublings = failed_attempts.saturating_sub(1).min(63);
        let backoff = self.backoff_base_ms.saturating_mul(1 << doublings);
        Duration::from_millis(backoff.min(self.backoff_max_sec * 1_000))
    }

    /// How long to wait after this many failed attempts.
    ///
    /// Full jitter: `random`, from 0 up to but not including 1, picks a point below [`Self::ceiling`]
    /// ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015). A schedule's wait is kept, and lengthened
    /// by a tenth at the most, so that what failed together does not come back together. A receiver's `retry_after`, as
    /// far as it is within bounds, is waited out in full.
    #[must_use]
    pub fn delay(&self, failed_attempts: u32, retry_after: Option<Duration>, random: f64) -> Duration {
        let backoff = match &self.retry_schedule {
            Some(schedule) => schedule.wait(failed_attempts).mul_f64(1.0 + random / 10.0),
            None => self.ceiling(failed_attempts).mul_f64(random),
        };
        let asked = retry_after.unwrap_or_default().min(self.retry_after_max());
        backoff.max(asked)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(backoff_base_ms: u64, backoff_max_sec: u64, retry_after_max_sec: u64) -> RetryPolicy {
        RetryPolicy { max_retries: 5, backoff_base_ms, backoff_max_sec, retry_after_max_sec, retry_schedule: None }
    }

    #[test]
    fn the_ceiling_doubles_up_to_its_cap() {
        let policy = policy(1_000, 60, 0);
        let seconds: Vec<u64> = (1..=8).map(|failed| policy.ceiling(failed).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn a_schedule_is_kept_and_its_last_wait_repeated() {
        let schedule =
            |text| RetryPolicy { retry_schedule: Some(Schedule::parse(text).expect(text)), ..policy(1, 1, 60) };
        let waits = |text, random| -> Vec<u64> {
            (1..=4).map(|failed| schedule(text).delay(failed, None, random).as_secs()).collect()
        };
        assert_eq!(waits("10s, 5m,2h", 0.0), [10, 300, 7_200, 7_200]);
        assert_eq!(waits("10s,5m,2h", 0.5), [10, 315, 7_560, 7_560]);
        assert_eq!(waits("standard", 0.0), [5, 300, 1_800, 7_200]);
        assert_eq!(schedule("0s").delay(1, Some(Duration::from_secs(7)), 0.9), Duration::from_secs(7));
        for wrong in ["", "5", "s", "5d", "-1s", "25h", "5s,,5s", "99999999999999999999h", "1.5s"] {
            assert!(Schedule::parse(wrong).is_err(), "{wrong}");
        }
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
