//! What vanishes inside RabbitMQ, because somebody purges the queue or a policy drops from it, is published again within
//! seconds, and the log says so. What waits with a worker has not vanished.

use std::time::{Duration, Instant};

use harness::database::Database;
use harness::management::Management;
use harness::{PATIENCE, Servers, Stack, report, wait_until};
use outbox::due::missing::{find_unclaimed, make_due};
use serde_json::{Value, json};
use tokio_postgres::NoTls;

const WEBHOOKS: i32 = 200;
const HOUR: Duration = Duration::from_hours(1);

async fn publish_all(stack: &Stack) {
    stack.enqueue(&stack.receiver_url(""), "{}", WEBHOOKS).await;
    wait_until("all to be published", PATIENCE, async || {
        stack.count("SELECT count(*) FROM outbox WHERE published_at IS NULL OR due_at <= now()").await == 0
    })
    .await;
}

async fn missing(stack: &Stack) -> f64 {
    stack.relays[0].counter("outhook_relay_missing_total").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_a_purged_queue_are_published_again() {
    let mut stack = Stack::builder().workers(0).start().await;
    publish_all(&stack).await;
    stack.broker.purge().await;
    let purged = Instant::now();
    wait_until("all to be in the queue again", PATIENCE, async || {
        stack.broker.ready().await == WEBHOOKS.unsigned_abs()
    })
    .await;
    report(&format!("queue purged: {WEBHOOKS} messages there again after {:?}", purged.elapsed()));
    assert!(missing(&stack).await >= f64::from(WEBHOOKS));
    stack.relays[0].says("RabbitMQ has lost messages").await;
    stack.start_worker().await;
    stack.finish().await;
}

/// Under a policy that drops what lies in the queue, all is delivered as soon as a worker takes it.
async fn assert_survives(policy: Value) {
    let management = Management::of(Servers::shared().await);
    let mut stack = Stack::builder().workers(0).start().await;
    let queue = stack.broker.names().queue.clone();
    management.set_policy(&queue, &policy).await;
    publish_all(&stack).await;
    wait_until("the relay to notice", PATIENCE, async || missing(&stack).await > 0.0).await;
    stack.start_worker().await;
    let started = Instant::now();
    stack.wait_until_drained(PATIENCE).await;
    report(&format!("policy {policy}: {WEBHOOKS} delivered {:?} after the worker's start", started.elapsed()));
    management.lift_limit(&queue).await;
    // What a policy drops goes there.
    let dead = stack.broker.dead().await;
    stack.finish_with_dead_letters(dead).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_expire_are_published_again() {
    assert_survives(json!({ "message-ttl": 1_000 })).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_beyond_a_queues_length_are_published_again() {
    assert_survives(json!({ "max-length": 50, "overflow": "drop-head" })).await;
}

/// One request of a destination at a time, and each takes its time: the others wait with the worker for longer than a
/// message may be missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_wait_with_a_worker_are_not_published_again() {
    let builder = Stack::builder().worker_env("DESTINATION_CONCURRENCY", "1");
    let stack = builder.worker_env("HTTP_CLIENT_TIMEOUT_SEC", "30").start().await;
    let wire = stack.listen().await;
    for _ in 0..3 {
        stack.post("{}", "?delay_ms=5000").await;
    }
    stack.wait_until_drained(PATIENCE).await;
    assert!(missing(&stack).await < 1.0, "{}", stack.relays[0].log());
    assert_eq!((wire.messages(), wire.duplicates()), (3, 0));
    stack.finish().await;
}

/// Its message was given back because somebody held its job: the list brings it back, and only once.
#[tokio::test]
async fn a_row_that_is_listed_is_not_taken_for_lost() {
    let database = Database::create(Servers::shared().await).await;
    let (relay, connection) = tokio_postgres::connect(&database.url_of("relay"), NoTls).await.expect("it is there");
    tokio::spawn(connection);
    let run = async |statement: &'static str| {
        sqlx::raw_sql(statement).execute(&database.pool).await.expect("the owner may do it");
    };
    run("SELECT outhook.enqueue('http://127.0.0.1/', '{}')").await;
    run("UPDATE outbox SET published_at = now() - interval '1 hour', due_at = now() + interval '1 minute'").await;
    run("INSERT INTO outbox_checks (outbox_id, attempt) SELECT id, attempt FROM outbox").await;
    let page = find_unclaimed(&relay, 10, HOUR, None).await.expect("rows are read");
    assert_eq!(page.unclaimed.len(), 1, "nobody has claimed it");
    assert_eq!(make_due(&relay, &page.unclaimed).await.expect("it is answered"), 0);
    run("DELETE FROM outbox_checks").await;
    assert_eq!(make_due(&relay, &page.unclaimed).await.expect("it is answered"), 1);
    database.drop().await;
}
