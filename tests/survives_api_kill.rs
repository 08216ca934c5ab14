//! Accepted means stored: an api that is killed in the middle of a burst has lied to nobody.

use harness::load::Burst;
use harness::{Stack, report};

const WEBHOOKS: usize = 1_500;
const CONNECTIONS: usize = 64;
const KILLS: usize = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_202_has_its_row() {
    let mut stack = Stack::start().await;
    let mut burst = Burst::start(&stack.client, &stack.receiver_url(""), WEBHOOKS, CONNECTIONS);
    for kill in 1..=KILLS {
        // At this moment 64 requests are under way, some of them in a commit.
        burst.wait_for(kill * WEBHOOKS / (KILLS + 1)).await;
        stack.apis[0].kill().await;
        stack.apis.clear();
        stack.start_api().await;
    }
    let outcome = burst.outcome().await;

    report(&format!("api: {KILLS} kills, {WEBHOOKS} webhooks: {outcome:?}"));
    assert_eq!(outcome.accepted + outcome.known, WEBHOOKS);
    assert!(outcome.repeated > 0, "no request was under way at any kill");
    // Requests that were repeated under their key, after a kill had taken their answer, made no second job.
    assert_eq!(stack.jobs().await, i64::try_from(WEBHOOKS).expect("it is small"));
    stack.finish().await;
}
