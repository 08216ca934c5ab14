//! Any number of relays and workers run side by side: all of them work, and nothing is done twice.

use harness::load::Burst;
use harness::{PATIENCE, Stack, report};

const WEBHOOKS: usize = 1_500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_relays_and_three_workers_share() {
    let stack = Stack::builder()
        .relays(3)
        .workers(3)
        // Small shares, so that there are enough for all.
        .relay_env("RELAY_BATCH_SIZE", "10")
        .worker_env("WORKER_CONCURRENCY", "32")
        .start()
        .await;
    let wire = stack.listen().await;
    let burst = Burst::start(&stack.client, &stack.receiver_url("?delay_ms=5"), WEBHOOKS, 64);
    assert_eq!(burst.outcome().await.accepted, WEBHOOKS);
    stack.wait_until_drained(2 * PATIENCE).await;

    let (mut published, mut due_again) = (Vec::new(), 0.0);
    for relay in &stack.relays {
        published.push(relay.counter("outhook_relay_published_total").await);
        due_again += relay.counter("outhook_relay_due_again_total").await;
        due_again += relay.counter("outhook_relay_missing_total").await;
    }
    let delivered: Vec<i64> = sqlx::query_scalar("SELECT count(*) FROM webhook_attempts GROUP BY worker")
        .fetch_all(stack.pool())
        .await
        .expect("attempts can be read");
    report(&format!("{WEBHOOKS} webhooks shared: published {published:?}, delivered {delivered:?}"));
    assert!(published.iter().all(|&share| share > 0.0), "{published:?}");
    assert_eq!(delivered.len(), 3, "{delivered:?}");
    // On a machine that is busy enough, workers give back what would keep others waiting.
    let given_back = usize::try_from(stack.count("SELECT count(*) FROM harness.withdrawals").await).expect("a count");
    // One that is given back before its publication is committed is on the list of rows to look at again.
    let again = wire.messages().checked_sub(WEBHOOKS + given_back).expect("each row was published");
    let again = u32::try_from(again).expect("it is small");
    assert!(
        f64::from(again) <= due_again,
        "{again} published again, {due_again} made due again: relays published the same row"
    );
    assert_eq!(stack.receiver.received().len(), WEBHOOKS);
    stack.finish().await;
}
