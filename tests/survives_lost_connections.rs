//! Connections to Postgres and RabbitMQ may break, stall and be cut in the middle of a frame: the
//! services find their way back, and every invariant holds.

use std::time::Duration;

use harness::load::Burst;
use harness::{Mode, PATIENCE, Stack, TcpProxy, report};

const WEBHOOKS: usize = 600;

/// Longer than the services' own time-outs for a server that does not answer.
const STALL: Duration = Duration::from_secs(8);

async fn break_and_mend(stack: &Stack, proxy: &TcpProxy) {
    let mut burst = Burst::start(&stack.client, &stack.receiver_url("?delay_ms=10"), WEBHOOKS, 16);
    let faults = [Mode::Reset, Mode::CutAfter(5_000), Mode::CutAfter(333), Mode::Stall];
    for (index, fault) in faults.into_iter().enumerate() {
        burst.wait_for((index + 1) * WEBHOOKS / (faults.len() + 1)).await;
        proxy.set(fault);
        // For how long the fault lasts; nothing is waited for.
        tokio::time::sleep(if fault == Mode::Stall { STALL } else { Duration::from_millis(500) }).await;
        proxy.set(Mode::Forward);
    }
    let outcome = burst.outcome().await;
    stack.wait_until_drained(3 * PATIENCE).await;
    report(&format!("lost connections: {outcome:?}, {} connections in all", proxy.connections()));
    assert_eq!(outcome.accepted + outcome.known, WEBHOOKS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_is_lost_and_found() {
    let servers = harness::Servers::shared().await;
    let (proxy, through_proxy) = TcpProxy::before(&servers.rabbitmq_url).await;
    let stack = Stack::builder().env("RABBITMQ_URL", &through_proxy).workers(2).start().await;
    break_and_mend(&stack, &proxy).await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_database_is_lost_and_found() {
    let servers = harness::Servers::shared().await;
    let (proxy, _) = TcpProxy::before(&servers.database_url).await;
    let stack = Stack::builder().database_through(&proxy).workers(2).start().await;
    break_and_mend(&stack, &proxy).await;
    stack.finish().await;
}
