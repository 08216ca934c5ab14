//! The limit that an owner sets is kept whoever was away, costs nothing where it is not reached, and leaves nothing
//! behind when it is lifted.

use std::time::Duration;

use harness::latency::{median, one_at_a_time};
use harness::{PATIENCE, Process, Program, Stack, look_for, report, wait_until};
use rustix::process::Signal;
use time::OffsetDateTime;
use tokio::time::sleep;

/// What a webhook takes at the most, in the middle of some, when nothing is in its way.
const AT_ONCE: Duration = Duration::from_millis(400);

/// Limits the stack's own receiver to so many webhooks a second, or lifts its limit.
async fn limit(stack: &Stack, per_second: Option<i32>) {
    let statement = "SELECT outhook.limit_destination($1, $2)";
    let limit = sqlx::query(statement).bind(stack.receiver_url("")).bind(per_second);
    limit.execute(stack.pool()).await.expect("the limit is set");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_that_is_lifted_frees_what_it_held() {
    let stack = Stack::start().await;
    limit(&stack, Some(5)).await;
    stack.enqueue(&stack.receiver_url(""), "{}", 200).await;
    wait_until("some to be delivered", PATIENCE, async || stack.delivered().await >= 10).await;
    limit(&stack, None).await;
    let left = 200 - stack.delivered().await;
    assert!(left > 150, "too few wait for the limit: {left}");
    wait_until("what was held to be delivered", Duration::from_secs(5), async || stack.delivered().await == 200).await;
    let taken = one_at_a_time(&stack, 8, Duration::ZERO).await;
    assert!(median(&taken) < AT_ONCE, "new webhooks wait: {taken:?}");
    stack.finish().await;
}

/// What was let through for a worker that was away lies in the queue, and counts when it is sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_is_kept_when_a_worker_comes_back() {
    const LIMIT: usize = 10;
    const WEBHOOKS: i32 = 120;
    let mut stack = Stack::builder().workers(0).start().await;
    limit(&stack, Some(10)).await;
    stack.enqueue(&stack.receiver_url(""), "{}", WEBHOOKS).await;
    // As long as the worker is away: what a relay publishes meanwhile is its own affair.
    look_for(Duration::from_secs(10), async || (stack.published().await > i64::from(WEBHOOKS) * 3 / 4).then_some(()))
        .await;
    stack.start_worker().await;
    stack.wait_until_drained(PATIENCE).await;
    assert_kept(&stack, LIMIT, "a worker that was away");
    stack.finish().await;
}

/// No more than so many came within any second.
fn assert_kept(stack: &Stack, limit: usize, case: &str) {
    assert_kept_since(stack, OffsetDateTime::UNIX_EPOCH, limit, case);
}

/// The same of what came after a moment.
fn assert_kept_since(stack: &Stack, since: OffsetDateTime, limit: usize, case: &str) {
    let received = stack.receiver.received();
    let arrivals: Vec<OffsetDateTime> = received.iter().map(|it| it.at).filter(|at| *at >= since).collect();
    let within_a_second = |first: OffsetDateTime| {
        arrivals.iter().filter(|at| **at >= first && **at - first < Duration::from_secs(1)).count()
    };
    let most = arrivals.iter().map(|at| within_a_second(*at)).max().expect("some arrived");
    report(&format!("a limit of {limit} a second and {case}: at most {most} in a second"));
    // One more: not every request takes equally long to arrive.
    assert!(most <= limit + 1, "{most} webhooks arrived within a second");
}

/// What a worker was given before there was a limit is no exception from it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_binds_what_was_published_before_it() {
    const WEBHOOKS: i64 = 40;
    let stack = Stack::start().await;
    stack.workers[0].signal(Signal::STOP);
    stack.enqueue(&stack.receiver_url(""), "{}", 40).await;
    wait_until("all to be published", PATIENCE, async || stack.published().await == WEBHOOKS).await;
    limit(&stack, Some(10)).await;
    stack.workers[0].signal(Signal::CONT);
    stack.wait_until_drained(PATIENCE).await;
    assert_kept(&stack, 10, "what was published before it");
    stack.finish().await;
}

/// A worker that claimed many and stood still before their requests left: what came meanwhile binds them too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_binds_what_was_claimed_before_it() {
    let mut stack = Stack::builder().workers(0).start().await;
    let worker = claim_and_stand_still(&mut stack).await;
    limit(&stack, Some(10)).await;
    sleep(STANDSTILL).await;
    // What it sent before there was a limit is not bound by it.
    let since = outbox::service::clock::now();
    worker.signal(Signal::CONT);
    stack.workers.push(worker);
    stack.wait_until_drained(PATIENCE).await;
    assert_kept_since(&stack, since, 10, "what was claimed before it");
    assert_eq!(stack.count("SELECT count(*) FROM webhook_jobs WHERE attempt <> 1").await, 0, "it cost an attempt");
    stack.finish().await;
}

/// Longer than a request may be late.
const STANDSTILL: Duration = Duration::from_secs(2);

/// A worker that stands still with webhooks that it has claimed and not sent.
async fn claim_and_stand_still(stack: &mut Stack) -> Process {
    stack.enqueue(&stack.receiver_url(""), "{}", 100).await;
    wait_until("all to be published", PATIENCE, async || stack.published().await == 100).await;
    // Its first claim is of the few messages that came first, and must wait; the second is of all that came meanwhile.
    let mut lock = stack.pool().begin().await.expect("a transaction");
    sqlx::query("LOCK TABLE webhook_jobs IN EXCLUSIVE MODE").execute(&mut *lock).await.expect("nobody holds it");
    let worker = stack.start_that_stops(Program::Worker, "worker.before_post", 20).await;
    wait_until("all to be with the worker", PATIENCE, async || stack.broker.ready().await == 0).await;
    lock.rollback().await.expect("it is held");
    wait_until("the worker to stand still", PATIENCE, async || worker.is_stopped()).await;
    let claimed = stack.under_way().await;
    let sent = stack.receiver.received().len();
    report(&format!("a worker stands still with {claimed} webhooks claimed, {sent} of them sent"));
    assert!(claimed > 15, "too few to see a limit broken: {claimed}");
    worker
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_that_is_not_reached_delays_nothing() {
    let stack = Stack::start().await;
    limit(&stack, Some(100)).await;
    let taken = one_at_a_time(&stack, 8, Duration::from_millis(1_300)).await;
    assert!(median(&taken) < AT_ONCE, "{taken:?}");
    stack.finish().await;
}
