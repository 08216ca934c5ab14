//! The broker may carry a message any number of times: its attempt runs once. Messages that cannot be
//! read end in the dead-letter queue and stop nobody.

use std::time::Duration;

use harness::database::service_pool;
use harness::{PATIENCE, Stack, wait_until};
use outbox::broker::task::Task;
use outbox::job::{claim, unclaimed};
use uuid::Uuid;

/// The message of a job's attempt, as the relay makes it.
async fn message(stack: &Stack, job_id: Uuid, attempt: i32) -> Vec<u8> {
    let outbox_id = sqlx::query_scalar("SELECT outbox_id FROM webhook_jobs WHERE id = $1").bind(job_id);
    let outbox_id: i64 = outbox_id.fetch_one(stack.pool()).await.expect("the job has its row");
    Task::new(job_id, attempt, outbox_id, None).encode()
}

async fn publish_times(stack: &Stack, message: &[u8], times: usize) {
    for _ in 0..times {
        stack.broker.publish(message).await;
    }
}

/// Every message published so far has been taken and answered for.
async fn wait_until_consumed(stack: &Stack) {
    wait_until("the queue to be empty", PATIENCE, async || stack.broker.ready().await == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_copies_of_a_message_are_one_post() {
    let mut stack = Stack::builder().workers(0).start().await;
    // The relay has made the queue; from here on the test publishes in its place.
    stack.relays.remove(0).kill().await;
    let id = stack.post("{}", "?delay_ms=300").await.job_id;
    let message = message(&stack, id, 0).await;
    publish_times(&stack, &message, 20).await;
    // Three workers take their share of the copies at the same moment.
    for _ in 0..3 {
        stack.start_worker().await;
    }
    stack.wait_until_drained(PATIENCE).await;
    publish_times(&stack, &message, 2).await;
    wait_until_consumed(&stack).await;

    assert_eq!(stack.deliveries(id).len(), 1, "a copy of a message was delivered");
    assert_eq!(stack.count("SELECT count(*) FROM webhook_attempts").await, 1);
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_of_an_earlier_attempt_is_dropped() {
    let stack = Stack::builder().workers(2).env("MAX_RETRIES", "3").start().await;
    // Not a status that pauses the URL: then no message at all would be claimed before its time.
    let id = stack.post("{}", "?fail_times=1&status=500&retry_after=2").await.job_id;
    let stale = message(&stack, id, 0).await;
    stack.wait_for_deliveries(1).await;
    wait_until("the first attempt's record", PATIENCE, async || {
        stack.count("SELECT count(*) FROM webhook_jobs WHERE status = 'pending' AND attempt = 1").await == 1
    })
    .await;
    // The job is free again, but not for this message; its own comes in two seconds.
    publish_times(&stack, &stale, 20).await;
    wait_until_consumed(&stack).await;
    stack.wait_until_drained(PATIENCE).await;
    publish_times(&stack, &stale, 5).await;
    wait_until_consumed(&stack).await;

    let deliveries = stack.deliveries(id);
    assert_eq!(deliveries.len(), 2, "a stale message was delivered");
    assert!(deliveries[1].at - deliveries[0].at >= Duration::from_secs(2), "a stale message cut the wait short");
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_during_a_delivery_do_not_disturb_it() {
    let stack = Stack::builder().workers(2).start().await;
    let id = stack.post("{}", "?delay_ms=1500").await.job_id;
    stack.wait_for_deliveries(1).await;
    let (current, next) = (message(&stack, id, 0).await, message(&stack, id, 1).await);
    publish_times(&stack, &current, 10).await;
    publish_times(&stack, &next, 10).await;
    wait_until_consumed(&stack).await;
    stack.wait_until_drained(PATIENCE).await;

    assert_eq!(stack.deliveries(id).len(), 1);
    stack.finish().await;
}

/// A message may be claimed, lost with its worker, and found again, all before the relay has recorded that it
/// published it. Its row must be due at the end of the lease, not at the republish interval.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_is_due_at_the_leases_end_although_its_publication_is_being_recorded() {
    let mut stack = Stack::builder().workers(0).start().await;
    stack.relays.remove(0).kill().await;
    let id = stack.post("{}", "").await.job_id;
    let mut relay = stack.pool().begin().await.expect("a transaction begins");
    sqlx::raw_sql("SELECT FROM outbox FOR UPDATE").execute(&mut *relay).await.expect("the row is free");
    let message = Task::decode(&message(&stack, id, 0).await).expect("it was just encoded");
    let lease = claim::Lease { timeout: Duration::from_secs(3), margin: Duration::ZERO };
    let pool = service_pool(stack.database_url(), 1, &[]);
    let claimed = claim::claim(&pool, std::slice::from_ref(&message), "a worker that is lost", lease).await;
    assert_eq!(claimed.expect("a claim").len(), 1);

    unclaimed::check_again(&pool, [&message]).await.expect("it waits for nobody");
    let busy: i32 = sqlx::query_scalar("SELECT busy FROM outhook.make_due_again(0, 10)")
        .fetch_one(stack.pool())
        .await
        .expect("it waits for nobody either");
    assert_eq!(busy, 1);
    let mark = "UPDATE outbox SET published_at = now(), due_at = now() + interval '15 minutes'";
    sqlx::raw_sql(mark).execute(&mut *relay).await.expect("the row is ours");
    relay.commit().await.expect("it is recorded");

    stack.start_relay().await;
    stack.start_worker().await;
    stack.wait_for_deliveries(1).await;
    stack.wait_until_drained(PATIENCE).await;
    assert_eq!(stack.deliveries(id)[0].attempt, Some(2));
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_dead_lettered_and_the_consumer_lives() {
    let stack = Stack::start().await;
    let long = vec![b'['; 100_000];
    let garbage: [&[u8]; 5] = [b"", b"{}", b"\xff\x00\xfe", br#"{"job_id":"nobody"}"#, &long];
    for message in garbage {
        stack.broker.publish(message).await;
    }
    // Well-formed, of a job that does not exist: nothing to do, and no poison either.
    stack.broker.publish(&Task::new(Uuid::now_v7(), 0, 1, None).encode()).await;
    stack.post("{}", "").await;
    stack.wait_for_deliveries(1).await;
    let dead = u32::try_from(garbage.len()).expect("it is small");
    wait_until("the dead letters", PATIENCE, async || stack.broker.dead().await == dead).await;
    stack.finish_with_dead_letters(dead).await;
}
