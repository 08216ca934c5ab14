//! A broker that is killed a moment after a quorum queue was declared may come back with the queue's name and
//! nothing behind it: it refuses all that is published, and every consumer. Such a queue is deleted and made anew.

use std::time::{Duration, Instant};

use harness::servers::Server;
use harness::{PATIENCE, Servers, Stack, report, wait_until};

/// Most kills until one has left such a queue behind; with RabbitMQ 3.10.8 nearly every one does.
const KILLS: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_without_a_process_is_made_anew() {
    let rabbitmq = Servers::private_only(Server::RabbitMq).await;
    let stack = Stack::builder().start_between(Servers::shared().await, &rabbitmq).await;
    for kill in 1..=KILLS {
        stack.broker.delete_queue().await;
        wait_until("the relay to declare the queue", PATIENCE, async || stack.broker.has_queue().await).await;
        rabbitmq.kill(Server::RabbitMq).await;
        rabbitmq.start_again(Server::RabbitMq).await;
        stack.post("{}", "").await;
        stack.wait_for_deliveries(kill).await;
        let broken = stack.workers[0].counter("outhook_worker_broken_queues_total").await;
        if broken > 0.0 {
            report(&format!("broken queue: kill {kill} left one, {broken} were made anew"));
            return stack.finish().await;
        }
    }
    // Nothing to survive on a broker that does not do this.
    report("broken queue: NOT TESTED: this RabbitMQ leaves none behind");
    stack.finish().await;
}

/// RabbitMQ 3.10 and 3.12 do not tell consumers of a queue that is there again within milliseconds, and hand them nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_was_deleted_is_not_declared_again_at_once() {
    let stack = Stack::start().await;
    for deletion in 1..=3 {
        stack.broker.delete_queue().await;
        let deleted = Instant::now();
        wait_until("the relay to declare the queue", PATIENCE, async || stack.broker.has_queue().await).await;
        let again = deleted.elapsed();
        assert!(again >= Duration::from_millis(900), "its consumers may not have been told within {again:?}");
        stack.post("{}", "").await;
        stack.wait_for_deliveries(deletion).await;
    }
    stack.finish().await;
}
