//! A worker may be killed at any moment: its attempts are recorded as unknown when their leases end, and
//! another worker delivers.

use std::time::Duration;

use harness::load::Burst;
use harness::{PATIENCE, Program, Stack, report, wait_for, wait_until};
use outbox::broker::task::Task;

/// What a worker leases: its HTTP time-out of 2 s, which the tests set, and its margin of 5 s.
const LEASE: Duration = Duration::from_secs(7);

/// The relay's wake-up, two passages through the broker, and a machine that is busy with other tests.
const SLACK: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_of_a_killed_worker_is_unknown_and_its_job_delivered_by_another() {
    let mut stack = Stack::builder().env("HTTP_CLIENT_TIMEOUT_SEC", "2").start().await;
    let id = stack.post("{}", "?hang=1&fail_times=1").await.job_id;
    stack.wait_for_deliveries(1).await;
    stack.workers[0].kill().await;
    stack.workers.clear();
    stack.start_worker().await;
    stack.wait_for_deliveries(2).await;

    let deliveries = stack.deliveries(id);
    assert_eq!((deliveries[0].attempt, deliveries[1].attempt), (Some(1), Some(2)));
    assert_eq!(deliveries[0].webhook_id, deliveries[1].webhook_id);
    let gap = deliveries[1].at - deliveries[0].at;
    // The claim came a moment before the request.
    assert!(gap + Duration::from_secs(1) > LEASE, "taken over after {gap}, under a lease of {LEASE:?}");
    assert!(gap < LEASE + Duration::from_secs(1) + SLACK, "taken over only after {gap}");

    stack.wait_until_drained(PATIENCE).await;
    let job = stack.client.job(id).await;
    let (lost, second) = (&job["attempts"][0], &job["attempts"][1]);
    assert_eq!((&lost["outcome"], &second["outcome"]), (&"unknown".into(), &"success".into()), "{job}");
    assert_ne!(lost["worker"], second["worker"]);
    assert_eq!((&job["status"], &job["retry_count"]), (&"success".into(), &1.into()));
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_worker_dies_each_time_ends() {
    let mut stack = Stack::builder().env("HTTP_CLIENT_TIMEOUT_SEC", "1").env("MAX_RETRIES", "2").start().await;
    let id = stack.post("{}", "?hang=1").await.job_id;
    for attempt in 1..=2 {
        stack.wait_for_deliveries(attempt).await;
        stack.workers[0].kill().await;
        stack.workers.clear();
        stack.start_worker().await;
    }
    stack.wait_until_drained(PATIENCE).await;

    let job = stack.client.job(id).await;
    assert_eq!((&job["status"], &job["retry_count"]), (&"failed".into(), &2.into()), "{job}");
    assert!(job["attempts"].as_array().expect("attempts are a list").iter().all(|it| it["outcome"] == "unknown"));
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_workers_are_killed_under_load() {
    const WEBHOOKS: usize = 1_500;
    const KILLS: usize = 5;
    let mut stack = Stack::builder().workers(2).env("HTTP_CLIENT_TIMEOUT_SEC", "2").start().await;
    let burst = Burst::start(&stack.client, &stack.receiver_url("?delay_ms=20"), WEBHOOKS, 64);
    for kill in 1..=KILLS {
        stack.wait_for_deliveries(kill * WEBHOOKS / (KILLS + 1)).await;
        stack.workers.remove(0).kill().await;
        stack.start_worker().await;
    }
    let outcome = burst.outcome().await;
    stack.wait_until_drained(2 * PATIENCE).await;

    let unknown = stack.unknown_attempts().await;
    let posts = stack.receiver.received().len();
    report(&format!("worker: {KILLS} kills, {} accepted, {posts} POSTs, {unknown} unknown attempts", outcome.accepted));
    assert!(unknown > 0, "no kill hit a delivery under way");
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_was_paused_past_its_lease_writes_nothing() {
    let mut stack = Stack::builder().env("HTTP_CLIENT_TIMEOUT_SEC", "1").start().await;
    let id = stack.post("{}", "?delay_ms=500").await.job_id;
    stack.wait_for_deliveries(1).await;
    stack.workers[0].signal(rustix::process::Signal::STOP);
    stack.start_worker().await;
    // RabbitMQ misses the heartbeats and hands the message on; the lease has ended by then or soon.
    let second = wait_for("the second delivery", PATIENCE, async || stack.deliveries(id).get(1).cloned()).await;
    assert_eq!(second.attempt, Some(2));
    stack.wait_until_drained(PATIENCE).await;
    stack.workers[0].signal(rustix::process::Signal::CONT);
    // It now has an answer to its attempt, and a claim that somebody else has settled.
    stack.workers[0].wait_for_word("lease_lost").await;

    let job = stack.client.job(id).await;
    assert_eq!((&job["attempts"][0]["outcome"], &job["status"]), (&"unknown".into(), &"success".into()), "{job}");
    stack.finish().await;
}

/// A worker that stands still between its claim and the request, under a lease that ends before the answer would come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_stood_still_renews_its_lease_before_it_posts() {
    let mut stack = Stack::builder().workers(0).start().await;
    let worker = stack.start_that_stops(Program::Worker, "worker.before_post", 1).await;
    let id = stack.post("{}", "").await.job_id;
    wait_until("the worker to stand still", PATIENCE, async || worker.is_stopped()).await;
    let late = "SELECT count(*) FROM webhook_jobs WHERE clock_timestamp() - updated_at > interval '5 seconds'";
    wait_until("its claim to be older than a lease's margin", PATIENCE, async || stack.count(late).await == 1).await;
    worker.signal(rustix::process::Signal::CONT);
    stack.wait_until_drained(PATIENCE).await;

    worker.says("renewing the lease").await;
    let job = stack.client.job(id).await;
    assert_eq!((&job["status"], &job["retry_count"]), (&"success".into(), &0.into()), "{job}");
    assert_eq!(stack.deliveries(id).len(), 1);
    stack.workers.push(worker);
    stack.finish().await;
}

/// The same, until somebody else has delivered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_stood_still_past_its_lease_posts_nothing() {
    let mut stack = Stack::builder().workers(0).env("HTTP_CLIENT_TIMEOUT_SEC", "1").start().await;
    let worker = stack.start_that_stops(Program::Worker, "worker.before_post", 1).await;
    let id = stack.post("{}", "").await.job_id;
    wait_until("the worker to stand still", PATIENCE, async || worker.is_stopped()).await;
    stack.start_worker().await;
    let second = wait_for("the delivery", PATIENCE, async || stack.deliveries(id).first().cloned()).await;
    assert_eq!(second.attempt, Some(2));
    worker.signal(rustix::process::Signal::CONT);
    stack.workers.push(worker);
    stack.workers[1].wait_for_word("renewing").await;
    stack.wait_until_drained(PATIENCE).await;

    let job = stack.client.job(id).await;
    assert_eq!((&job["attempts"][0]["outcome"], &job["status"]), (&"unknown".into(), &"success".into()), "{job}");
    // A worker that stops ends what it has begun.
    stack.workers.remove(1).terminate().await;
    assert_eq!(stack.deliveries(id).len(), 1);
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_worker_does_not_settle_the_attempt_of_its_successor() {
    let mut stack = Stack::builder().env("HTTP_CLIENT_TIMEOUT_SEC", "3").start().await;
    let id = stack.post("{}", "?delay_ms=2000").await.job_id;
    stack.wait_for_deliveries(1).await;
    stack.workers[0].signal(rustix::process::Signal::STOP);
    stack.start_worker().await;
    let expired = "SELECT count(*) FROM webhook_jobs WHERE lease_until < now()";
    wait_until("the lease to end", PATIENCE, async || stack.count(expired).await == 1).await;
    // The broker still believes the first worker to be alive; a copy of its message finds that it is not.
    let outbox_id = sqlx::query_scalar("SELECT outbox_id FROM webhook_jobs").fetch_one(stack.pool()).await;
    let message = Task::new(id, 0, outbox_id.expect("the job has its row"), None);
    stack.broker.publish(&message.encode()).await;
    stack.wait_for_deliveries(2).await;

    // Both believe now that the job is theirs; the first one is done sooner.
    stack.workers[0].signal(rustix::process::Signal::CONT);
    stack.workers[0].wait_for_word("outcome").await;
    stack.wait_until_drained(PATIENCE).await;
    stack.assert_invariants().await;
    stack.workers[0].says("lease_lost").await;
    stack.finish().await;
}
