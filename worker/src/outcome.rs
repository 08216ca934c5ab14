//! What an attempt means for its job. Pure.

use std::time::Duration;

use outbox::claim::{Claimed, Standing};
use outbox::job::{Outcome, Status, Verdict};
use outbox::retry::RetryPolicy;
use outbox::settle::Settlement;
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
pub(crate) fn settlement_of_lost(standing: &Standing, policy: &RetryPolicy) -> Settlement {
    Settlement {
        job_id: standing.job_id,
        attempt: standing.attempt,
        status: after(Verdict::TryAgain, standing.retry_count, standing.max_attempts, policy),
        retry_in: Duration::ZERO,
        ordered: standing.ordered,
        taken_over: true,
        worker: standing.claimed_by.clone(),
        started_at: standing.started_at,
        duration_ms: None,
        status_code: None,
        outcome: Outcome::Unknown,
        error: format!("attempt {} has no outcome: its worker was lost", standing.attempt),
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
mod tests {
    use outbox::target::TargetError;
    use time::macros::datetime;
    use uuid::Uuid;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-01-01 12:00 UTC);

    fn policy() -> RetryPolicy {
        RetryPolicy {
            max_retries: 3,
            backoff_base_ms: 1_000,
            backoff_max_sec: 60,
            retry_after_max_sec: 100,
            retry_schedule: None,
        }
    }

    fn responses() -> ResponsePolicy {
        let set = |text| StatusSet::parse(text).expect(text);
        ResponsePolicy { final_statuses: set("410,42x"), slow_down_statuses: set("429,502-504") }
    }

    fn job(retry_count: i32, max_attempts: Option<i32>) -> Claimed {
        Claimed {
            job_id: Uuid::nil(),
            attempt: retry_count + 1,
            retry_count,
            max_attempts,
            timeout_ms: None,
            ordered: false,
            client_url: String::new(),
            payload: String::new(),
            headers: serde_json::json!({}),
            unreadable: None,
            sealed_key: None,
            destination_keys: None,
            started_at: NOW,
            created_at: NOW,
        }
    }

    #[allow(clippy::unnecessary_wraps, reason = "it is one of the two kinds of an exchange")]
    fn response(status: u16) -> Exchange {
        Ok(Response { status, retry_after: Vec::new(), excerpt: "body".to_owned() })
    }

    fn settle(job: &Claimed, exchange: &Exchange) -> Settlement {
        let policy = Policy { retry: &policy(), responses: &responses() };
        settlement(job, "w", exchange, Duration::from_millis(12), policy, NOW, 0.5)
    }

    #[test]
    fn each_answer_has_its_meaning() {
        let refused = Err(SendError::Target(TargetError::PrivateNetwork));
        for (exchange, status, outcome, error) in [
            (response(200), Status::Success, Outcome::Success, ""),
            (response(299), Status::Success, Outcome::Success, ""),
            (response(301), Status::Pending, Outcome::Failed, "HTTP 301: redirects are not followed"),
            (response(404), Status::Pending, Outcome::Failed, "HTTP 404"),
            (response(410), Status::Failed, Outcome::Failed, "HTTP 410: the endpoint is gone"),
            (response(422), Status::Failed, Outcome::Failed, "HTTP 422"),
            (response(500), Status::Pending, Outcome::Failed, "HTTP 500"),
            (response(999), Status::Pending, Outcome::Failed, "HTTP 999"),
            (
                Err(SendError::Timeout(Duration::from_secs(10))),
                Status::Pending,
                Outcome::Failed,
                "no answer within 10 s",
            ),
            (
                Err(SendError::Addresses(TargetError::PrivateNetwork)),
                Status::Pending,
                Outcome::Failed,
                "target refused: the target is in a network that is not public and not allowed by ALLOW_NETWORKS",
            ),
            (Err(SendError::Stopped), Status::Pending, Outcome::Unknown, "the worker stopped before the answer came"),
            (
                refused,
                Status::Failed,
                Outcome::Failed,
                "target refused: the target is in a network that is not public and not allowed by ALLOW_NETWORKS",
            ),
        ] {
            let settlement = settle(&job(0, None), &exchange);
            assert_eq!((settlement.status, settlement.outcome), (status, outcome), "{exchange:?}");
            assert_eq!(settlement.error, error);
        }
    }

    #[test]
    fn a_destination_is_judged_by_whether_it_works_and_not_by_whether_it_takes_a_webhook() {
        let found = |exchange: &Exchange| {
            finding(exchange, Duration::from_secs(10), &responses()).map(|it| (it.failed, it.slow_down))
        };
        assert_eq!(found(&response(200)), Some((false, false)));
        assert_eq!(found(&response(404)), Some((false, false)));
        assert_eq!(found(&response(429)), Some((false, true)));
        assert_eq!(found(&response(500)), Some((true, false)));
        assert_eq!(found(&response(503)), Some((true, true)));
        assert_eq!(found(&Err(SendError::Timeout(Duration::from_secs(10)))), Some((true, false)));
        assert_eq!(found(&Err(SendError::Timeout(Duration::from_millis(100)))), None, "a job's own short time-out");
        assert_eq!(found(&Err(SendError::Stopped)), None);
        assert_eq!(found(&Err(SendError::Target(TargetError::PortZero))), None);
        assert_eq!(found(&Err(SendError::Addresses(TargetError::PrivateNetwork))), None);
    }

    #[test]
    fn a_pause_is_what_is_asked_for_with_a_status_that_slows_down() {
        let asked = |status: u16, text: &str| {
            let response = Response { status, retry_after: vec![text.to_owned()], excerpt: String::new() };
            pause(&Ok(response), Duration::from_secs(100), &responses(), NOW).map(|it| it.as_secs())
        };
        assert_eq!(asked(429, "30"), Some(30));
        assert_eq!(asked(503, "1000000"), Some(100), "clamped");
        for (status, text) in [(429, "0"), (429, "soon"), (500, "30"), (200, "30")] {
            assert_eq!(asked(status, text), None, "{status} {text}");
        }
        assert_eq!(pause(&response(429), Duration::from_secs(100), &responses(), NOW), None);
    }

    #[test]
    fn the_last_attempt_fails_the_job() {
        assert_eq!(settle(&job(1, None), &response(500)).status, Status::Pending);
        assert_eq!(settle(&job(2, None), &response(500)).status, Status::Failed);
        assert_eq!(settle(&job(2, Some(4)), &response(500)).status, Status::Pending, "its own limit counts");
        assert_eq!(settle(&job(0, Some(1)), &response(500)).status, Status::Failed);
    }

    #[test]
    fn a_lost_attempt_counts_and_is_tried_again_at_once() {
        let standing = |retry_count| Standing {
            job_id: Uuid::nil(),
            status: Status::Processing,
            attempt: 3,
            retry_count,
            max_attempts: None,
            ordered: false,
            claimed_by: "w".to_owned(),
            started_at: NOW,
            lease_expired: true,
            paused_for: None,
        };
        let lost = settlement_of_lost(&standing(0), &policy());
        assert_eq!((lost.status, lost.outcome, lost.retry_in), (Status::Pending, Outcome::Unknown, Duration::ZERO));
        assert_eq!(settlement_of_lost(&standing(2), &policy()).status, Status::Failed);
    }

    #[test]
    fn the_wait_is_the_jittered_backoff_or_what_the_receiver_asks_for() {
        assert_eq!(settle(&job(0, None), &response(500)).retry_in, Duration::from_millis(500));
        assert_eq!(settle(&job(1, None), &response(500)).retry_in, Duration::from_secs(1));
        let asked = |text: &str| {
            let response = Response { status: 503, retry_after: vec![text.to_owned()], excerpt: String::new() };
            settle(&job(0, None), &Ok(response)).retry_in.as_secs()
        };
        assert_eq!(asked("30"), 30);
        assert_eq!(asked("1000000"), 100, "clamped");
        assert_eq!(asked("99999999999999999999"), 100, "clamped");
    }
}
