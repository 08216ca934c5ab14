//! A failed delivery is tried again on its schedule, until it succeeds or its attempts are used up.

use std::time::Duration;

use harness::{Mode, PATIENCE, Stack, TcpProxy, wait_until};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

/// Beyond the schedule: the relay's wake-up, the broker, the claim, and a machine that is busy with other tests.
const SLACK: Duration = Duration::from_secs(3);

/// An attempt as it is recorded.
#[derive(Debug, sqlx::FromRow)]
struct Attempt {
    #[sqlx(rename = "attempt")]
    number: i32,
    started_at: OffsetDateTime,
    duration_ms: Option<i32>,
    status_code: Option<i32>,
    outcome: String,
    error: String,
    retry_at: Option<OffsetDateTime>,
}

async fn attempts(stack: &Stack, job_id: Uuid) -> Vec<Attempt> {
    sqlx::query_as("SELECT * FROM webhook_attempts WHERE job_id = $1 ORDER BY attempt")
        .bind(job_id)
        .fetch_all(stack.pool())
        .await
        .expect("attempts can be read")
}

async fn finished(stack: &Stack, job_id: Uuid) -> Value {
    wait_until("the job's end", PATIENCE, async || {
        let status = stack.client.job(job_id).await["status"].clone();
        status != "pending" && status != "processing"
    })
    .await;
    stack.client.job(job_id).await
}

