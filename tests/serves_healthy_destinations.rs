//! A destination that is sick delays nobody else, costs little while it is, and gets its backlog when it is
//! well again.

use std::time::Duration;

use harness::{Mode, PATIENCE, Stack, TcpProxy, Webhook, report, wait_until};
use time::OffsetDateTime;

/// Requests that one worker has under way at once, in these tests.
const CONCURRENCY: &str = "16";

async fn text(stack: &Stack, statement: &'static str) -> String {
    sqlx::query_scalar(statement).fetch_one(stack.pool()).await.expect("it is one row")
}

async fn state_of_sick(stack: &Stack) -> String {
    text(stack, "SELECT coalesce(string_agg(state, ' '), '') FROM destinations").await
}

fn stack() -> harness::StackBuilder {
    Stack::builder()
        .env("WORKER_CONCURRENCY", CONCURRENCY)
        .env("HTTP_CLIENT_TIMEOUT_SEC", "2")
        .env("BREAKER_FAILURES", "10")
}

/// The seconds between acceptance and success of the slowest webhook to the stack's own receiver.
async fn slowest(stack: &Stack) -> f64 {
    let slowest = "SELECT extract(epoch FROM max(updated_at - created_at))::float8 FROM webhook_jobs
        WHERE status = 'success' AND payload LIKE '%healthy%'";
    sqlx::query_scalar(slowest).fetch_one(stack.pool()).await.expect("some succeeded")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_hangs_holds_nobody_up_and_drains_oldest_first_when_it_is_well() {
    const SICK: u16 = 1_000;
    const HEALTHY: u16 = 200;
    let stack = stack().env("MAX_RETRIES", "100").worker_env("BACKOFF_MAX_SEC", "2").start().await;
    let (proxy, url) = TcpProxy::before(&stack.receiver_url("")).await;
    proxy.set(Mode::Stall);
    let wire = stack.listen().await;
    for _ in 0..SICK {
        stack.client.post(r#"{"sick":1}"#, &url).await;
    }
    for _ in 0..HEALTHY {
        stack.post(r#"{"healthy":1}"#, "").await;
    }
    wait_until("the healthy webhooks to be delivered", PATIENCE, async || {
        stack.delivered().await == i64::from(HEALTHY)
    })
    .await;
    let slowest = slowest(&stack).await;
    // All slots together make 8 requests a second to what hangs: without lanes the last would wait for minutes.
    assert!(slowest < 20.0, "a healthy webhook took {slowest} s");

    wait_until("the breaker to open", PATIENCE, async || state_of_sick(&stack).await.contains("open")).await;
    let held = "SELECT count(*) FROM outbox WHERE waits_for = 'destination'";
    wait_until("the rest to be held", PATIENCE, async || stack.count(held).await > i64::from(SICK) * 9 / 10).await;
    let attempts = stack.unsuccessful_attempts().await;
    let messages = wire.messages();
    report(&format!(
        "a destination hangs under {SICK} webhooks: the slowest of {HEALTHY} others took {slowest:.1} s; {attempts} attempts, \
         {messages} messages in all"
    ));
    assert!(messages < usize::from(SICK / 2 + HEALTHY), "{messages} messages");

    proxy.set(Mode::Forward);
    stack.wait_until_drained(PATIENCE * 2).await;
    // Those that nobody had tried come in the order of their acceptance; a second's worth goes side by side. The probes
    // before them do not: every second one is the newest. The first success ends them.
    let inversions = "SELECT count(*) FROM (
            SELECT outbox_id - lag(outbox_id) OVER (ORDER BY attempt.started_at, outbox_id) AS step
            FROM webhook_jobs AS job JOIN webhook_attempts AS attempt ON attempt.job_id = job.id AND job.attempt = 1
            WHERE payload LIKE '%sick%' AND started_at > (
                SELECT min(started_at) FROM webhook_attempts AS first JOIN webhook_jobs AS sick ON sick.id = first.job_id
                WHERE first.outcome = 'success' AND sick.payload LIKE '%sick%')) AS steps
        WHERE step < -200";
    assert_eq!(stack.count(inversions).await, 0, "the backlog was not drained oldest first");
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_in_a_row_open_the_breaker_and_a_probe_closes_it() {
    let stack = stack().worker_env("BREAKER_FAILURES", "3").env("MAX_RETRIES", "100").start().await;
    let (proxy, url) = TcpProxy::before(&stack.receiver_url("")).await;
    proxy.set(Mode::Reset);
    for _ in 0..10 {
        stack.client.post("{}", &url).await;
    }
    wait_until("a probe to fail", PATIENCE, async || {
        stack.count("SELECT count(*) FROM destinations WHERE state = 'open' AND openings >= 2").await == 1
    })
    .await;
    // Held, and shown.
    let new = stack.client.post("{}", &url).await.job_id;
    wait_until("the new webhook to be held", PATIENCE, async || {
        let state = "SELECT count(*) FROM outhook.jobs WHERE state LIKE 'held: its destination is %'";
        stack.count(state).await > 0
    })
    .await;
    assert!(stack.count("SELECT held FROM outhook.sick_destinations").await > 0);
    let error = text(&stack, "SELECT error FROM outhook.sick_destinations").await;
    assert!(error.starts_with("the request failed") || error.starts_with("cannot connect"), "{error}");
    let attempts = stack.count("SELECT sum(attempt)::bigint FROM webhook_jobs").await;
    assert!(attempts < 30, "{attempts} attempts against an open breaker");

    proxy.set(Mode::Forward);
    stack.wait_until_drained(PATIENCE).await;
    assert_eq!(stack.client.job(new).await["status"], "success");
    wait_until("the breaker to close", PATIENCE, async || state_of_sick(&stack).await == "closed").await;
    stack.finish().await;
}

/// The endpoint answers 429 and asks for two seconds: no webhook of that destination comes before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_asks_for_a_pause_gets_it_for_all_webhooks() {
    const PAUSE: Duration = Duration::from_secs(2);
    let stack = stack().start().await;
    let first = stack.post("{}", "?fail_times=1&status=429&retry_after=2").await.job_id;
    wait_until("the destination to be slowed down", PATIENCE, async || state_of_sick(&stack).await == "metered").await;
    for _ in 0..5 {
        stack.post("{}", "").await;
    }
    stack.wait_until_drained(PATIENCE).await;
    let asked = stack.deliveries(first)[0].at;
    let others: Vec<OffsetDateTime> =
        stack.receiver.received().iter().map(|it| it.at).filter(|at| *at > asked).collect();
    assert_eq!(others.len(), 6);
    // The receiver's clock runs from before its answer, the pause from the record of it.
    assert!(others.iter().all(|at| *at - asked >= PAUSE), "{asked}: {others:?}");
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_with_a_limit_gets_no_more_a_second() {
    const LIMIT: usize = 5;
    let stack = stack().start().await;
    let url = stack.receiver_url("");
    let destination: String = sqlx::query_scalar("SELECT outhook.limit_destination($1, $2)")
        .bind(&url)
        .bind(i32::try_from(LIMIT).expect("it is small"))
        .fetch_one(stack.pool())
        .await
        .expect("the limit is set");
    assert!(url.starts_with(&destination));
    for _ in 0..LIMIT * 4 {
        stack.post("{}", "").await;
    }
    stack.wait_until_drained(PATIENCE).await;
    let arrivals: Vec<OffsetDateTime> = stack.receiver.received().iter().map(|it| it.at).collect();
    // Two seconds' worth may meet where one second ends and the next begins, and a busy machine may let a third
    // catch up.
    let crowd = arrivals.windows(LIMIT * 3 + 1).find(|it| it[LIMIT * 3] - it[0] < Duration::from_secs(1));
    assert_eq!(crowd, None, "more than {LIMIT} a second");
    let span = *arrivals.last().expect("all arrived") - arrivals[0];
    assert!(span >= Duration::from_millis(2_500), "{} webhooks arrived within {span}", arrivals.len());
    stack.finish().await;
}

/// Two relays and two workers share what they know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_workers_finding_holds_for_all() {
    let stack = stack().relays(2).workers(2).worker_env("BREAKER_FAILURES", "3").start().await;
    let (proxy, url) = TcpProxy::before(&stack.receiver_url("")).await;
    proxy.set(Mode::Reset);
    for _ in 0..10 {
        stack.client.post_webhook(&Webhook::to(&url).max_attempts(2)).await;
    }
    wait_until("the breaker to open", PATIENCE, async || state_of_sick(&stack).await.contains("open")).await;
    wait_until("webhooks to be held", PATIENCE, async || {
        stack.count("SELECT count(*) FROM outbox WHERE waits_for = 'destination'").await > 0
    })
    .await;
    stack.post("{}", "").await;
    wait_until("another destination to be served", PATIENCE, async || !stack.receiver.received().is_empty()).await;
    proxy.set(Mode::Forward);
    stack.wait_until_drained(PATIENCE).await;
    stack.finish().await;
}
