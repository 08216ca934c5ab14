//! No destination stands in another's way: neither many that hang, nor few that hang for long, nor one with a burst,
//! nor payloads that are large.

use std::time::Duration;

use harness::latency::{steadily, taken};
use harness::raw_server::{listen_on_hosts, url_of};
use harness::{PATIENCE, Stack, StackBuilder, look_for, report, wait_until};
use receiver::{Limits, Options, Receiver};
use tokio::net::TcpListener;
use uuid::Uuid;

/// What a webhook to a destination that is well takes at the most: in truth less than a second, and more only on a
/// busy machine.
const BOUND: Duration = Duration::from_secs(5);

/// The same for the first webhook to a destination that nobody knows yet.
const FIRST_CONTACT: Duration = Duration::from_secs(6);

/// A stack whose worker and breakers are as they come, whatever suits other tests.
fn stack() -> StackBuilder {
    Stack::builder()
        .env("HTTP_CLIENT_TIMEOUT_SEC", "10")
        .env("BACKOFF_BASE_MS", "1000")
        .env("BACKOFF_MAX_SEC", "3600")
        .env("BREAKER_FAILURES", "10")
        .env("BREAKER_COOLDOWN_SEC", "30")
        .env("BREAKER_COOLDOWN_MAX_SEC", "600")
}

/// Accepts so many webhooks for each of these, and waits until some are under way.
async fn burden(stack: &Stack, hosts: &[TcpListener], each: i32, timeout_ms: Option<i32>) {
    let urls: Vec<String> = hosts.iter().map(url_of).collect();
    let enqueue = "SELECT count(outhook.enqueue(url, '{}', timeout_ms => $3))
        FROM generate_series(1, $2), unnest($1::text[]) AS url";
    let enqueue = sqlx::query(enqueue).bind(urls).bind(each).bind(timeout_ms);
    enqueue.execute(stack.pool()).await.expect("they are accepted");
    stack.wake().await;
    wait_until("some to be under way", PATIENCE, async || stack.under_way().await > 0).await;
    // As many as a worker wants, however it shares its slots.
    let all = "SELECT count(*) FROM outbox WHERE published_at IS NULL AND waits_for IS NULL AND due_at <= now()";
    look_for(BOUND, async || (stack.count(all).await == 0).then_some(())).await;
}

/// How long these took, the quickest first, given that they have had the time that they may take.
async fn taken_in_time(stack: &Stack, ids: &[Uuid], bound: Duration) -> Vec<Duration> {
    look_for(bound, async || (stack.deliveries_of(ids) == ids.len()).then_some(())).await;
    taken(stack, ids).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_hosts_that_hang_leave_room_for_those_that_do_not() {
    const HOSTS: usize = 600;
    const WEBHOOKS: u32 = 100;
    let stack = stack().start().await;
    let hosts = listen_on_hosts(HOSTS).await;
    burden(&stack, &hosts, 1, None).await;
    let ids = steadily(&stack, WEBHOOKS, Duration::from_millis(200)).await;
    let all = taken_in_time(&stack, &ids, BOUND).await;
    let first = taken(&stack, &ids[..1]).await[0];
    let nearly_all = all[all.len() * 98 / 100 - 1];
    report(&format!("{HOSTS} hosts hang: the first of others took {first:.1?}, 98 of 100 at most {nearly_all:.1?}"));
    assert!(first < FIRST_CONTACT, "the first webhook took {first:?}");
    assert!(nearly_all < BOUND, "{all:.1?}");
    // What is under way ends with the connections.
    drop(hosts);
    stack.cancel_the_rest().await;
    stack.finish_unheard().await;
}

/// The time-out is the caller's choice, and none of them has many requests under way.
async fn a_few_that_hang_for_long(hosts: usize) {
    let stack = stack().start().await;
    let hosts = listen_on_hosts(hosts).await;
    burden(&stack, &hosts, 70, Some(40_000)).await;
    let ids = steadily(&stack, 15, Duration::from_secs(1)).await;
    let all = taken_in_time(&stack, &ids, BOUND).await;
    report(&format!("{} hosts hang for 40 s: the slowest of others took {:.1?}", hosts.len(), all[all.len() - 1]));
    assert!(all.iter().all(|it| *it < BOUND), "{all:.1?}");
    drop(hosts);
    stack.cancel_the_rest().await;
    stack.finish_unheard().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_hosts_that_hang_for_long_leave_room_for_those_that_do_not() {
    a_few_that_hang_for_long(8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_hosts_that_hang_for_long_leave_room_for_those_that_do_not() {
    a_few_that_hang_for_long(30).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_for_one_destination_does_not_go_before_others() {
    const BURST: i32 = 20_000;
    let stack = stack().start().await;
    let busy = Receiver::start(([127, 0, 0, 1], 0).into(), None).await.expect("loopback has free ports");
    stack.enqueue(&busy.url("/hook"), "{}", BURST).await;
    let ids = steadily(&stack, 4, Duration::from_millis(500)).await;
    let all = taken_in_time(&stack, &ids, BOUND).await;
    let of_the_burst = busy.counts().received;
    report(&format!("a burst of {BURST}: others took {all:.1?}, while {of_the_burst} of it were delivered"));
    // They wait for what is in the queue already, which a busy machine works off in a second or two.
    assert!(all.iter().all(|it| *it < BOUND), "{all:.1?}");
    stack.cancel_the_rest().await;
    stack.finish_unheard().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_payloads_are_not_all_in_memory_at_once() {
    const LARGE: i32 = 60;
    const PAYLOAD: usize = 4 * 1024 * 1024;
    /// Eight payloads, a copy of each that is on its way, and all else that a worker needs.
    const MEMORY: u64 = 250 * 1024 * 1024;
    let stack = stack().worker_env("WORKER_PAYLOAD_BYTES", "33554432").start().await;
    let limits = Limits { requests: 1, ..Limits::default() };
    let slow = Receiver::start_with(([127, 0, 0, 1], 0).into(), Options { limits, ..Options::default() });
    let slow = slow.await.expect("loopback has free ports");
    stack.enqueue(&slow.url("/hook?delay_ms=500"), &"x".repeat(PAYLOAD), LARGE).await;
    wait_until("some to be under way", PATIENCE, async || stack.under_way().await > 0).await;
    let ids = steadily(&stack, 4, Duration::from_millis(500)).await;
    let small = taken_in_time(&stack, &ids, BOUND).await;
    stack.wait_until_drained(PATIENCE).await;
    let memory = stack.workers[0].peak_memory();
    report(&format!(
        "{LARGE} webhooks of {PAYLOAD} bytes: a worker had {} MiB at the most, small ones took {small:.1?}",
        memory / 1024 / 1024
    ));
    assert!(memory < MEMORY, "the worker had {memory} bytes");
    assert!(small.iter().all(|it| *it < BOUND), "small webhooks took {small:.1?}");
    assert_eq!(stack.count("SELECT count(*) FROM webhook_jobs WHERE status <> 'success'").await, 0);
    stack.finish_unheard().await;
}
