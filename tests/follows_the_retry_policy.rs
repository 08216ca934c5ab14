//! When a job is tried again, for how long, and what ends it, is what the configuration and the job itself say.

use std::time::Duration;

use harness::{PATIENCE, Stack};
use uuid::Uuid;

/// Milliseconds from each attempt's record to the next one's due time.
async fn waits(stack: &Stack, job_id: Uuid) -> Vec<f64> {
    let waits = "SELECT extract(epoch FROM retry_at - started_at)::float8 * 1000 - duration_ms
        FROM webhook_attempts WHERE job_id = $1 AND retry_at IS NOT NULL ORDER BY attempt";
    sqlx::query_scalar(waits).bind(job_id).fetch_all(stack.pool()).await.expect("attempts can be read")
}

async fn error(stack: &Stack, job_id: Uuid) -> String {
    stack.client.job(job_id).await["error"].as_str().expect("it is text").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schedule_takes_the_place_of_the_backoff() {
    let stack = Stack::builder().worker_env("RETRY_SCHEDULE", "100ms,400ms").start().await;
    let id = stack.post("{}", "?fail_times=3").await.job_id;
    stack.wait_until_drained(PATIENCE).await;
    let waits = waits(&stack, id).await;
    assert_eq!(waits.len(), 3, "{waits:?}");
    // The record comes some time after the answer, on a busy machine; never before.
    for (wait, scheduled) in waits.iter().zip([100.0, 400.0, 400.0]) {
        assert!(*wait >= scheduled && *wait < scheduled * 1.1 + 3_000.0, "{waits:?}");
    }
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_has_a_time_limit_of_its_own() {
    let stack = Stack::builder().worker_env("HTTP_CLIENT_TIMEOUT_SEC", "1").start().await;
    let slow = || stack.webhook("?delay_ms=1500").max_attempts(1);
    let short = stack.client.post_webhook(&slow().timeout_ms(200)).await.job_id;
    let long = stack.client.post_webhook(&slow().timeout_ms(30_000)).await.job_id;
    let default = stack.client.post_webhook(&slow()).await.job_id;
    stack.wait_until_drained(PATIENCE).await;
    assert_eq!(error(&stack, short).await, "no answer within 0.2 s");
    assert_eq!(error(&stack, default).await, "no answer within 1 s");
    assert_eq!(stack.client.job(long).await["status"], "success");
    // Its lease was longer than its time, or it would have been taken over: that is an attempt of its own.
    assert_eq!(stack.client.job(long).await["attempt"], 1);
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statuses_that_are_final_are_configured_in_one_place() {
    let stack = Stack::builder().worker_env("FINAL_STATUSES", "4xx,501").start().await;
    let attempts_of = async |status: u16| {
        let webhook = stack.webhook(&format!("?status={status}")).max_attempts(2);
        let id = stack.client.post_webhook(&webhook).await.job_id;
        stack.wait_until_drained(PATIENCE).await;
        stack.client.job(id).await["attempt"].as_i64()
    };
    for (status, attempts) in [(400, 1), (404, 1), (410, 1), (501, 1), (500, 2), (302, 2)] {
        assert_eq!(attempts_of(status).await, Some(attempts), "{status}");
    }
    stack.finish().await;
}

/// Garbage and the past are no wish, and nobody may wish for more than the configuration allows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_after_is_kept_within_bounds() {
    const MOST: Duration = Duration::from_secs(2);
    let stack = Stack::builder().worker_env("RETRY_AFTER_MAX_SEC", "2").start().await;
    let date = "Thu,%2001%20Jan%202026%2000:00:00%20GMT";
    for (asked, most) in
        [("1000000000", MOST), ("-5", Duration::ZERO), ("soon", Duration::ZERO), (date, Duration::ZERO)]
    {
        let id = stack.post("{}", &format!("?fail_times=1&status=500&retry_after={asked}")).await.job_id;
        stack.wait_until_drained(PATIENCE).await;
        let waits = waits(&stack, id).await;
        assert!(waits[0] < most.as_secs_f64() * 1_000.0 + 1_000.0 + 3_000.0, "{asked}: {waits:?}");
        assert!(waits[0] >= most.as_secs_f64() * 1_000.0, "{asked}: {waits:?}");
    }
    stack.finish().await;
}
