//! Receivers that hang, or that all return at once, harm neither each other without bound nor themselves.

use std::time::Duration;

use harness::{Mode, PATIENCE, Stack, TcpProxy, report, wait_until};
use time::OffsetDateTime;

const WEBHOOKS: i64 = 200;

/// Requests that one worker has under way at once, in these tests.
const CONCURRENCY: u8 = 8;

/// How long the receiver takes for an answer.
const DELAY: Duration = Duration::from_millis(50);

/// The receiver's clock is the wall clock, and counts in whole milliseconds at least.
const CLOCK: Duration = Duration::from_millis(1);

/// How many first retries fall into each quarter of the time that they may be put off by.
async fn spread(stack: &Stack, backoff: Duration) -> Vec<i64> {
    let quarters = "SELECT count(*) FROM webhook_attempts
        WHERE attempt = 1
        GROUP BY least(3, floor(extract(epoch FROM retry_at - started_at - make_interval(secs => duration_ms / 1000.0)) * 4 / $1))";
    let counts = sqlx::query_scalar(quarters).bind(backoff.as_secs_f64()).fetch_all(stack.pool()).await;
    counts.expect("attempts can be counted")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_returns_is_not_overrun() {
    let stack = Stack::builder()
        .env("WORKER_CONCURRENCY", &CONCURRENCY.to_string())
        .env("MAX_RETRIES", "20")
        .env("BACKOFF_BASE_MS", "2000")
        .env("BACKOFF_MAX_SEC", "2")
        .start()
        .await;
    let (proxy, url) = TcpProxy::before(&stack.receiver_url(&format!("?delay_ms={}", DELAY.as_millis()))).await;
    proxy.set(Mode::Reset);
    for _ in 0..WEBHOOKS {
        stack.client.post("{}", &url).await;
    }
    wait_until("every webhook to have failed once", PATIENCE, async || {
        stack.count("SELECT count(*) FROM webhook_attempts WHERE attempt = 1").await == WEBHOOKS
    })
    .await;
    let spread = spread(&stack, Duration::from_secs(2)).await;
    assert_eq!(stack.receiver.received().len(), 0, "the receiver was not away");
    proxy.set(Mode::Forward);
    stack.wait_until_drained(PATIENCE).await;

    let arrivals: Vec<OffsetDateTime> = stack.receiver.received().iter().map(|it| it.at).collect();
    report(&format!("receiver away and back: first retries by quarters of the backoff {spread:?}"));
    // A quarter of them each, were there infinitely many; all in one without jitter.
    assert!(spread.len() == 4 && spread.iter().all(|&count| count >= WEBHOOKS / 10), "{spread:?}");
    // One more than may be under way at once: the last comes after the answer to one of the others.
    let most = usize::from(CONCURRENCY);
    let crowd = arrivals.windows(most + 1).find(|it| it[most] - it[0] + CLOCK < DELAY);
    assert_eq!(crowd, None, "more than {most} requests were under way at once");
    stack.finish().await;
}

/// Every second webhook hangs at one destination. What the others wait for there is bounded: by the time-outs of
/// what hangs before them, shared by half of the slots, which is what a destination gets that is not known to be well;
/// and what finds none comes again a little later. What other destinations feel is in `serves_healthy_destinations`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receivers_that_hang_delay_the_others_by_their_time_outs_at_most() {
    const HANGING: u32 = 40;
    const TIMEOUT: Duration = Duration::from_secs(1);
    /// Of a webhook that finds no slot where nobody answers; one may find none twice.
    const PUT_OFF: Duration = Duration::from_secs(8);
    /// Claims, records and hand-overs of all, on a busy machine.
    const SLACK: Duration = Duration::from_secs(10);
    let stack = Stack::builder()
        .env("WORKER_CONCURRENCY", &CONCURRENCY.to_string())
        .env("HTTP_CLIENT_TIMEOUT_SEC", &TIMEOUT.as_secs().to_string())
        .start()
        .await;
    for _ in 0..HANGING {
        stack.client.post_webhook(&stack.webhook("?hang=1").max_attempts(1)).await;
        stack.post("{}", "").await;
    }
    stack.wait_until_drained(PATIENCE).await;

    let timed_out = "SELECT count(*) FROM webhook_jobs WHERE status = 'failed' AND error LIKE 'no answer within%'";
    assert_eq!(stack.count(timed_out).await, i64::from(HANGING));
    let slowest =
        "SELECT extract(epoch FROM max(updated_at - created_at))::float8 FROM webhook_jobs WHERE status = 'success'";
    let slowest: f64 = sqlx::query_scalar(slowest).fetch_one(stack.pool()).await.expect("some succeeded");
    let slowest = Duration::from_secs_f64(slowest);
    let limit = TIMEOUT * HANGING / u32::from(CONCURRENCY / 2) + 2 * PUT_OFF + SLACK;
    report(&format!("half of the receivers hang: the slowest of the others took {slowest:?} of {limit:?}"));
    assert!(slowest < limit, "the slowest took {slowest:?}");
    stack.finish().await;
}
