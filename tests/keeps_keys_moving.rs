//! An ordering key is as fast as its receiver, and delays nobody else: however long its backlog is, how many keys
//! there are, and whatever its database's settings are.

use std::collections::HashMap;
use std::time::Duration;

use harness::{Mode, PATIENCE, Servers, Stack, TcpProxy, report, wait_for, wait_until};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::delivers_in_order::assert_order;

/// For one webhook that nothing has to wait for, on a machine whose disk and processors have others to serve too.
const AT_ONCE: Duration = Duration::from_secs(10);

/// For most of them, beside whatever waits.
const HARDLY_LATER: Duration = Duration::from_millis(300);

/// For what has waited for something to be delivered once that has come.
const FREE_AGAIN: Duration = Duration::from_secs(20);

/// Accepts so many webhooks of each of so many keys in one statement, and tells the relay. Returns them by key, in the
/// order of their acceptance.
async fn enqueue(connection: &mut PgConnection, url: &str, keys: i64, each: i64) -> HashMap<String, Vec<Uuid>> {
    let statement = "SELECT key, array_agg(id ORDER BY n)
        FROM (SELECT n, key, outhook.enqueue($1, '{}', ordering_key => key) AS id
              FROM (SELECT n, 'key ' || n % $2 AS key FROM generate_series(0, $2 * $3 - 1) AS n) AS numbers) AS jobs
        GROUP BY key";
    let accepted = sqlx::query_as(statement).bind(url).bind(keys).bind(each).fetch_all(&mut *connection).await;
    sqlx::query("SELECT outhook.wake()").execute(connection).await.expect("a hint is taken");
    accepted.expect("they are taken").into_iter().collect()
}

