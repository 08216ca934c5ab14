//! The records of attempts, as the worker makes them.

use std::time::Duration;

use outbox::job::claim::Claimed;
use outbox::job::settle::Settlement;
use outbox::job::states::{Outcome, Status, Verdict};
use outbox::job::unclaimed::UnclaimedJob;

use super::replay::LONG;

/// The record of an attempt by whoever made it. Counts as it did when the attempt was claimed.
pub fn of_attempt(worker: usize, job: &Claimed, verdict: Verdict, retry_at_once: bool) -> Settlement {
    let success = verdict == Verdict::Success;
    Settlement {
        job_id: job.job_id,
        attempt: job.attempt,
        status: after(verdict, job.retry_count, job.max_attempts),
        retry_in: if retry_at_once { Duration::ZERO } else { LONG },
        ordered: job.ordered,
        taken_over: false,
        worker: worker.to_string(),
        started_at: job.started_at,
        duration_ms: Some(1),
        status_code: Some(if success { 200 } else { 500 }),
        outcome: if success { Outcome::Success } else { Outcome::Failed },
        error: if success { String::new() } else { "HTTP 500".to_owned() },
        response_excerpt: String::new(),
    }
}

/// The record of an attempt whose worker was lost, on its behalf.
pub fn of_lost(job: &UnclaimedJob) -> Settlement {
    Settlement {
        job_id: job.job_id,
        attempt: job.attempt,
        status: after(Verdict::TryAgain, job.retry_count, job.max_attempts),
        retry_in: Duration::ZERO,
        ordered: job.ordered,
        taken_over: true,
        worker: job.claimed_by.clone(),
        started_at: job.started_at,
        duration_ms: None,
        status_code: None,
        outcome: Outcome::Unknown,
        error: "its worker was lost".to_owned(),
        response_excerpt: String::new(),
    }
}

fn after(verdict: Verdict, retry_count: i32, max_attempts: Option<i32>) -> Status {
    let max_attempts = max_attempts.expect("every job of the model has its own limit");
    Status::after_attempt(verdict, retry_count.cast_unsigned(), max_attempts.cast_unsigned())
}
