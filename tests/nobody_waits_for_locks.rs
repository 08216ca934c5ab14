//! Somebody outside may hold a row, or a table, for as long as he likes: who needs that very row waits, and
//! nobody else.

use std::time::Duration;

use harness::{PATIENCE, Stack, TcpProxy, report, wait_until};
use sqlx::{AssertSqlSafe, Postgres, Transaction};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

/// For webhooks that nobody holds to be delivered after the last of them was accepted.
const SOON: Duration = Duration::from_secs(5);

/// For those that were held, after that has ended.
const AFTERWARDS: Duration = Duration::from_secs(8);

/// For one webhook on a system that has nothing else to do.
const AT_ONCE: Duration = Duration::from_secs(5);

/// So often may RabbitMQ hand a message out until it is a dead letter, and a worker may ask for it again each
/// second.
const DELIVERY_LIMIT: Duration = Duration::from_secs(20);

/// What a worker leases with a time-out of two seconds.
const LEASE: Duration = Duration::from_secs(7);

async fn post(stack: &Stack, count: usize, query: &str) -> Vec<Uuid> {
    let mut ids = Vec::with_capacity(count);
    for _ in 0..count {
        ids.push(stack.post("{}", query).await.job_id);
    }
    ids
}

async fn wait_for_successes(stack: &Stack, what: &str, count: usize, timeout: Duration) {
    let expected = i64::try_from(count).expect("it is small");
    wait_until(what, timeout, async || stack.delivered().await >= expected).await;
}

/// Insists that other webhooks are delivered at once, one after the other, until then. Returns how many are delivered.
async fn serve_others_until(stack: &Stack, then: Instant, mut delivered: usize) -> usize {
    while Instant::now() < then {
        post(stack, 1, "").await;
        delivered += 1;
        wait_for_successes(stack, "one more beside locked rows", delivered, AT_ONCE).await;
        sleep(Duration::from_millis(200)).await;
    }
    delivered
}

/// Webhooks whose messages lie in the queue of a stack without workers.
async fn publish(stack: &Stack, count: usize) -> Vec<Uuid> {
    let ids = post(stack, count, "").await;
    wait_until("all to be published", PATIENCE, async || stack.unpublished().await == 0).await;
    ids
}

/// A transaction of somebody outside that has run this statement and stays open.
async fn open(stack: &Stack, statement: &str) -> Transaction<'static, Postgres> {
    let mut transaction = stack.pool().begin().await.expect("a transaction begins");
    let rows = sqlx::query(AssertSqlSafe(statement.to_owned())).fetch_all(&mut *transaction).await;
    rows.unwrap_or_else(|error| panic!("{error}, in: {statement}"));
    transaction
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Commit,
    Rollback,
}

