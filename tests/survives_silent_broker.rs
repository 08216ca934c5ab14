//! A broker that says nothing more, without an end of its connections, is found by heartbeats; and no
//! attempt to connect waits for one for ever.

use std::time::{Duration, Instant};

use harness::servers::Server;
use harness::{Mode, PATIENCE, Servers, Stack, TcpProxy, report, wait_until};

const WEBHOOKS: usize = 50;

/// Two heartbeats of 5 s without an answer, one attempt to connect (5 s), and a busy machine.
const NOTICE_LIMIT: Duration = Duration::from_secs(30);

/// Waits until relay and worker, both of them idle, have each given up so many connections or attempts to
/// connect.
async fn wait_for_reconnects(stack: &Stack, count: f64) {
    wait_until("relay and worker to notice", NOTICE_LIMIT, async || {
        stack.relays[0].counter("outhook_relay_reconnects_total").await >= count
            && stack.workers[0].counter("outhook_worker_reconnects_total").await >= count
    })
    .await;
}

async fn post_all(stack: &Stack) {
    for _ in 0..WEBHOOKS {
        stack.post("{}", "").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_broker_is_found_by_heartbeats() {
    let broker = Servers::private_only(Server::RabbitMq).await;
    let stack = Stack::builder().start_between(Servers::shared().await, &broker).await;
    post_all(&stack).await;
    stack.wait_until_drained(PATIENCE).await;

    broker.pause(Server::RabbitMq).await;
    let paused = Instant::now();
    wait_for_reconnects(&stack, 1.0).await;
    let noticed = paused.elapsed();
    post_all(&stack).await;
    broker.resume(Server::RabbitMq).await;
    let healed = Instant::now();
    stack.wait_until_drained(PATIENCE).await;
    report(&format!("broker paused: noticed after {noticed:?}, drained {:?} after its return", healed.elapsed()));
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connecting_to_a_silent_broker_is_given_up() {
    let (proxy, through_proxy) = TcpProxy::before(&Servers::shared().await.rabbitmq_url).await;
    let stack = Stack::builder().env("RABBITMQ_URL", &through_proxy).start().await;
    let connections = proxy.connections();
    // Takes connections still, as a broker's kernel does, and passes nothing on.
    proxy.set(Mode::Stall);
    wait_for_reconnects(&stack, 2.0).await;
    let attempts = proxy.connections() - connections;
    post_all(&stack).await;
    proxy.set(Mode::Forward);
    let healed = Instant::now();
    stack.wait_until_drained(PATIENCE).await;
    report(&format!("broker silent: {attempts} attempts to connect, drained {:?} after its return", healed.elapsed()));
    assert!(attempts >= 2, "nobody connected anew");
    stack.finish().await;
}
