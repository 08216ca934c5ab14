//! The clock of a process may be wrong by an hour: leases, retries and signatures go by the database's.

use std::path::PathBuf;
use std::time::Duration;

use harness::{PATIENCE, Process, Stack, report};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const HOUR: time::Duration = time::Duration::HOUR;

/// A lease: the HTTP time-out of 2 s, which the test sets, and the margin of 5 s.
const LEASE: Duration = Duration::from_secs(7);

/// The relay's wake-up, two passages through the broker, and a busy machine.
const SLACK: Duration = Duration::from_secs(8);

/// What makes a program see another time.
fn library() -> PathBuf {
    let directories = std::fs::read_dir("/usr/lib").expect("every Linux has it");
    let libraries = directories.flatten().map(|it| it.path().join("faketime/libfaketimeMT.so.1"));
    libraries.into_iter().find(|it| it.exists()).expect("faketime is missing: scripts/install faketime brings it")
}

/// How far the clock by which a process writes its log is ahead of the test's, as of its first line.
fn skew(process: &Process, started: OffsetDateTime) -> time::Duration {
    let log = process.log();
    let stamp = log.split_whitespace().next().expect("it has written its log");
    OffsetDateTime::parse(stamp, &Rfc3339).expect("a line begins with the time") - started
}

fn set_clock_of_workers(stack: &mut Stack, skew: &str) {
    stack.set_worker_env("LD_PRELOAD", library().to_str().expect("its path is text"));
    stack.set_worker_env("FAKETIME", skew);
    // Clocks that measure durations are never wrong by an hour.
    stack.set_worker_env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
}

/// A worker whose clock is wrong dies in the middle of an attempt; one that is wrong the other way takes
/// over: neither too early nor an hour late.
async fn take_over(first: &str, second: &str) -> (time::Duration, time::Duration) {
    let started = outbox::service::clock::now();
    let mut stack = Stack::builder().workers(0).env("HTTP_CLIENT_TIMEOUT_SEC", "2").start().await;
    set_clock_of_workers(&mut stack, first);
    stack.start_worker().await;
    let first_skew = skew(&stack.workers[0], started);
    let id = stack.post("{}", "?hang=1&fail_times=1").await.job_id;
    stack.wait_for_deliveries(1).await;
    let leased = "SELECT count(*) FROM webhook_jobs WHERE lease_until BETWEEN now() AND now() + interval '7 seconds'";
    assert_eq!(stack.count(leased).await, 1, "the lease goes by another clock");
    stack.workers[0].kill().await;
    stack.workers.clear();

    set_clock_of_workers(&mut stack, second);
    stack.start_worker().await;
    let second_skew = skew(&stack.workers[0], started);
    stack.wait_until_drained(PATIENCE).await;
    let deliveries = stack.deliveries(id);
    let gap = deliveries[1].at - deliveries[0].at;
    report(&format!("clocks {first_skew} and {second_skew} off: taken over after {gap}"));
    // The claim came a moment before the request.
    assert!(gap + Duration::from_secs(1) > LEASE && gap < LEASE + SLACK, "taken over after {gap}");
    // Also checks that the receiver, whose clock is right, took the signatures' time for recent.
    stack.finish().await;
    (first_skew, second_skew)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_an_hour_ahead_is_followed_by_one_an_hour_behind() {
    let (first, second) = take_over("+1h", "-1h").await;
    assert!(first >= HOUR && second < -HOUR / 2, "the clocks were right");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_an_hour_behind_is_followed_by_one_an_hour_ahead() {
    let (first, second) = take_over("-1h", "+1h").await;
    assert!(first < -HOUR / 2 && second >= HOUR, "the clocks were right");
}
