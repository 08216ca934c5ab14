//! A destination that is well again is served as before, soon, by itself, and whatever else is waiting for it.

use std::time::Duration;

use harness::latency::{median, one_at_a_time};
use harness::load::Flow;
use harness::raw_server::{listen_on_hosts, url_of};
use harness::{PATIENCE, RawServer, Stack, Webhook, look_for, report, wait_until};
use tokio::time::Instant;

/// What a webhook takes at the most, in the middle of some, when nothing is in its way: some ten milliseconds, and
/// what a busy machine adds.
const AT_ONCE: Duration = Duration::from_millis(150);

/// After one slip a destination is trusted again within this time.
const TRUSTED_AGAIN: Duration = Duration::from_secs(8);

/// The states of all destinations that have a row; one without is as good as closed.
async fn states(stack: &Stack) -> String {
    let states = "SELECT coalesce(string_agg(DISTINCT state, ' '), 'closed') FROM destinations";
    sqlx::query_scalar(states).fetch_one(stack.pool()).await.expect("it is one row")
}

async fn wait_until_open(stack: &Stack) {
    wait_until("the breaker to open", PATIENCE, async || states(stack).await.contains("open")).await;
}

/// Waits until one attempt has failed, and what that says about its destination has had time to be written.
async fn wait_for_slip(stack: &Stack) {
    wait_until("the slip to be recorded", PATIENCE, async || {
        stack.count("SELECT count(*) FROM webhook_attempts WHERE outcome = 'failed'").await == 1
    })
    .await;
    look_for(Duration::from_secs(2), async || (states(stack).await != "closed").then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_slip_is_forgotten_while_webhooks_go_on() {
    let stack = Stack::start().await;
    stack.post("{}", "?fail_times=1&status=503").await;
    let flow = Flow::start(&stack.client, vec![stack.receiver_url("")], 2);
    wait_for_slip(&stack).await;
    wait_until("the destination to be trusted again", TRUSTED_AGAIN, async || states(&stack).await == "closed").await;
    flow.stop().await;
    let taken = one_at_a_time(&stack, 8, Duration::ZERO).await;
    assert!(median(&taken) < AT_ONCE, "webhooks still wait: {taken:?}");
    assert_eq!(states(&stack).await, "closed");
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_slip_is_forgotten_though_nothing_else_comes() {
    let stack = Stack::start().await;
    stack.post("{}", "?fail_times=1&status=503").await;
    wait_for_slip(&stack).await;
    wait_until("the destination to be trusted again", TRUSTED_AGAIN, async || states(&stack).await == "closed").await;
    stack.finish().await;
}

/// A webhook that waits for an earlier one of its key cannot be sent, so it proves nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_is_not_spent_on_what_waits_for_its_turn() {
    let stack = Stack::builder()
        .worker_env("RETRY_SCHEDULE", "1h")
        .worker_env("BREAKER_FAILURES", "3")
        .worker_env("BREAKER_COOLDOWN_SEC", "5")
        .worker_env("BREAKER_COOLDOWN_MAX_SEC", "5")
        .start()
        .await;
    let failing = stack.receiver_url("?fail_times=1");
    stack.client.post_webhook(&Webhook::to(&failing).ordering_key("k")).await;
    for _ in 0..2 {
        stack.client.post("{}", &failing).await;
    }
    wait_until_open(&stack).await;
    let of_the_key = "SELECT count(outhook.enqueue($1, '{}', ordering_key => 'k')) FROM generate_series(1, 10)";
    sqlx::query(of_the_key).bind(stack.receiver_url("")).execute(stack.pool()).await.expect("they are accepted");
    stack.enqueue(&stack.receiver_url(""), r#"{"free":1}"#, 20).await;
    let delivered = "SELECT count(*) FROM webhook_jobs WHERE status = 'success' AND payload LIKE '%free%'";
    wait_until("what waits for nothing to be delivered", Duration::from_secs(15), async || {
        stack.count(delivered).await == 20
    })
    .await;
    stack.cancel_the_rest().await;
    stack.finish().await;
}

/// The receiver is as quick as it ever is; only these callers would not wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callers_own_haste_says_nothing_about_the_destination() {
    const HASTY: i64 = 10;
    let stack = Stack::builder()
        .worker_env("BREAKER_FAILURES", "10")
        .worker_env("BREAKER_COOLDOWN_SEC", "30")
        .worker_env("BREAKER_COOLDOWN_MAX_SEC", "30")
        .start()
        .await;
    let url = stack.receiver_url("?delay_ms=250");
    for _ in 0..HASTY {
        stack.client.post_webhook(&Webhook::to(&url).timeout_ms(100).max_attempts(1)).await;
    }
    wait_until("the hasty to have given up", PATIENCE, async || {
        stack.count("SELECT count(*) FROM webhook_jobs WHERE status = 'failed'").await == HASTY
    })
    .await;
    stack.enqueue(&url, r#"{"patient":1}"#, 20).await;
    let delivered = "SELECT count(*) FROM webhook_jobs WHERE status = 'success' AND payload LIKE '%patient%'";
    wait_until("the patient to be served", Duration::from_secs(5), async || stack.count(delivered).await == 20).await;
    assert!(!states(&stack).await.contains("open"), "a caller's haste has opened the breaker");
    stack.finish().await;
}

/// What one receiver of an origin cannot digest must not keep it shut for the others: the next probe is another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_goes_to_what_has_not_failed_yet() {
    let stack = Stack::builder()
        .worker_env("RETRY_SCHEDULE", "100ms")
        .worker_env("BREAKER_FAILURES", "3")
        .worker_env("BREAKER_COOLDOWN_SEC", "1")
        .worker_env("BREAKER_COOLDOWN_MAX_SEC", "2")
        .start()
        .await;
    for _ in 0..10 {
        stack.client.post_webhook(&Webhook::to(&stack.receiver.url("/bad?status=500")).max_attempts(100)).await;
    }
    wait_until_open(&stack).await;
    let good = stack.client.post("{}", &stack.receiver.url("/good")).await.job_id;
    wait_until("the good one to be delivered", Duration::from_secs(10), async || {
        stack.client.job(good).await["status"] == "success"
    })
    .await;
    stack.cancel_the_rest().await;
    stack.finish().await;
}

/// The network was away and every breaker opened. When it is back, none waits for the probes of the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_destinations_are_probed_soon_after_an_outage() {
    const HOSTS: usize = 600;
    let stack = Stack::start().await;
    let (mut servers, mut urls) = (Vec::new(), Vec::new());
    for listener in listen_on_hosts(HOSTS).await {
        urls.push(url_of(&listener));
        servers.push(RawServer::on(listener, async |mut connection| {
            connection.request().await?;
            tokio::io::AsyncWriteExt::write_all(&mut connection.stream, b"HTTP/1.1 204 No\r\nConnection: close\r\n\r\n")
                .await
        }));
    }
    // All in one transaction: nothing of it is seen before it is held.
    let mut transaction = stack.pool().begin().await.expect("Postgres takes connections");
    let accept = "SELECT count(outhook.enqueue(url, '{}')) FROM unnest($1::text[]) AS url";
    let open = "INSERT INTO destinations (destination, state, openings, hold_until, error)
        SELECT outhook.destination(url), 'open', 1, now(), 'cannot connect' FROM unnest($1::text[]) AS url";
    for statement in [accept, open] {
        sqlx::query(statement).bind(&urls).execute(&mut *transaction).await.expect("the owner may do it");
    }
    let hold = "UPDATE outbox SET waits_for = 'destination', due_at = now() + interval '15 minutes'";
    sqlx::query(hold).execute(&mut *transaction).await.expect("the owner may do it");
    transaction.commit().await.expect("it ends");
    stack.wake().await;

    let started = Instant::now();
    let undelivered = "SELECT count(*) FROM webhook_jobs WHERE status <> 'success'";
    wait_until("each to be delivered", Duration::from_secs(5), async || stack.count(undelivered).await == 0).await;
    report(&format!("{HOSTS} destinations after an outage: all delivered after {:.1?}", started.elapsed()));
    stack.finish_unheard().await;
}
