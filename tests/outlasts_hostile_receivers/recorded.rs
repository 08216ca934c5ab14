//! What is recorded of an attempt at a hostile receiver, and the setting that all of them share.

use std::time::Duration;

use harness::attempts::{Attempt, attempts, enqueue, status_and_error};
use harness::{PATIENCE, RawServer, Stack};
use uuid::Uuid;

/// An attempt's time in these tests, and what its record may be late on a busy machine.
pub(super) const TIMEOUT: Duration = Duration::from_secs(4);
pub(super) const SLACK: Duration = Duration::from_secs(8);

/// What people see of an attempt: the job's status, the HTTP status, and a part of the error.
pub(super) type Expected = (&'static str, Option<i32>, &'static str);

pub(super) const SUCCESS: Expected = ("success", Some(200), "");

pub(super) fn failed(error: &'static str) -> Expected {
    ("failed", None, error)
}

pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) server: RawServer,
    pub(super) expected: Expected,
}

pub(super) async fn stack() -> Stack {
    Stack::builder().env("HTTP_CLIENT_TIMEOUT_SEC", &TIMEOUT.as_secs().to_string()).start().await
}

/// Stores a webhook of one attempt for each case, waits for their ends and checks what is recorded.
pub(super) async fn deliver(stack: &Stack, cases: &[Case]) -> Vec<Attempt> {
    let mut jobs = Vec::new();
    for case in cases {
        jobs.push(enqueue(stack.pool(), &case.server.url(), r#"{"a": 1}"#).await.expect("it is a URL"));
    }
    stack.wait_until_drained(PATIENCE).await;
    let mut recorded = Vec::new();
    for (case, job_id) in cases.iter().zip(jobs) {
        recorded.push(assert_recorded(stack, case.name, job_id, case.expected).await);
    }
    recorded
}

pub(super) async fn assert_recorded(stack: &Stack, case: &str, job_id: Uuid, expected: Expected) -> Attempt {
    let (status, error) = status_and_error(stack.pool(), job_id).await;
    let mut attempts = attempts(stack.pool(), job_id).await;
    let attempt = attempts.pop().unwrap_or_else(|| panic!("{case}: no attempt is recorded"));
    assert_eq!((status.as_str(), attempt.status_code), (expected.0, expected.1), "{case}: {attempt:?}");
    assert!(error.contains(expected.2), "{case}: {attempt:?}");
    assert_eq!(error, attempt.error, "{case}");
    assert_eq!(error.is_empty(), status == "success", "{case}: {attempt:?}");
    // Neither URL nor address.
    assert!(!error.contains("127.0.0.1") && !error.contains("/hook") && !error.contains(".invalid"), "{case}: {error}");
    let took = Duration::from_millis(attempt.duration_ms.expect("it is known").unsigned_abs().into());
    assert!(took < TIMEOUT + SLACK, "{case}: it took {took:?}");
    attempt
}
