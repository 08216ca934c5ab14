//! RabbitMQ closes the channel of a worker that keeps a message for too long. The attempt goes on, the
//! message that comes again is no second attempt, and the worker consumes anew.

use harness::servers::Server;
use harness::{PATIENCE, Servers, Stack, report, wait_until};

const WEBHOOKS: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_that_outlasts_the_brokers_patience_is_made_once() {
    let broker = Servers::private_only(Server::RabbitMq).await;
    // For channels that are opened from here on: a message may be kept for 1 s, looked at twice a second.
    broker.rabbitmqctl(&["eval", "application:set_env(rabbit, consumer_timeout, 1000)."]).await;
    broker.rabbitmqctl(&["eval", "application:set_env(rabbit, channel_tick_interval, 500)."]).await;
    let stack = Stack::builder().start_between(Servers::shared().await, &broker).await;
    for _ in 0..WEBHOOKS {
        stack.post("{}", "?delay_ms=4000").await;
    }
    wait_until("the worker's channel to be closed", PATIENCE, async || {
        stack.workers[0].counter("outhook_worker_reconnects_total").await > 0.0
    })
    .await;
    wait_until("a message to come again", PATIENCE, async || {
        stack.workers[0].counter("outhook_worker_refused_total").await > 0.0
    })
    .await;
    stack.wait_until_drained(PATIENCE).await;

    let log = stack.workers[0].log();
    assert!(log.contains("delivery acknowledgement"), "RabbitMQ closed the channel for another reason");
    let refused = stack.workers[0].counter("outhook_worker_refused_total").await;
    report(&format!("ack time-out: {refused} of {WEBHOOKS} messages came again"));
    assert_eq!(stack.receiver.received().len(), WEBHOOKS, "an attempt was made twice");
    stack.finish().await;
}
