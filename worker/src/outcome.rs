//! What an attempt means for its job. Pure.

use std::time::Duration;

use outbox::job::claim::Claimed;
use outbox::job::settle::Settlement;
use outbox::job::states::{Outcome, Status, Verdict};
use outbox::job::unclaimed::UnclaimedJob;
use outbox::retry::RetryPolicy;
use time::OffsetDateTime;

use crate::intake::Finding;
use crate::response::{Exchange, Response};
use crate::send_error::SendError;
use crate::status_set::StatusSet;

/// What responses mean, besides that only 2xx is success.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Responses")]
pub(crate) struct ResponsePolicy {
    /// Statuses that end a job at once, as in `410,400-404,4xx`; any other that is not 2xx is tried again. 410 says
    /// that the endpoint is gone.
    #[arg(long, env, default_value = "410", value_parser = StatusSet::parse)]
    pub final_statuses: StatusSet,
    /// Statuses that slow the whole destination down, besides failing the attempt.
    #[arg(long, env, default_value = "429,502-504", value_parser = StatusSet::parse)]
    pub slow_down_statuses: StatusSet,
}

/// All that an outcome depends on besides the exchange.
#[derive(Clone, Copy)]
pub(crate) struct Policy<'a> {
    pub retry: &'a RetryPolicy,
    pub responses: &'a ResponsePolicy,
}

/// What cannot be read stays so, and a refused URL stays refused; what is not final may work next time, and a name may lead elsewhere then.
pub(crate) fn verdict(exchange: &Exchange, responses: &ResponsePolicy) -> Verdict {
    match exchange {
        Ok(Response { status: 200..=299, .. }) => Verdict::Success,
        Ok(Response { status, .. }) if responses.final_statuses.contains(*status) => Verdict::GiveUp,
        Err(SendError::Unreadable(_) | SendError::Target(_) | SendError::Headers(_)) => Verdict::GiveUp,
        Ok(_) | Err(_) => Verdict::TryAgain,
    }
}

/// What an attempt says about its destination, rather than about its job. `timeout` is that of jobs without one of their
/// own.
///
/// Statuses below 500 are those of a receiver that is well: one of many endpoints behind one name must not
/// stop the others. And a job that gives its receiver much less time than others has its own failure.
pub(crate) fn finding(exchange: &Exchange, timeout: Duration, responses: &ResponsePolicy) -> Option<Finding> {
    match exchange {
        Ok(Response { status: 200..=299, .. }) => {
            Some(Finding { failed: false, slow_down: false, error: String::new() })
        }
        Ok(response) => {
            let slow_down = responses.slow_down_statuses.contains(response.status);
            Some(Finding { failed: response.status >= 500, slow_down, error: http(exchange) })
        }
        // Nothing was sent, or nobody waited for the response.
        Err(
            SendError::Unreadable(_)
            | SendError::Target(_)
            | SendError::Addresses(_)
            | SendError::Headers(_)
            | SendError::Key(_)
            | SendError::Late
            | SendError::Stopped,
        ) => None,
        Err(SendError::Timeout(own)) if *own < timeout / 2 => None,
        Err(error) => Some(Finding { failed: true, slow_down: false, error: error.to_string() }),
    }
}

/// For how long the receiver asks to be left alone: with Retry-After and a status that slows down. That binds the URL
/// that it was said of; others at the same host may be somebody else's.
pub(crate) fn pause(
    exchange: &Exchange,
    longest: Duration,
    responses: &ResponsePolicy,
    now: OffsetDateTime,
) -> Option<Duration> {
    let response = exchange.as_ref().ok().filter(|response| responses.slow_down_statuses.contains(response.status))?;
    let asked = response.asked_wait(now)?.min(longest);
    (asked > Duration::ZERO).then_some(asked)
}

/// The record of an attempt that this worker made.
///
/// `random` is from 0 up to but not including 1; `now` is the time that a date in Retry-After counts from.
pub(crate) fn settlement(
    job: &Claimed,
    worker: &str,
    exchange: &Exchange,
    duration: Duration,
    Policy { retry: policy, responses }: Policy<'_>,
    now: OffsetDateTime,
    random: f64,
) -> Settlement {
    let status = after(verdict(exchange, responses), job.retry_count, job.max_attempts, policy);
    let (status_code, excerpt, asked) = match exchange {
        Ok(response) => (Some(response.status.into()), response.excerpt.clone(), response.asked_wait(now)),
        Err(_) => (None, String::new(), None),
    };
    let failed_attempts = job.retry_count.cast_unsigned() + 1;
    Settlement {
        job_id: job.job_id,
        attempt: job.attempt,
        status,
        retry_in: policy.delay(failed_attempts, asked, random),
        ordered: job.ordered,
        taken_over: false,
        worker: worker.to_owned(),
        started_at: job.started_at,
        duration_ms: Some(i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)),
        status_code,
        outcome: match exchange {
            Ok(_) if status == Status::Success => Outcome::Success,
            // It was sent, and nobody heard the response.
            Err(SendError::Stopped) => Outcome::Unknown,
            _ => Outcome::Failed,
        },
        error: error_text(exchange),
        response_excerpt: excerpt,
    }
}

/// The record of an attempt whose worker was lost, on its behalf: nobody knows whether the receiver has
/// it. It counts, so that a job that kills its worker comes to an end. The lease was wait enough.
pub(crate) fn settlement_of_lost(job: &UnclaimedJob, policy: &RetryPolicy) -> Settlement {
    Settlement {
        job_id: job.job_id,
        attempt: job.attempt,
        status: after(Verdict::TryAgain, job.retry_count, job.max_attempts, policy),
        retry_in: Duration::ZERO,
        ordered: job.ordered,
        taken_over: true,
        worker: job.claimed_by.clone(),
        started_at: job.started_at,
        duration_ms: None,
        status_code: None,
        outcome: Outcome::Unknown,
        error: format!("attempt {} has no outcome: its worker was lost", job.attempt),
        response_excerpt: String::new(),
    }
}

fn after(verdict: Verdict, retry_count: i32, max_attempts: Option<i32>, policy: &RetryPolicy) -> Status {
    let max_attempts = max_attempts.map_or(policy.max_retries, i32::cast_unsigned);
    Status::after_attempt(verdict, retry_count.cast_unsigned(), max_attempts)
}

fn error_text(exchange: &Exchange) -> String {
    match exchange {
        Ok(Response { status: 200..=299, .. }) => String::new(),
        Ok(Response { status: 300..=399, .. }) => format!("{}: redirects are not followed", http(exchange)),
        Ok(Response { status: 410, .. }) => format!("{}: the endpoint is gone", http(exchange)),
        Ok(_) => http(exchange),
        Err(error) => error.to_string(),
    }
}

fn http(exchange: &Exchange) -> String {
    exchange.as_ref().map(|response| format!("HTTP {}", response.status)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
