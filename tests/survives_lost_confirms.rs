//! Only the broker's confirm makes a row published. What a relay sent into a network that lost it is sent
//! again within seconds, whether that relay lives or not.

use std::time::Duration;

use harness::tcp_proxy::Direction;
use harness::{Mode, PATIENCE, Stack, TcpProxy, look_for, report, wait_until};
use uuid::Uuid;

const WEBHOOKS: usize = 10;

/// For all to be delivered once the network works again: a fraction of the 15 minutes after which a row
/// that was marked rings by itself.
const SOON: Duration = Duration::from_secs(15);

/// How often a relay may be met at the wrong moment.
const TRIES: usize = 3;

/// A relay waits no longer for its confirms.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);

/// A stack whose relay reaches the broker through a proxy.
async fn start() -> (Stack, TcpProxy) {
    let servers = harness::Servers::shared().await;
    let (proxy, through_proxy) = TcpProxy::before(&servers.rabbitmq_url).await;
    (Stack::builder().relay_env("RABBITMQ_URL", &through_proxy).start().await, proxy)
}

/// Loses what the relay sends to the broker, and returns the jobs whose confirms it waits for.
async fn lose_publications(stack: &Stack, proxy: &TcpProxy) -> Vec<Uuid> {
    let publishing = "SELECT count(*) FROM pg_stat_activity
                      WHERE datname = current_database() AND application_name = 'outhook-relay'
                        AND state = 'idle in transaction' AND state_change < clock_timestamp() - interval '300 ms'";
    for _ in 0..TRIES {
        proxy.set(Mode::Drop(Direction::ToServer));
        let mut jobs = Vec::new();
        for _ in 0..WEBHOOKS {
            jobs.push(stack.post("{}", "").await.job_id);
        }
        let publishes = async || (stack.count(publishing).await == 1).then_some(());
        if look_for(CONFIRM_TIMEOUT, publishes).await.is_some() {
            return jobs;
        }
        // Once a second it asks how long the queue is. This time it was that question that got lost.
        proxy.set(Mode::Forward);
        stack.wait_until_drained(PATIENCE).await;
    }
    panic!("the relay never waited for a confirm");
}

fn assert_lost(stack: &Stack, jobs: &[Uuid]) {
    for id in jobs {
        assert_eq!(stack.deliveries(*id).len(), 0, "something came through: job {id}");
    }
}

/// Mends the network; each job is delivered soon, and once.
async fn assert_delivered_soon(stack: &Stack, proxy: &TcpProxy, jobs: &[Uuid]) {
    proxy.set(Mode::Forward);
    stack.wait_until_drained(SOON).await;
    for id in jobs {
        assert_eq!(stack.deliveries(*id).len(), 1, "job {id}");
    }
    // It was known all the time, and not found out because they were missing.
    let missing = stack.relays[0].counter("outhook_relay_missing_total").await;
    assert!(missing < 1.0, "{missing} were recorded as published");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_confirmed_is_published_again() {
    let (stack, proxy) = start().await;
    let jobs = lose_publications(&stack, &proxy).await;
    wait_until("the relay to give the confirms up", PATIENCE, async || {
        stack.relays[0].counter("outhook_relay_unconfirmed_total").await > 0.0
    })
    .await;
    assert_lost(&stack, &jobs);
    assert_delivered_soon(&stack, &proxy, &jobs).await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_relay_did_not_see_confirmed_is_published_by_the_next() {
    let (mut stack, proxy) = start().await;
    let jobs = lose_publications(&stack, &proxy).await;
    stack.relays[0].kill().await;
    stack.relays.clear();
    assert_lost(&stack, &jobs);
    proxy.set(Mode::Forward);
    stack.start_relay().await;
    assert_delivered_soon(&stack, &proxy, &jobs).await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_whose_confirms_are_lost_are_published_again_under_their_ids() {
    let (mut stack, proxy) = start().await;
    stack.workers.remove(0).terminate().await;
    let wire = stack.listen().await;
    let connections = proxy.connections();
    proxy.set(Mode::Drop(Direction::ToClient));
    for _ in 0..WEBHOOKS {
        stack.post("{}", "").await;
    }
    wait_until("a confirm to be given up", PATIENCE, async || {
        stack.relays[0].counter("outhook_relay_unconfirmed_total").await > 0.0
    })
    .await;
    assert_eq!(stack.publications().await, 0, "recorded without a confirm");
    wait_until("the connection to be closed", PATIENCE, async || proxy.ended_connections() >= connections).await;
    let lost = wire.messages();

    proxy.set(Mode::Forward);
    wire.wait_for(lost + WEBHOOKS, PATIENCE).await;
    assert!(proxy.connections() > connections, "nobody connected anew");
    assert_eq!(wire.duplicates(), lost, "messages without a confirm came again under other ids");
    stack.start_worker().await;
    stack.wait_until_drained(PATIENCE).await;

    report(&format!("confirms lost: {lost} of {WEBHOOKS} messages published twice, each delivered once"));
    assert!(lost > 0, "no confirm was lost");
    assert_eq!(stack.receiver.received().len(), WEBHOOKS);
    stack.finish().await;
}
