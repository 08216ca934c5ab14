//! A broker that is short of memory blocks whoever publishes: the relay waits for no confirm longer than it
//! must and says that it is degraded; callers notice nothing.

use std::time::Instant;

use harness::servers::Server;
use harness::{PATIENCE, Servers, Stack, report, wait_until};
use rustix::process::Signal;

const WEBHOOKS: i64 = 50;

async fn post_all(stack: &Stack) {
    for _ in 0..WEBHOOKS {
        stack.post("{}", "").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_without_memory_blocks_the_relay_and_no_caller() {
    let broker = Servers::private_only(Server::RabbitMq).await;
    let mut stack = Stack::builder().start_between(Servers::shared().await, &broker).await;
    // Several at once, so that the alarm comes in the middle of them: RabbitMQ blocks at the first message.
    stack.relays[0].signal(Signal::STOP);
    post_all(&stack).await;
    broker.rabbitmqctl(&["set_vm_memory_high_watermark", "absolute", "1"]).await;
    stack.relays[0].signal(Signal::CONT);
    stack.relays[0].wait_for_word("degraded").await;
    wait_until("the confirms to be given up", PATIENCE, async || {
        stack.relays[0].counter("outhook_relay_unconfirmed_total").await > 0.0
    })
    .await;
    assert_eq!(stack.relays[0].counter("outhook_relay_blocked").await.to_bits(), 1.0_f64.to_bits());
    // Each is answered with 202.
    post_all(&stack).await;
    let unpublished = stack.unpublished().await;
    assert!(unpublished >= WEBHOOKS, "{unpublished} wait in Postgres");

    broker.rabbitmqctl(&["set_vm_memory_high_watermark", "absolute", "512MB"]).await;
    let healed = Instant::now();
    stack.wait_until_drained(PATIENCE).await;
    report(&format!("broker blocked: {unpublished} waited in Postgres, drained {:?} after the end", healed.elapsed()));
    assert_eq!(stack.relays[0].counter("outhook_relay_blocked").await.to_bits(), 0.0_f64.to_bits());
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_dies_without_memory_leaves_nobody_blocked() {
    let broker = Servers::private_only(Server::RabbitMq).await;
    let stack = Stack::builder().start_between(Servers::shared().await, &broker).await;
    broker.rabbitmqctl(&["set_vm_memory_high_watermark", "absolute", "1"]).await;
    stack.post("{}", "").await;
    let blocked = async || stack.relays[0].counter("outhook_relay_blocked").await;
    wait_until("the relay to be blocked", PATIENCE, async || blocked().await > 0.0).await;
    broker.kill(Server::RabbitMq).await;
    broker.start_again(Server::RabbitMq).await;
    stack.wait_until_drained(PATIENCE).await;
    wait_until("the relay to be blocked no more", PATIENCE, async || blocked().await < 1.0).await;
    stack.finish().await;
}
