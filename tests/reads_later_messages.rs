//! Old and new programs run side by side during an update: a worker reads the messages of a relay that is
//! newer than itself, besides those of its own version.

use harness::{PATIENCE, Stack};
use uuid::Uuid;

const WEBHOOKS: usize = 20;

async fn post_all(stack: &Stack) {
    for _ in 0..WEBHOOKS {
        stack.post("{}", "").await;
    }
}

/// Publishes what is due as a relay of the next version might.
async fn publish_as_a_newer_relay(stack: &Stack) {
    let due: Vec<(i64, Uuid, i32)> = sqlx::query_as("SELECT id, job_id, attempt FROM outbox")
        .fetch_all(stack.pool())
        .await
        .expect("the outbox can be read");
    assert_eq!(due.len(), WEBHOOKS);
    for (outbox_id, job_id, attempt) in due {
        let message = serde_json::json!({
            "v": 2, "job_id": job_id, "attempt": attempt, "outbox_id": outbox_id,
            "lane": "slow", "hints": { "size": [1, 2, 3] },
        });
        stack.broker.publish(message.to_string().as_bytes()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_delivers_for_a_newer_relay_and_for_its_own() {
    let mut stack = Stack::start().await;
    // It has made the queue; from here on the newer one is at work.
    stack.relays[0].terminate().await;
    stack.relays.clear();
    post_all(&stack).await;
    publish_as_a_newer_relay(&stack).await;
    stack.wait_until_drained(PATIENCE).await;
    assert_eq!(stack.publications().await, 0, "an old relay was at work");

    stack.start_relay().await;
    post_all(&stack).await;
    stack.wait_until_drained(PATIENCE).await;
    assert_eq!(stack.receiver.received().len(), 2 * WEBHOOKS);
    stack.finish().await;
}
