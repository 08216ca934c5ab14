//! A Retry-After is kept: by all webhooks for the URL that asked for it, wherever they are by then, and by no others.

use std::time::Duration;

use harness::{PATIENCE, Stack, Webhook, look_for, wait_until};
use time::OffsetDateTime;

/// What was under way when a pause was asked for may still arrive for so long.
const UNDER_WAY: Duration = Duration::from_millis(1_500);

/// What a pause may seem too short by, as answers and arrivals take a moment.
const NOISE: Duration = Duration::from_millis(200);

/// A few more than this are not posted either when their destination slows down for a moment.
const SOON: Duration = Duration::from_secs(5);

/// Insists that after each answer of 429 or 503 nothing came to that path until the pause was over.
fn assert_pauses_kept(stack: &Stack, path: &str, pause: Duration) {
    let received = stack.receiver.received();
    let of_the_path = |url: &str| url.split('?').next() == Some(path);
    let arrivals: Vec<(OffsetDateTime, Option<u16>)> =
        received.iter().filter(|it| of_the_path(&it.path_and_query)).map(|it| (it.at, it.status_answered())).collect();
    let asked: Vec<OffsetDateTime> =
        arrivals.iter().filter(|(_, status)| matches!(status, Some(429 | 503))).map(|(at, _)| *at).collect();
    assert!(!asked.is_empty(), "nobody asked for a pause");
    let early: Vec<f64> = asked
        .iter()
        .flat_map(|asked| arrivals.iter().map(|(at, _)| *at - *asked))
        .filter(|after| *after > UNDER_WAY && *after + NOISE < pause)
        .map(time::Duration::as_seconds_f64)
        .collect();
    assert!(early.is_empty(), "webhooks came so many seconds after a pause of {pause:?} was asked for: {early:.1?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_of_one_url_holds_no_other_of_its_host() {
    let stack = Stack::start().await;
    stack.client.post("{}", &stack.receiver.url("/strict?status=429&retry_after=3600")).await;
    wait_until("the pause to be asked for", PATIENCE, async || {
        stack.count("SELECT count(*) FROM webhook_attempts WHERE retry_at > now() + interval '59 minutes'").await == 1
    })
    .await;
    stack.enqueue(&stack.receiver.url("/other"), "{}", 10).await;
    wait_until("the others to be delivered", SOON, async || stack.delivered().await >= 10).await;
    // The query does not count. What was accepted after it has overtaken it.
    let same = stack.client.post("{}", &stack.receiver.url("/strict?other=1")).await.job_id;
    let other = stack.client.post("{}", &stack.receiver.url("/other")).await.job_id;
    wait_until("another to be delivered", SOON, async || stack.client.job(other).await["status"] == "success").await;
    assert_eq!(stack.deliveries(same).len(), 0, "a webhook came within the pause");
    stack.cancel_the_rest().await;
    stack.finish().await;
}

/// They were published before anybody knew, and some of them lie with another worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_binds_what_lies_in_the_queue() {
    const PAUSE: Duration = Duration::from_secs(8);
    const WEBHOOKS: i64 = 21;
    let mut stack = Stack::builder().workers(0).env("WORKER_CONCURRENCY", "2").start().await;
    stack.post("{}", "?fail_times=1&status=429&retry_after=8&delay_ms=500").await;
    for number in 1..WEBHOOKS {
        stack.post("{}", &format!("?number={number}&delay_ms=500")).await;
    }
    wait_until("all to be published", PATIENCE, async || stack.published().await == WEBHOOKS).await;
    stack.start_worker().await;
    stack.start_worker().await;
    stack.wait_until_drained(PATIENCE).await;
    assert_pauses_kept(&stack, "/hook", PAUSE);
    stack.finish().await;
}

/// The breaker's own time may be shorter, and then it does not count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_breaker_that_opens_does_not_cut_a_pause_short() {
    const PAUSE: Duration = Duration::from_secs(12);
    let stack = Stack::builder()
        .worker_env("BREAKER_FAILURES", "3")
        .worker_env("BREAKER_COOLDOWN_SEC", "2")
        .worker_env("BREAKER_COOLDOWN_MAX_SEC", "2")
        .start()
        .await;
    // All three are under way when the first is answered.
    stack.enqueue(&stack.receiver_url("?fail_times=1&status=503&retry_after=12&delay_ms=800"), "{}", 3).await;
    wait_until("all to have failed", PATIENCE, async || {
        stack.count("SELECT count(*) FROM webhook_attempts WHERE status_code = 503").await == 3
    })
    .await;
    for _ in 0..3 {
        stack.post("{}", "?new=1").await;
    }
    stack.wait_until_drained(PATIENCE).await;
    assert_pauses_kept(&stack, "/hook", PAUSE);
    stack.finish().await;
}

/// What is sent to see whether it is well again may be told to wait as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_that_is_told_to_wait_is_heard() {
    const PAUSE: Duration = Duration::from_secs(5);
    let stack = Stack::builder()
        .worker_env("BREAKER_FAILURES", "3")
        .worker_env("BREAKER_COOLDOWN_SEC", "2")
        .worker_env("BREAKER_COOLDOWN_MAX_SEC", "2")
        .start()
        .await;
    for _ in 0..3 {
        stack.client.post_webhook(&Webhook::to(&stack.receiver.url("/down?status=500")).max_attempts(1)).await;
    }
    wait_until("the breaker to open", PATIENCE, async || {
        stack.count("SELECT count(*) FROM destinations WHERE state = 'open'").await == 1
    })
    .await;
    stack.enqueue(&stack.receiver_url("?fail_times=1&status=503&retry_after=5"), "{}", 3).await;
    stack.wait_until_drained(PATIENCE).await;
    assert_pauses_kept(&stack, "/hook", PAUSE);
    stack.finish().await;
}

/// A job keeps to its schedule although its queue was lost and its destination slowed down while it was attempted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schedule_is_kept_over_a_lost_queue_and_a_slow_destination() {
    let stack =
        Stack::builder().worker_env("RETRY_SCHEDULE", "5m").worker_env("HTTP_CLIENT_TIMEOUT_SEC", "20").start().await;
    let slow = stack.post("{}", "?status=500&delay_ms=6000").await.job_id;
    stack.wait_for_deliveries(1).await;
    stack.client.post("{}", &stack.receiver.url("/strict?status=429&retry_after=8")).await;
    wait_until("the pause to be asked for", PATIENCE, async || {
        stack.count("SELECT count(*) FROM webhook_attempts WHERE status_code = 429").await == 1
    })
    .await;
    stack.broker.delete_queue().await;
    wait_until("the slow one to fail", PATIENCE, async || {
        stack.count("SELECT count(*) FROM webhook_attempts WHERE status_code = 500").await == 1
    })
    .await;
    // As long as the pause, and longer than any slowness of a destination lasts.
    let again = look_for(Duration::from_secs(12), async || (stack.deliveries(slow).len() > 1).then_some(())).await;
    assert_eq!(again, None, "attempt 2 came minutes before its time");
    stack.cancel_the_rest().await;
    stack.finish().await;
}
