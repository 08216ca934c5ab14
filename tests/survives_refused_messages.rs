//! The broker may refuse messages, or have no queue for them: their rows stay due in Postgres, are tried
//! again at a bounded pace, and flow as soon as they can.

use std::time::Duration;

use harness::management::Management;
use harness::{PATIENCE, Servers, Stack, report, wait_until};

const WEBHOOKS: u32 = 50;

/// Tries that prove that the relay keeps at it.
const REFUSALS: f64 = 3.0;

async fn post_all(stack: &Stack, webhooks: u32) {
    for _ in 0..webhooks {
        stack.post("{}", "").await;
    }
}

async fn wait_for_counter(stack: &Stack, name: &str, count: f64) {
    wait_until(name, PATIENCE, async || stack.relays[0].counter(name).await >= count).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_messages_until_it_is_drained() {
    let management = Management::of(Servers::shared().await);
    let mut stack = Stack::builder().workers(0).start().await;
    let queue = stack.broker.names().queue.clone();
    management.limit_queue(&queue, 1).await;
    // A policy takes a moment to reach the queue: the first ones may pass.
    wait_until("the broker to refuse", PATIENCE, async || {
        stack.post("{}", "").await;
        stack.relays[0].counter("outhook_relay_refused_total").await > 0.0
    })
    .await;
    let (published, refused) =
        (stack.publications().await, stack.relays[0].counter("outhook_relay_refused_total").await);
    post_all(&stack, WEBHOOKS).await;
    wait_for_counter(&stack, "outhook_relay_refused_total", refused + 2.0 * f64::from(WEBHOOKS)).await;
    assert_eq!(stack.publications().await, published, "a refused message was recorded as published");
    let later =
        "SELECT count(*) FROM outbox WHERE published_at IS NULL AND due_at <= now() + interval '500 milliseconds'";
    assert!(stack.count(later).await >= i64::from(WEBHOOKS), "refused rows are not due soon");

    management.lift_limit(&queue).await;
    stack.start_worker().await;
    stack.wait_until_drained(PATIENCE).await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_queue_nothing_counts_as_published() {
    let servers = Servers::shared().await;
    let management = Management::of(servers);
    let user = management.create_user("without_its_queue").await;
    let stack = Stack::builder().env("RABBITMQ_URL", &user.url(&servers.rabbitmq_url)).start().await;
    post_all(&stack, 1).await;
    stack.wait_until_drained(PATIENCE).await;

    // It cannot be declared anew, so that there is time to look.
    management.let_configure(&user, false).await;
    stack.broker.delete_queue().await;
    post_all(&stack, WEBHOOKS).await;
    let reconnects = stack.relays[0].counter("outhook_relay_reconnects_total").await;
    wait_for_counter(&stack, "outhook_relay_reconnects_total", reconnects + REFUSALS).await;
    assert_eq!(stack.publications().await, 1, "a message without a queue was recorded as published");

    management.let_configure(&user, true).await;
    stack.wait_until_drained(PATIENCE).await;
    assert_eq!(stack.publications().await, 1 + i64::from(WEBHOOKS));
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_binding_messages_come_back_and_the_binding_is_made_anew() {
    let stack = Stack::start().await;
    post_all(&stack, 1).await;
    stack.wait_until_drained(PATIENCE).await;

    stack.broker.unbind_queue().await;
    post_all(&stack, WEBHOOKS).await;
    stack.wait_until_drained(Duration::from_secs(20)).await;
    let refused = stack.relays[0].counter("outhook_relay_refused_total").await;
    report(&format!("binding deleted: {refused} messages came back"));
    assert!(refused > 0.0, "no message came back");
    assert_eq!(stack.publications().await, 1 + i64::from(WEBHOOKS));
    stack.finish().await;
}