/// The schedule, seen from both ends: what the database promised and when the receiver was called.
async fn assert_schedule(stack: &Stack, job_id: Uuid, ceilings: &[Duration]) {
    let recorded = attempts(stack, job_id).await;
    let deliveries = stack.deliveries(job_id);
    assert_eq!(recorded.len(), deliveries.len());
    for (index, &ceiling) in ceilings.iter().enumerate() {
        let retry_at = recorded[index].retry_at.expect("a failed attempt that is not the last has a retry_at");
        // The wait counts from the record, which comes after the answer.
        let answered = recorded[index].started_at
            + Duration::from_millis(recorded[index].duration_ms.unwrap_or_default().unsigned_abs().into());
        let waited = retry_at - answered;
        assert!(waited <= ceiling + SLACK, "attempt {}: retry after {waited}, ceiling {ceiling:?}", index + 1);
        let arrived = deliveries[index + 1].at;
        assert!(arrived >= retry_at, "attempt {} came {} early", index + 2, retry_at - arrived);
        assert!(arrived <= retry_at + SLACK, "attempt {} came {} late", index + 2, arrived - retry_at);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_tried_again_until_it_succeeds() {
    let stack = Stack::builder().env("BACKOFF_BASE_MS", "400").env("BACKOFF_MAX_SEC", "1").start().await;
    let id = stack.post("{}", "?fail_times=4&status=503").await.job_id;
    let job = finished(&stack, id).await;

    assert_eq!((&job["status"], &job["retry_count"], &job["error"]), (&"success".into(), &4.into(), &"".into()));
    let deliveries = stack.deliveries(id);
    let seen: Vec<_> = deliveries.iter().map(|it| (it.attempt, it.status_answered())).collect();
    let failed = |attempt| (Some(attempt), Some(503));
    assert_eq!(seen, [failed(1), failed(2), failed(3), failed(4), (Some(5), Some(200))]);
    assert_schedule(&stack, id, &[400, 800, 1_000, 1_000].map(Duration::from_millis)).await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_backoff_has_full_jitter_and_doubles() {
    const JOBS: usize = 40;
    let stack = Stack::builder().env("BACKOFF_BASE_MS", "200").start().await;
    for _ in 0..JOBS {
        stack.post("{}", "?fail_times=2").await;
    }
    stack.wait_until_drained(PATIENCE).await;

    // From the settlement's own statement, whose now() both columns are measured by.
    let waits: Vec<(i32, f64)> = sqlx::query_as(
        "SELECT attempt, extract(epoch FROM retry_at - started_at)::float8 * 1000 - duration_ms
         FROM webhook_attempts WHERE retry_at IS NOT NULL",
    )
    .fetch_all(stack.pool())
    .await
    .expect("attempts can be read");
    let waits = |attempt: i32| -> Vec<f64> { waits.iter().filter(|it| it.0 == attempt).map(|it| it.1).collect() };
    let (first, second) = (waits(1), waits(2));
    assert_eq!((first.len(), second.len()), (JOBS, JOBS));
    // Half of each should lie in the lower half; that none of 40 does happens once in 10^12 runs.
    assert!(first.iter().any(|&wait| wait < 150.0), "no jitter: {first:?}");
    assert!(second.iter().any(|&wait| wait < 250.0), "no jitter: {second:?}");
    assert!(second.iter().any(|&wait| wait > 200.0), "no doubling: {second:?}");
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_fails_when_its_attempts_are_used_up() {
    let stack = Stack::builder().env("MAX_RETRIES", "3").start().await;
    let default = stack.post("{}", "?status=503").await.job_id;
    let own = stack.client.post_webhook(&stack.webhook("?status=404").max_attempts(2)).await.job_id;

    for (id, attempts_in_all, status) in [(default, 3, 503), (own, 2, 404)] {
        let job = finished(&stack, id).await;
        assert_eq!((&job["status"], &job["retry_count"]), (&"failed".into(), &attempts_in_all.into()));
        assert_eq!(job["error"], format!("HTTP {status}"));
        assert_eq!(job["outbox"], Value::Null);
        let attempts = attempts(&stack, id).await;
        assert_eq!(attempts.len(), usize::try_from(attempts_in_all).expect("it is small"));
        assert!(attempts.iter().all(|it| it.outcome == "failed" && it.status_code == Some(status)), "{attempts:?}");
        let last = attempts.last().expect("there are some");
        assert!(last.retry_at.is_none(), "nothing comes after the last attempt: {last:?}");
    }
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_after_is_waited_out() {
    let stack = Stack::start().await;
    let id = stack.post("{}", "?fail_times=1&status=429&retry_after=2").await.job_id;
    finished(&stack, id).await;

    let deliveries = stack.deliveries(id);
    let gap = deliveries[1].at - deliveries[0].at;
    assert!(gap >= Duration::from_secs(2) && gap <= Duration::from_secs(2) + SLACK, "{gap}");
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_410_is_final_and_a_redirect_is_not_followed() {
    let stack = Stack::builder().env("MAX_RETRIES", "2").start().await;
    let gone = stack.post("{}", "?status=410").await.job_id;
    let elsewhere = stack.receiver.url("/elsewhere");
    let moved = stack.post("{}", &format!("?status=308&location={elsewhere}")).await.job_id;

    let job = finished(&stack, gone).await;
    assert_eq!((&job["status"], &job["attempt"]), (&"failed".into(), &1.into()));
    assert!(job["error"].as_str().is_some_and(|error| error.contains("410")), "{job}");
    let job = finished(&stack, moved).await;
    assert_eq!((&job["status"], &job["attempt"]), (&"failed".into(), &2.into()));
    assert!(job["error"].as_str().is_some_and(|error| error.contains("308")), "{job}");
    assert!(stack.receiver.received().iter().all(|it| it.path_and_query.starts_with("/hook")));
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_hangs_resets_or_is_away_gets_it_later() {
    let stack = Stack::builder().env("HTTP_CLIENT_TIMEOUT_SEC", "1").start().await;
    let hung = stack.post("{}", "?hang=1&fail_times=1").await.job_id;
    let reset = stack.post("{}", "?reset=1&fail_times=1").await.job_id;
    let proxy = TcpProxy::start(stack.receiver.address()).await;
    proxy.set(Mode::Reset);
    let away = stack.client.post("{}", &format!("http://{}/hook", proxy.address())).await.job_id;
    wait_until("an attempt on the dead address", PATIENCE, async || !attempts(&stack, away).await.is_empty()).await;
    proxy.set(Mode::Forward);

    for id in [hung, reset, away] {
        let job = finished(&stack, id).await;
        assert_eq!(job["status"], "success", "{job}");
        let attempts = attempts(&stack, id).await;
        let first = &attempts[0];
        assert_eq!((first.number, first.outcome.as_str(), first.status_code), (1, "failed", None));
        assert!(!first.error.is_empty() && !first.error.contains("127.0.0.1"), "{first:?}");
    }
    stack.finish().await;
}
