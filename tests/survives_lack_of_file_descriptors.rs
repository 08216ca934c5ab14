//! A process that may open no more sockets takes no more work than it has sockets for: callers wait, no
//! attempt fails for it, and all goes on when there are some again.

use harness::load::Burst;
use harness::{PATIENCE, Stack, report};

const WEBHOOKS: usize = 400;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_without_sockets_lets_callers_wait() {
    let mut stack = Stack::start().await;
    stack.apis[0].limit_files_to_open(6);
    let burst = Burst::start(&stack.client, &stack.receiver_url(""), WEBHOOKS, 64);
    // "cannot accept a connection": it had no socket for it.
    stack.apis[0].wait_for_word("accept").await;
    stack.apis[0].lift_file_limit();
    let outcome = burst.outcome().await;
    stack.wait_until_drained(PATIENCE).await;

    stack.apis[0].says("Too many open files").await;
    report(&format!("api without sockets: {outcome:?}"));
    assert_eq!(outcome.accepted + outcome.known, WEBHOOKS);
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_without_sockets_fails_no_attempt() {
    let mut stack = Stack::start().await;
    stack.workers[0].limit_files_to_open(6);
    let burst = Burst::start(&stack.client, &stack.receiver_url("?delay_ms=50"), WEBHOOKS, 16);
    stack.workers[0].wait_for_word("descriptor").await;
    stack.workers[0].lift_file_limit();
    assert_eq!(burst.outcome().await.accepted, WEBHOOKS);
    stack.wait_until_drained(PATIENCE).await;

    let waits = stack.workers[0].counter("outhook_worker_descriptor_waits_total").await;
    let failed = stack.unsuccessful_attempts().await;
    report(&format!("worker without sockets: {waits} requests waited for one, {failed} attempts failed"));
    assert_eq!(failed, 0, "attempts failed for the worker's own want");
    stack.finish().await;
}
