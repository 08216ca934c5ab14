//! A worker whose consumer hears nothing, although there is something for it, finds that out and consumes anew; and one
//! that leaves takes its leave of the broker.

use std::time::Instant;

use harness::servers::Server;
use harness::{PATIENCE, Servers, Stack, report, wait_until};

const WEBHOOKS: usize = 50;

async fn post_all(stack: &Stack, count: usize) {
    for _ in 0..count {
        stack.post("{}", "").await;
    }
}

/// RabbitMQ 3.10 and 3.12 tell the consumers of such a queue nothing, and hand them nothing: what they were to get counts
/// as handed to them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_was_replaced_is_consumed_anew() {
    let stack = Stack::start().await;
    stack.broker.replace_queue().await;
    let replaced = Instant::now();
    post_all(&stack, WEBHOOKS).await;
    stack.wait_for_deliveries(WEBHOOKS).await;
    let healed = replaced.elapsed();
    let deaf = stack.workers[0].counter("outhook_worker_deaf_total").await;
    let log = stack.workers[0].log();
    if stack.workers[0].counter("outhook_worker_reconnects_total").await > 0.0 {
        report("queue replaced: NOT TESTED: this RabbitMQ told the consumer");
    } else {
        report(&format!("queue replaced: {WEBHOOKS} delivered after {healed:?}"));
        assert!(deaf > 0.0 && log.contains("the consumer was deaf"), "{log}");
    }
    stack.finish().await;
}

/// More than are handed out ahead: the rest lies in the queue, for all to see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deaf_consumer_with_messages_ready_connects_anew() {
    let stack = Stack::builder().worker_env("WORKER_CONCURRENCY", "1").start().await;
    stack.broker.replace_queue().await;
    post_all(&stack, WEBHOOKS).await;
    stack.wait_for_deliveries(WEBHOOKS).await;
    let (reconnects, log) = (stack.workers[0].counter("outhook_worker_reconnects_total").await, stack.workers[0].log());
    assert!(reconnects > 0.0, "{log}");
    if log.contains("RabbitMQ ended the consumer") {
        report("deaf consumer: NOT TESTED: this RabbitMQ told it");
    } else {
        assert!(log.contains("the consumer is deaf"), "{log}");
    }
    stack.finish().await;
}

/// One that is idle, and one that gets nothing because its slots are taken, has nothing to complain about.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_has_nothing_to_hear_stays_as_it_is() {
    let stack = Stack::builder().workers(2).worker_env("WORKER_CONCURRENCY", "1").start().await;
    for _ in 0..2 {
        stack.post("{}", "?delay_ms=4500").await;
    }
    post_all(&stack, 20).await;
    wait_until("messages to wait for a slot", PATIENCE, async || stack.broker.ready().await > 0).await;
    stack.wait_until_drained(PATIENCE).await;
    for worker in &stack.workers {
        let (reconnects, deaf) = ("outhook_worker_reconnects_total", "outhook_worker_deaf_total");
        assert!(worker.counter(reconnects).await + worker.counter(deaf).await < 1.0, "{}", worker.log());
    }
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_stops_closes_its_connection() {
    let rabbitmq = Servers::private_only(Server::RabbitMq).await;
    let mut stack = Stack::builder().start_between(Servers::shared().await, &rabbitmq).await;
    post_all(&stack, 5).await;
    stack.wait_until_drained(PATIENCE).await;
    for mut process in [stack.workers.remove(0), stack.relays.remove(0)] {
        process.terminate().await;
    }
    let (worker, relay) = ("user: 'outhook_worker'", "user: 'outhook_relay'");
    wait_until("the broker to see the ends", PATIENCE, async || {
        let log = rabbitmq.rabbitmq_log();
        [worker, relay].iter().all(|user| log.lines().any(|line| line.contains("closing AMQP") && line.contains(user)))
    })
    .await;
    let log = rabbitmq.rabbitmq_log();
    assert!(!log.contains("client unexpectedly closed TCP connection"), "{log}");
    stack.finish().await;
}
