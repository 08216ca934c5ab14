//! Webhooks of one ordering key are delivered one after the other in the order of their acceptance, a retry
//! holding the next ones back, whoever is killed meanwhile.

use std::collections::HashMap;

use harness::{PATIENCE, Stack, report, wait_until};
use uuid::Uuid;

/// Insists that each key's webhooks were first received in order, and that none came before the one before
/// it was done with.
pub(crate) async fn assert_order(stack: &Stack, keys: &HashMap<String, Vec<Uuid>>) {
    for (key, ids) in keys {
        let received = stack.receiver.received();
        let mut order: Vec<Uuid> = Vec::new();
        for id in received.iter().filter_map(|it| it.job_id.as_ref()?.parse().ok()) {
            if ids.contains(&id) && order.last() != Some(&id) {
                order.push(id);
            }
        }
        assert_eq!(&order, ids, "key {key}: each comes after the one before, and none comes again afterwards");
    }
    let overlaps = "SELECT count(*) FROM (
            SELECT min(attempt.started_at) AS began, job.outbox_id, job.ordering_key, job.updated_at,
                   lag(job.updated_at) OVER (PARTITION BY job.ordering_key ORDER BY job.outbox_id) AS ended_before
            FROM webhook_jobs AS job JOIN webhook_attempts AS attempt ON attempt.job_id = job.id
            WHERE job.ordering_key IS NOT NULL GROUP BY job.id) AS lives
        WHERE began < ended_before";
    assert_eq!(stack.count(overlaps).await, 0, "two of a key were under way at once");
}

/// Posts a webhook of this ordering key.
async fn post(stack: &Stack, query: &str, key: &str) -> Uuid {
    stack.client.post_webhook(&stack.webhook(query).ordering_key(key)).await.job_id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_holds_the_next_ones_of_its_key_back_and_no_others() {
    let stack = Stack::start().await;
    let mut ids = vec![post(&stack, "?fail_times=2", "a").await];
    for _ in 0..5 {
        ids.push(post(&stack, "", "a").await);
    }
    let free = stack.post("{}", "").await.job_id;
    stack.wait_until_drained(PATIENCE).await;
    assert_eq!(stack.deliveries(ids[0]).len(), 3);
    assert_order(&stack, &HashMap::from([("a".to_owned(), ids.clone())])).await;
    let received = stack.receiver.received();
    let place = |id: Uuid| received.iter().position(|it| it.job_id.as_deref() == Some(&id.to_string()));
    assert!(place(free) < place(ids[1]), "a webhook without a key waited");
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ends_without_success_lets_the_next_one_go() {
    let stack = Stack::builder().env("RETRY_SCHEDULE", "1h").start().await;
    let gone = post(&stack, "?status=410", "k").await;
    let retried = post(&stack, "?status=500", "k").await;
    let last = post(&stack, "", "k").await;
    wait_until("the first to end", PATIENCE, async || stack.client.job(gone).await["status"] == "failed").await;
    wait_until("the next to have failed once", PATIENCE, async || {
        let job = stack.client.job(retried).await;
        (&job["status"], &job["retry_count"]) == (&"pending".into(), &1.into())
    })
    .await;
    wait_until("the last to wait for its turn", PATIENCE, async || {
        stack.count("SELECT count(*) FROM outhook.jobs WHERE state LIKE 'waiting for an earlier job%'").await == 1
    })
    .await;
    assert_eq!(stack.deliveries(last).len(), 0);
    let cancelled: bool = sqlx::query_scalar("SELECT outhook.cancel($1)")
        .bind(retried)
        .fetch_one(stack.pool())
        .await
        .expect("it answers");
    assert!(cancelled);
    stack.wait_until_drained(PATIENCE).await;
    assert_eq!(stack.client.job(last).await["status"], "success");
    stack.finish().await;
}

/// The same from SQL, where the order is that of the statements.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_from_sql_counts_as_well() {
    let stack = Stack::start().await;
    let enqueue = "SELECT array_agg(id) FROM (SELECT outhook.enqueue($1 || '?fail_times=' || (n % 3), '{}', ordering_key => 's') AS id
        FROM generate_series(1, 10) AS n) AS jobs";
    let ids: Vec<Uuid> =
        sqlx::query_scalar(enqueue).bind(stack.receiver_url("")).fetch_one(stack.pool()).await.expect("they are taken");
    stack.wait_until_drained(PATIENCE).await;
    assert_order(&stack, &HashMap::from([("s".to_owned(), ids)])).await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_order_survives_kills_of_relays_and_workers() {
    const KEYS: usize = 8;
    const ROUNDS: usize = 32;
    let mut stack = Stack::builder()
        .relays(2)
        .workers(2)
        .env("MAX_RETRIES", "20")
        .worker_env("HTTP_CLIENT_TIMEOUT_SEC", "1")
        .start()
        .await;
    let mut keys: HashMap<String, Vec<Uuid>> = HashMap::new();
    for round in 0..ROUNDS {
        for number in 0..KEYS {
            let name = format!("key {number}");
            // Every fifth fails once.
            let query = match (round + number) % 5 {
                0 => "?fail_times=1",
                // Long enough to be under way when its worker is killed.
                _ if round % 8 == 3 => "?delay_ms=500",
                _ => "?delay_ms=5",
            };
            let id = post(&stack, query, &name).await;
            keys.entry(name).or_default().push(id);
        }
        if round % 8 == 3 {
            wait_until("requests to be under way", PATIENCE, async || {
                stack.count("SELECT count(DISTINCT claimed_by) FROM webhook_jobs WHERE status = 'processing'").await > 0
            })
            .await;
            stack.relays.remove(0).kill().await;
            stack.start_relay().await;
            for mut worker in std::mem::take(&mut stack.workers) {
                worker.kill().await;
            }
            stack.start_worker().await;
            stack.start_worker().await;
        }
    }
    stack.wait_until_drained(PATIENCE * 3).await;
    assert_order(&stack, &keys).await;
    let unknown = stack.unknown_attempts().await;
    assert!(unknown > 0, "no kill came in the middle of an attempt");
    report(&format!(
        "order: {KEYS} keys of {ROUNDS} webhooks each, 4 relays and 8 workers killed; {unknown} unknown attempts, none out of order"
    ));
    stack.finish().await;
}
