//! The state machine of a job. Pure: the SQL of [`crate::job::claim`], [`crate::job::settle`] and [`crate::job::cancel`]
//! carries it out.
//!
//! ```text
//! cancelled
//!    ▲
//! cancel
//!    │
//! pending ──claim──▶ processing ──2xx──▶ success
//!    ▲                   │
//!    └──may try again────┴──gives up──▶ failed
//! ```
//! `success`, `failed` and `cancelled` are final: no transition leaves them.

/// Where a job stands. The text in the database is [`Status::as_str`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Waiting for its outbox row to become due, or for a worker to take its task.
    Pending,
    /// Claimed by a worker, whose lease has not been settled.
    Processing,
    /// Delivered: the receiver answered 2xx.
    Success,
    /// Given up.
    Failed,
    /// Withdrawn by its owner.
    Cancelled,
}

impl Status {
    /// Every status, in the order of a job's life.
    pub const ALL: [Self; 5] = [Self::Pending, Self::Processing, Self::Success, Self::Failed, Self::Cancelled];

    /// The text in `webhook_jobs.status`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Processing => "processing",
            Self::Success => "success",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The status with this text in the database.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }

    /// Whether the job is at its end: it has no outbox row and never changes again.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Success | Self::Failed | Self::Cancelled)
    }

    /// Where a job that is being processed goes after an attempt.
    ///
    /// `retry_count` counts the attempts that did not succeed before this one; the job fails when this
    /// one makes it reach `max_attempts`.
    #[must_use]
    pub const fn after_attempt(verdict: Verdict, retry_count: u32, max_attempts: u32) -> Self {
        match verdict {
            Verdict::Success => Self::Success,
            Verdict::GiveUp => Self::Failed,
            Verdict::TryAgain if retry_count + 1 >= max_attempts => Self::Failed,
            Verdict::TryAgain => Self::Pending,
        }
    }
}

/// What an attempt says about its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The receiver has it.
    Success,
    /// It may work next time.
    TryAgain,
    /// It will not work next time either.
    GiveUp,
}

/// The `outcome` column of `webhook_attempts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 2xx.
    Success,
    /// Anything else that is known.
    Failed,
    /// The worker was lost between the request and its record: the receiver may have it or not.
    Unknown,
}

impl Outcome {
    /// The text in `webhook_attempts.outcome`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn verdicts() -> impl Strategy<Value = Vec<Verdict>> {
        let one = prop_oneof![1 => Just(Verdict::Success), 6 => Just(Verdict::TryAgain), 1 => Just(Verdict::GiveUp)];
        prop::collection::vec(one, 100)
    }

    proptest! {
        #[test]
        fn a_job_ends_within_its_attempts_and_as_its_last_verdict_says(verdicts in verdicts(), max in 1_u32..=100) {
            let mut retry_count = 0;
            let mut used = 0;
            let end = verdicts.iter().find_map(|&verdict| {
                used += 1;
                let status = Status::after_attempt(verdict, retry_count, max);
                retry_count += u32::from(status != Status::Success);
                status.is_final().then_some((status, verdict))
            });
            let (status, verdict) = end.expect("100 verdicts end any job of at most 100 attempts");
            prop_assert!(used <= max);
            prop_assert_eq!(status == Status::Success, verdict == Verdict::Success);
            prop_assert!(status == Status::Success || verdict == Verdict::GiveUp || retry_count == max);
        }

        #[test]
        fn an_attempt_leaves_a_job_pending_or_final(retry_count in 0_u32..200, max in 1_u32..=100) {
            for verdict in [Verdict::Success, Verdict::TryAgain, Verdict::GiveUp] {
                let status = Status::after_attempt(verdict, retry_count, max);
                prop_assert!(status == Status::Pending || status.is_final());
                prop_assert!(status != Status::Cancelled, "only its owner cancels a job");
            }
        }
    }

    #[test]
    fn text_and_status_agree() {
        for status in Status::ALL {
            assert_eq!(Status::from_text(status.as_str()), Some(status));
        }
        assert_eq!(Status::from_text("done"), None);
    }
}