async fn deliver_keys(keys: i64, each: i64, timeout: Duration) {
    let stack = Stack::start().await;
    let mut connection = stack.pool().acquire().await.expect("Postgres takes connections");
    let accepted = enqueue(&mut connection, &stack.receiver_url(""), keys, each).await;
    drop(connection);
    let started = Instant::now();
    stack.wait_until_drained(timeout).await;
    report(&format!("{keys} keys of {each} webhooks each: delivered in {:?}", started.elapsed()));
    assert_order(&stack, &accepted).await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_is_as_fast_as_its_receiver() {
    deliver_keys(1, 60, Duration::from_secs(15)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_keys_are_as_fast_as_their_receiver() {
    deliver_keys(50, 20, Duration::from_secs(15)).await;
}

/// Accepts a backlog for a slow destination in one statement, and insists that everybody else gets his at once.
async fn serve_others_beside(key: &str, count: i64) {
    let stack = Stack::start().await;
    let (_slow, url) = TcpProxy::before(&stack.receiver_url("?delay_ms=500")).await;
    let statement =
        format!("SELECT count(outhook.enqueue($1, i::text, ordering_key => {key})) FROM generate_series(1, $2) AS i");
    let started = Instant::now();
    let accepted = sqlx::query(AssertSqlSafe(statement)).bind(url).bind(count).execute(stack.pool()).await;
    accepted.expect("they are taken");
    sqlx::query("ANALYZE outbox").execute(stack.pool()).await.expect("the owner may do it");
    let accepted_in = started.elapsed();
    let mut others = Vec::new();
    for _ in 0..20 {
        let posted = Instant::now();
        let id = stack.post("{}", "").await.job_id;
        wait_until("a webhook beside a backlog of keys", AT_ONCE, async || !stack.deliveries(id).is_empty()).await;
        others.push(posted.elapsed());
        sleep(Duration::from_millis(100)).await;
    }
    others.sort();
    let (median, slowest) = (others[others.len() / 2], others[others.len() - 1]);
    report(&format!(
        "beside {count} waiting of key {key}, accepted in {accepted_in:?}: half of 20 others took {median:?} or less, the slowest {slowest:?}"
    ));
    assert!(median < HARDLY_LATER, "a backlog of keys delays the others by {median:?}");
    let under_way = "SELECT count(*) FROM (
        SELECT FROM webhook_jobs WHERE status = 'processing' GROUP BY ordering_key HAVING count(*) > 1) AS keys";
    assert_eq!(stack.count(under_way).await, 0, "two of a key are under way at once");
    stack.abandon().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_backlog_of_one_key_delays_nobody_else() {
    serve_others_beside("'k'", 150_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_keys_that_wait_delay_nobody_else() {
    serve_others_beside("'key ' || i", 100_000).await;
}

/// Cancels a webhook. A transaction that is in another's way is rolled back, as such isolations have it, and tried again.
async fn cancel(session: &mut PgConnection, id: Uuid) -> bool {
    let cancel = "SELECT outhook.cancel($1)";
    let answered = async || sqlx::query_scalar(cancel).bind(id).fetch_one(&mut *session).await.ok();
    wait_for("a cancel to be answered", PATIENCE, answered).await
}

/// Drains keys, and cancels some of them, where every session that says nothing else has this isolation.
async fn deliver_under(isolation: &str) {
    let mut stack = Stack::builder().relays(0).workers(0).start().await;
    let alter = format!(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = %L', current_database(), '{isolation}'); END $$"
    );
    sqlx::query(AssertSqlSafe(alter)).execute(stack.pool()).await.expect("the owner may do it");
    stack.start_relay().await;
    stack.start_worker().await;
    let mut session = PgConnection::connect(stack.database_url()).await.expect("Postgres takes connections");
    let is: String = sqlx::query_scalar("SHOW transaction_isolation").fetch_one(&mut session).await.expect("it is set");
    assert_eq!(is, isolation);
    let mut keys: HashMap<String, Vec<Uuid>> = HashMap::new();
    for number in 0..200 {
        let key = format!("key {}", number % 4);
        let statement = "SELECT outhook.enqueue($1, '{}', ordering_key => $2)";
        let enqueue = sqlx::query_scalar(statement).bind(stack.receiver_url("")).bind(&key).fetch_one(&mut session);
        let id = enqueue.await.expect("it is taken");
        sqlx::query("SELECT outhook.wake()").execute(&mut session).await.expect("a hint is taken");
        if number % 10 == 9 && cancel(&mut session, id).await {
            continue;
        }
        keys.entry(key).or_default().push(id);
        // So that some come while the one before is being recorded.
        sleep(Duration::from_millis(number % 17)).await;
    }
    stack.wait_until_drained(Duration::from_secs(10)).await;
    assert_order(&stack, &keys).await;
    session.close().await.expect("it closes");
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_move_where_transactions_are_repeatable_reads() {
    deliver_under("repeatable read").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_move_where_transactions_are_serializable() {
    deliver_under("serializable").await;
}

/// Accepts a webhook of key `k` that is due in an hour.
async fn enqueue_for_later(stack: &Stack, url: &str) -> Uuid {
    let statement = "SELECT outhook.enqueue($1, '{}', deliver_at => now() + interval '1 hour', ordering_key => 'k')";
    sqlx::query_scalar(statement).bind(url).fetch_one(stack.pool()).await.expect("it is taken")
}

/// The scheduled one waits for its time and for nothing else, and nobody waits for it until then.
async fn overtake_a_scheduled_one(stack: Stack, its_url: &str) {
    let scheduled = enqueue_for_later(&stack, its_url).await;
    for _ in 0..3 {
        let id = stack.client.post_webhook(&stack.webhook("").ordering_key("k")).await.job_id;
        let what = "a webhook beside one of its key that is due in an hour";
        wait_until(what, AT_ONCE, async || !stack.deliveries(id).is_empty()).await;
    }
    assert_eq!(stack.deliveries(scheduled).len(), 0);
    assert_eq!(stack.client.cancel(scheduled).await.status, 200);
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_orders_within_its_destination_only() {
    let stack = Stack::start().await;
    let (_other, url) = TcpProxy::before(&stack.receiver_url("")).await;
    overtake_a_scheduled_one(stack, &url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduled_webhook_takes_its_place_when_its_time_comes() {
    let stack = Stack::start().await;
    let url = stack.receiver_url("");
    overtake_a_scheduled_one(stack, &url).await;
}

/// One of a key was published, a lower one commits later and waits for it, and the worker gives the published one back:
/// neither may wait for the other.
async fn give_back_one_that_others_wait_for(same_destination: bool) {
    let mut stack = Stack::builder()
        .workers(0)
        // One under way at a time, so that the last message is at hand when the first ones have failed.
        .env("WORKER_CONCURRENCY", "2")
        .env("MAX_RETRIES", "100")
        .worker_env("BREAKER_FAILURES", "3")
        .start()
        .await;
    let (proxy, sick) = TcpProxy::before(&stack.receiver_url("")).await;
    proxy.set(Mode::Reset);
    for _ in 0..3 {
        stack.client.post("{}", &sick).await;
    }
    let settled = "SELECT count(*) FROM outbox WHERE published_at IS NULL AND waits_for IS NULL";
    wait_until("those that fail to be published", PATIENCE, async || stack.count(settled).await == 0).await;
    let mut earlier = stack.pool().begin().await.expect("a transaction begins");
    let its_url = if same_destination { sick.clone() } else { stack.receiver_url("") };
    enqueue(&mut earlier, &its_url, 1, 1).await;
    let mut connection = stack.pool().acquire().await.expect("Postgres takes connections");
    enqueue(&mut connection, &sick, 1, 1).await;
    drop(connection);
    wait_until("the later one to be published", PATIENCE, async || stack.count(settled).await == 0).await;
    earlier.commit().await.expect("it commits");
    wait_until("the earlier one to be judged", PATIENCE, async || stack.count(settled).await == 0).await;

    stack.start_worker().await;
    let held = "SELECT count(*) FROM outbox WHERE waits_for = 'destination' AND ordering_key IS NOT NULL";
    wait_until("the published one to be given back", PATIENCE, async || stack.count(held).await > 0).await;
    proxy.set(Mode::Forward);
    stack.wait_until_drained(FREE_AGAIN).await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_a_key_and_a_destination_do_not_wait_for_each_other() {
    give_back_one_that_others_wait_for(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_a_key_and_two_destinations_do_not_wait_for_each_other() {
    give_back_one_that_others_wait_for(false).await;
}

/// Lanes that wait for a broker give no turns; nothing of a turn needs one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turns_are_given_while_the_broker_does_not_answer() {
    let (broker, url) = TcpProxy::before(&Servers::shared().await.rabbitmq_url).await;
    let stack = Stack::builder().env("RABBITMQ_URL", &url).env("RELAY_LANES", "1").start().await;
    broker.set(Mode::Stall);
    stack.relays[0].says("not publishing").await;
    let mut connection = stack.pool().acquire().await.expect("Postgres takes connections");
    let accepted = enqueue(&mut connection, &stack.receiver_url(""), 20, 2).await;
    drop(connection);
    wait_until("every key's first webhook to be given its turn", HARDLY_LATER * 10, async || {
        stack.count("SELECT count(*) FROM outbox WHERE turn").await == 20
    })
    .await;
    broker.set(Mode::Forward);
    stack.wait_until_drained(PATIENCE).await;
    assert_order(&stack, &accepted).await;
    stack.finish().await;
}
