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
        (Err(SendError::Timeout(Duration::from_secs(10))), Status::Pending, Outcome::Failed, "no answer within 10 s"),
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
    let job = |retry_count| UnclaimedJob {
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
    let lost = settlement_of_lost(&job(0), &policy());
    assert_eq!((lost.status, lost.outcome, lost.retry_in), (Status::Pending, Outcome::Unknown, Duration::ZERO));
    assert_eq!(settlement_of_lost(&job(2), &policy()).status, Status::Failed);
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
