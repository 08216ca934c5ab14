//! The broker may be stopped, killed, and lose all it has: the services find it again by themselves, what
//! it did not confirm is published once more, and what it lost is delivered all the same.

use std::time::{Duration, Instant};

use harness::load::{Burst, Flow};
use harness::servers::Server;
use harness::{PATIENCE, Servers, Stack, look_for, report, wait_until};

const WEBHOOKS: usize = 1_200;

/// A second: much less than relay and worker can do.
const STEADILY: u32 = 100;

/// The services' backoff (1 s), and a machine that is busy with other tests. Far below the republish
/// interval of 15 min, which would hide what does not recover.
const RECOVERY_LIMIT: Duration = Duration::from_secs(20);

/// A relay that has something to publish does within this time; far below the 5 s after which it gives up what it asks for.
const SOON: Duration = Duration::from_secs(1);

/// Whether the relay has published messages whose confirms are not there.
const PUBLISHING: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'outhook-relay' AND state = 'idle in transaction'
        AND state_change < clock_timestamp() - interval '300 ms'";

async fn start(broker: &Servers) -> Stack {
    Stack::builder().start_between(Servers::shared().await, broker).await
}

/// Pauses the broker while the relay awaits confirms, under a load that comes steadily. At any one moment it may be asking how
/// long the queue is instead, as it mostly does when there is more to publish than workers take; then it gets its answer.
async fn pause_while_publishing(broker: &Servers, stack: &Stack) {
    for _ in 0..10 {
        broker.pause(Server::RabbitMq).await;
        if look_for(SOON, async || (stack.count(PUBLISHING).await == 1).then_some(())).await.is_some() {
            return;
        }
        broker.resume(Server::RabbitMq).await;
        let accepted = stack.client.accepted().len();
        wait_until("the load to go on", PATIENCE, async || stack.client.accepted().len() > accepted + 20).await;
    }
    panic!("the relay was never found awaiting confirms");
}

async fn reconnects(stack: &Stack) -> (f64, f64) {
    let relay = stack.relays[0].counter("outhook_relay_reconnects_total").await;
    (relay, stack.workers[0].counter("outhook_worker_reconnects_total").await)
}

/// A queue that was declared only just now may come back broken from a kill, which is another fault than the
/// one meant here: `survives_broken_queue`. RabbitMQ writes all of it to disk when it is stopped in order.
async fn write_queues_to_disk(broker: &Servers, stack: &Stack) {
    broker.stop(Server::RabbitMq).await;
    broker.start_again(Server::RabbitMq).await;
    stack.post("{}", "").await;
    stack.wait_until_drained(RECOVERY_LIMIT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_is_stopped_in_order_and_starts_again() {
    let broker = Servers::private_only(Server::RabbitMq).await;
    let stack = start(&broker).await;
    let mut burst = Burst::start(&stack.client, &stack.receiver_url("?delay_ms=5"), WEBHOOKS, 16);
    burst.wait_for(WEBHOOKS / 3).await;
    broker.stop(Server::RabbitMq).await;
    // Nobody reads messages now: what is accepted from here on waits in Postgres.
    let before = stack.client.accepted().len();
    burst.wait_for(before + WEBHOOKS / 3).await;
    broker.start_again(Server::RabbitMq).await;
    let healed = Instant::now();
    let outcome = burst.outcome().await;
    stack.wait_until_drained(RECOVERY_LIMIT).await;

    let (relay, worker) = reconnects(&stack).await;
    report(&format!("broker stopped and started: drained {:?} later, {outcome:?}", healed.elapsed()));
    assert!(relay >= 1.0 && worker >= 1.0, "reconnects: relay {relay}, worker {worker}");
    assert_eq!((outcome.accepted, outcome.repeated), (WEBHOOKS, 0), "a caller noticed");
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_is_killed_and_what_it_did_not_confirm_is_published_again() {
    let broker = Servers::private_only(Server::RabbitMq).await;
    let stack = start(&broker).await;
    write_queues_to_disk(&broker, &stack).await;
    let before = reconnects(&stack).await;
    let flow = Flow::start(&stack.client, vec![stack.receiver_url("?delay_ms=5")], STEADILY);
    wait_until("some to be delivered", PATIENCE, async || stack.receiver.received().len() > 100).await;
    // So that messages are surely under way when it dies.
    pause_while_publishing(&broker, &stack).await;
    broker.kill(Server::RabbitMq).await;
    broker.start_again(Server::RabbitMq).await;
    let healed = Instant::now();
    let outcome = flow.stop().await;
    stack.wait_until_drained(RECOVERY_LIMIT).await;

    let (relay, worker) = reconnects(&stack).await;
    let unconfirmed = stack.relays[0].counter("outhook_relay_unconfirmed_total").await;
    report(&format!("broker killed: {unconfirmed} unconfirmed, drained {:?} after the start", healed.elapsed()));
    assert!(relay > before.0 && worker > before.1, "reconnects: relay {relay}, worker {worker}, before: {before:?}");
    assert!(unconfirmed > 0.0, "no message was under way");
    assert_eq!(outcome.repeated, 0, "a caller noticed");
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_is_wiped_and_every_unfinished_webhook_is_delivered() {
    let broker = Servers::private_only(Server::RabbitMq).await;
    let slow = Stack::builder().worker_env("WORKER_CONCURRENCY", "4");
    let stack = slow.start_between(Servers::shared().await, &broker).await;
    let burst = Burst::start(&stack.client, &stack.receiver_url("?delay_ms=40"), WEBHOOKS / 4, 16);
    let outcome = burst.outcome().await;
    wait_until("all to be published", PATIENCE, async || stack.unpublished().await == 0).await;
    let in_queue = stack.broker.ready().await;
    broker.kill(Server::RabbitMq).await;
    broker.wipe(Server::RabbitMq).await;
    let unfinished = stack.published().await;
    broker.start_again(Server::RabbitMq).await;
    let healed = Instant::now();
    stack.wait_until_drained(RECOVERY_LIMIT).await;

    let republished = stack.relays[0].counter("outhook_relay_republished_total").await;
    report(&format!(
        "broker wiped: {in_queue} messages were in the queue, {unfinished} webhooks unfinished, {republished} published \
         again, drained {:?} after the start",
        healed.elapsed()
    ));
    assert!(in_queue > 0 && unfinished > 0, "nothing was in flight");
    assert!(republished > 0.0, "nothing was published again");
    assert_eq!(outcome.accepted, WEBHOOKS / 4);
    stack.finish().await;
}
