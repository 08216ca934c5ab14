//! A worker that vanishes from the network leaves its sessions behind, perhaps in the middle of a transaction:
//! what they hold is free again within seconds, and who does not need it never notices. And who takes over what a
//! worker has lost looks whether that is so at the moment of taking it.

use std::time::Duration;

use harness::attempts::attempts;
use harness::{Mode, PATIENCE, Stack, TcpProxy, look_for, report, wait_until};
use outbox::broker::task::Task;
use tokio::time::{Instant, sleep};

/// For what the lost worker held to be delivered: its lease of six seconds, a session's end, and a busy machine.
const FREE_AGAIN: Duration = Duration::from_secs(30);

/// For any other webhook.
const SOON: Duration = Duration::from_secs(5);

/// No session of a service may stand in a transaction for longer, whatever became of its process.
const STUCK: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE 'outhook-%' AND state LIKE 'idle in transaction%'
      AND state_change < clock_timestamp() - interval '15 s'";

const KEYS: i64 = 20;

/// Rounds in which a worker may be met in the middle of a transaction.
const ROUNDS: u32 = 200;

/// Cuts the worker off, as a network does that drops packets, in the middle of a transaction if it is to be met there.
async fn cut_off_in_a_transaction(stack: &Stack, proxy: &TcpProxy) -> bool {
    let in_transaction = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'outhook-worker' AND state LIKE 'idle in transaction%'
          AND state_change < clock_timestamp() - interval '30 ms'";
    for round in 0..ROUNDS {
        proxy.set(Mode::Stall);
        let met = look_for(Duration::from_millis(60), async || (stack.count(in_transaction).await > 0).then_some(()));
        if met.await.is_some() {
            return true;
        }
        proxy.set(Mode::Forward);
        // Another moment each time.
        sleep(Duration::from_millis(u64::from(round % 13))).await;
    }
    proxy.set(Mode::Stall);
    false
}

/// Webhooks of many keys, `each` of every key.
async fn enqueue_keys(stack: &Stack, each: i64) {
    let enqueue = "SELECT count(outhook.enqueue($1, '{}', ordering_key => 'key ' || n % $2))
        FROM generate_series(1, $2 * $3) AS n";
    let statement = sqlx::query(enqueue).bind(stack.receiver_url("")).bind(KEYS).bind(each);
    statement.execute(stack.pool()).await.expect("they are taken");
    sqlx::query("SELECT outhook.wake()").execute(stack.pool()).await.expect("a hint is taken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_vanishes_in_a_transaction_stops_nobody_and_its_keys_for_seconds() {
    let mut stack = Stack::builder()
        .workers(0)
        .env("HTTP_CLIENT_TIMEOUT_SEC", "1")
        .worker_env("WORKER_CONCURRENCY", "16")
        .start()
        .await;
    let direct = stack.database_url().to_owned();
    let (proxy, through_proxy) = TcpProxy::before(&direct).await;
    stack.set_worker_env("DATABASE_URL", &through_proxy);
    stack.start_worker().await;
    enqueue_keys(&stack, 30).await;
    stack.wait_for_deliveries(1).await;
    let met = cut_off_in_a_transaction(&stack, &proxy).await;
    // The proxy keeps its connections: Postgres hears nothing of this.
    stack.workers.remove(0).kill().await;
    let lost = Instant::now();
    stack.set_worker_env("DATABASE_URL", &direct);
    stack.start_worker().await;

    let mut slowest = Duration::ZERO;
    loop {
        let posted = Instant::now();
        let id = stack.post("{}", "").await.job_id;
        wait_until("a webhook of no key beside those of a lost worker", SOON, async || {
            !stack.deliveries(id).is_empty()
        })
        .await;
        slowest = slowest.max(posted.elapsed());
        assert_eq!(stack.count(STUCK).await, 0, "a session stands in a transaction for too long");
        sleep(Duration::from_millis(300)).await;
        if stack.unfinished().await == 0 {
            break;
        }
        assert!(lost.elapsed() < FREE_AGAIN, "the keys of a lost worker stand still");
    }
    report(&format!(
        "a worker vanished {}: its keys were done after {:?}; the slowest of the others took {slowest:?}",
        if met { "in a transaction" } else { "between transactions, in which it was never met" },
        lost.elapsed()
    ));
    stack.finish().await;
}

/// A worker that was slow to hear of its claim starts its lease anew. Somebody who found it over a moment before
/// must not settle the attempt as unknown: it is under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_renewed_after_the_look_is_not_taken_over() {
    let stack = Stack::start().await;
    let id = stack.post("{}", "?delay_ms=4000").await.job_id;
    stack.wait_for_deliveries(1).await;
    let over = "UPDATE webhook_jobs SET lease_until = clock_timestamp() - interval '1 s'";
    sqlx::query(over).execute(stack.pool()).await.expect("the owner may do it");
    // In the worker's stead, as its statement would do it; seen by nobody before the commit.
    let mut renewal = stack.pool().begin().await.expect("a transaction begins");
    let renew = "UPDATE webhook_jobs SET lease_until = clock_timestamp() + interval '10 s'";
    sqlx::query(renew).execute(&mut *renewal).await.expect("the owner may do it");

    let outbox_id = sqlx::query_scalar("SELECT outbox_id FROM webhook_jobs").fetch_one(stack.pool()).await;
    let message = Task::new(id, 0, outbox_id.expect("the job has its row"), None);
    stack.broker.publish(&message.encode()).await;
    let waits = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'outhook-worker' AND wait_event_type = 'Lock'";
    // It looks, and waits for the row, or steps over it and does not come back before the renewal.
    let _ = look_for(Duration::from_secs(1), async || (stack.count(waits).await > 0).then_some(())).await;
    renewal.commit().await.expect("it ends");
    stack.wait_until_drained(PATIENCE).await;
    let recorded = attempts(stack.pool(), id).await;
    let outcomes: Vec<&str> = recorded.iter().map(|it| it.outcome.as_str()).collect();
    assert_eq!((outcomes, stack.deliveries(id).len()), (vec!["success"], 1), "{recorded:?}");
    stack.finish().await;
}