/// Somebody cancels one of 30 whose messages wait in the queue, and goes for lunch.
async fn cancel_and_leave_open(end: End) {
    let mut stack = Stack::builder().workers(0).start().await;
    let cancelled = publish(&stack, 30).await[7];
    let transaction = open(&stack, &format!("SELECT outhook.cancel('{cancelled}')")).await;
    stack.start_worker().await;
    post(&stack, 50, "").await;
    wait_for_successes(&stack, "the others to be delivered beside an open cancel", 79, SOON).await;
    assert_eq!(stack.deliveries(cancelled).len(), 0, "somebody cancels it");

    if end == End::Commit {
        transaction.commit().await.expect("it commits");
        stack.wait_until_drained(AFTERWARDS).await;
        assert_eq!(stack.client.job(cancelled).await["status"], "cancelled");
    } else {
        transaction.rollback().await.expect("it rolls back");
        wait_for_successes(&stack, "the one that was not cancelled after all", 80, AFTERWARDS).await;
    }
    assert_eq!(stack.deliveries(cancelled).len(), usize::from(end == End::Rollback));
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_cancel_that_is_rolled_back_stops_nobody() {
    cancel_and_leave_open(End::Rollback).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_cancel_that_is_committed_stops_nobody() {
    cancel_and_leave_open(End::Commit).await;
}

/// More than a worker takes from the queue ahead, so that it cannot just keep them at hand; and for so long that
/// asking for their messages again and again would make them dead letters, which the end of the test looks for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_cancel_of_more_than_a_worker_holds_stops_nobody() {
    let mut stack = Stack::builder().workers(0).env("WORKER_CONCURRENCY", "16").start().await;
    let cancelled = publish(&stack, 100).await;
    let transaction = open(&stack, "SELECT outhook.cancel(id) FROM webhook_jobs").await;
    let opened = Instant::now();
    stack.start_worker().await;
    post(&stack, 50, "").await;
    wait_for_successes(&stack, "the others to be delivered beside 100 open cancels", 50, SOON).await;
    let delivered = serve_others_until(&stack, opened + DELIVERY_LIMIT + SOON, 50).await;
    assert_eq!(stack.broker.dead().await, 0, "dead letters");
    transaction.rollback().await.expect("it rolls back");
    wait_for_successes(&stack, "those that were not cancelled", delivered + cancelled.len(), SOON).await;
    stack.finish().await;
}

/// Holds rows of three webhooks while they are under way, until their leases are over, and insists that nobody
/// else notices and that nothing comes of it.
async fn hold_what_is_under_way(rows: &str) {
    let stack = Stack::builder().env("HTTP_CLIENT_TIMEOUT_SEC", "2").start().await;
    let held = post(&stack, 3, "?delay_ms=1500").await;
    stack.wait_for_deliveries(3).await;
    let transaction = open(&stack, rows).await;
    let opened = Instant::now();
    assert_eq!(stack.under_way().await, 3, "they ended before they were locked");
    post(&stack, 100, "").await;
    wait_for_successes(&stack, "the others to be recorded beside locked rows", 100, SOON).await;
    let delivered = serve_others_until(&stack, opened + LEASE + AT_ONCE, 100).await;
    transaction.commit().await.expect("it ends");
    wait_for_successes(&stack, "those whose rows were locked", delivered + held.len(), AFTERWARDS).await;
    assert_eq!(stack.unknown_attempts().await, 0, "an attempt whose answer had come is unknown");
    for id in held {
        assert_eq!(stack.deliveries(id).len(), 1, "job {id}");
    }
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locked_jobs_under_way_stop_nobody() {
    let rows = "SELECT 1 FROM webhook_jobs WHERE status = 'processing' FOR UPDATE";
    hold_what_is_under_way(rows).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locked_outbox_rows_of_what_is_under_way_stop_nobody() {
    let rows = "SELECT 1 FROM outbox FOR UPDATE";
    hold_what_is_under_way(rows).await;
}

/// What waits for its record only, after its answer, takes no slot from those that could be posted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twice_as_many_locked_jobs_as_there_are_slots_stop_nobody() {
    const SLOTS: usize = 4;
    let stack = Stack::builder()
        .env("WORKER_CONCURRENCY", &SLOTS.to_string())
        .env("HTTP_CLIENT_TIMEOUT_SEC", "2")
        .start()
        .await;
    let (_other, url) = TcpProxy::before(&stack.receiver_url("")).await;
    let held = post(&stack, 2 * SLOTS, "?delay_ms=500").await;
    let mut transaction = stack.pool().begin().await.expect("a transaction begins");
    let mut locked = 0;
    // A row that is locked stays under way; the next ones join it as slots get free.
    let lock = "SELECT id FROM webhook_jobs WHERE status = 'processing' FOR UPDATE";
    let deadline = Instant::now() + 2 * SOON;
    while locked < 2 * SLOTS {
        let rows = sqlx::query(lock).fetch_all(&mut *transaction).await.expect("nobody waits for another here");
        locked = rows.len();
        assert!(Instant::now() < deadline, "{locked} jobs with locked rows keep all {SLOTS} slots");
        sleep(Duration::from_millis(20)).await;
    }
    for _ in 0..20 {
        stack.client.post("{}", &url).await;
    }
    wait_for_successes(&stack, "the others to be recorded beside locked rows", 20, SOON).await;
    transaction.commit().await.expect("it ends");
    wait_for_successes(&stack, "those whose rows were locked", 20 + held.len(), AFTERWARDS).await;
    assert_eq!(stack.unknown_attempts().await, 0, "an attempt whose answer had come is unknown");
    for id in held {
        assert_eq!(stack.deliveries(id).len(), 1, "job {id}");
    }
    stack.finish().await;
}

/// The first statement after it finds everything as it was, and does not sit out what it had waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_table_stops_nobody_any_longer_than_it_is_locked() {
    const WEBHOOKS: usize = 100;
    let stack = Stack::start().await;
    post(&stack, WEBHOOKS, "?delay_ms=300").await;
    let transaction = open(&stack, "LOCK TABLE webhook_jobs").await;
    sleep(Duration::from_secs(3)).await;
    transaction.commit().await.expect("it ends");
    wait_for_successes(&stack, "all to be delivered after a table was locked", WEBHOOKS, AT_ONCE + AT_ONCE).await;
    assert_eq!(stack.unknown_attempts().await, 0, "an attempt whose answer had come is unknown");
    assert_eq!(stack.receiver.received().len(), WEBHOOKS);
    stack.finish().await;
}

/// Holds the row of a destination that is not well, and insists that other destinations get theirs at once.
async fn hold_a_destination(state: &str, failing: &str) {
    let stack = Stack::builder().env("MAX_RETRIES", "100").worker_env("BREAKER_FAILURES", "3").start().await;
    let (sick, url) = TcpProxy::before(&stack.receiver_url("")).await;
    for _ in 0..3 {
        stack.client.post("{}", &format!("{url}{failing}")).await;
    }
    let its_state = format!("SELECT EXISTS (SELECT FROM destinations WHERE state = '{state}')");
    wait_until("the destination to be found sick", PATIENCE, async || {
        let found = sqlx::query_scalar(AssertSqlSafe(its_state.clone())).fetch_one(stack.pool()).await;
        found.expect("destinations can be read")
    })
    .await;
    let transaction = open(&stack, "SELECT 1 FROM destinations FOR UPDATE").await;
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        // What is to be held, or tried again, or to tell that all is well now.
        stack.client.post("{}", &url).await;
        let posted = Instant::now();
        let id = stack.post("{}", "").await.job_id;
        wait_until("another destination to be served", AT_ONCE, async || !stack.deliveries(id).is_empty()).await;
        slowest = slowest.max(posted.elapsed());
        sleep(Duration::from_millis(200)).await;
    }
    report(&format!("a locked row of destinations, {state}: the slowest of 20 others took {slowest:?}"));
    transaction.commit().await.expect("it ends");
    stack.wait_until_drained(PATIENCE).await;
    drop(sick);
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_destination_whose_breaker_is_open_stops_nobody() {
    hold_a_destination("open", "?fail_times=1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_destination_that_is_metered_stops_nobody() {
    hold_a_destination("metered", "?status=429&retry_after=1&fail_times=1").await;
}
