//! A relay may be killed at any moment, also between the broker's confirm and its own record of it:
//! everything is delivered, and no attempt runs twice.
//!
//! `RELAY_KILL_WEBHOOKS`, `RELAY_KILL_CONNECTIONS` and `RELAY_KILLS` make it larger or smaller.

use std::collections::HashSet;

use harness::load::Burst;
use harness::{PATIENCE, Stack, report};

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_webhook_is_delivered_and_no_attempt_twice() {
    let webhooks = setting("RELAY_KILL_WEBHOOKS", 5_000);
    let connections = setting("RELAY_KILL_CONNECTIONS", 64);
    let kills = setting("RELAY_KILLS", 10);
    let mut stack = Stack::start().await;
    let wire = stack.listen().await;
    let share = webhooks / (kills + 1);

    let mut burst = Burst::start(&stack.client, &stack.receiver_url(""), webhooks, connections);
    let (mut interrupted, mut unrecorded) = (0, 0);
    for kill in 1..=kills {
        burst.wait_for(kill * share).await;
        // Killed as soon as so many more messages are on the wire: their confirms, or the commit that
        // records them, are under way. The number differs, so that the kills hit different moments.
        wire.wait_for(wire.messages() + kill * 53 % share.clamp(2, 400), PATIENCE).await;
        stack.relays[0].kill().await;
        stack.relays.clear();
        // Messages that nobody has recorded stay so: published again, they are counted on the wire again, and
        // finished by their worker meanwhile, their rows are gone. So this kill has interrupted a batch if there
        // are more of them than after the one before.
        let recorded = stack.publications().await;
        // Below nothing, should the listener lag behind the record.
        let missing = i64::try_from(wire.messages()).expect("a count of messages") - recorded;
        interrupted += usize::from(missing > unrecorded);
        unrecorded = missing;
        stack.start_relay().await;
    }
    let outcome = burst.outcome().await;
    stack.wait_until_drained(3 * PATIENCE).await;

    let received = stack.receiver.received();
    let jobs: HashSet<_> = received.iter().map(|it| it.job_id.clone()).collect();
    let attempts = stack.count("SELECT count(*) FROM webhook_attempts").await;
    report(&format!(
        "relay: {kills} kills, {interrupted} of them mid-publish; {} accepted, {} delivered, {attempts} attempts, {} POSTs; \
         {} messages on the wire, {} of them duplicates",
        outcome.accepted,
        jobs.len(),
        received.len(),
        wire.messages(),
        wire.duplicates(),
    ));
    assert_eq!((outcome.accepted, jobs.len(), received.len()), (webhooks, webhooks, webhooks));
    assert_eq!(usize::try_from(attempts), Ok(webhooks));
    assert!(kills < 5 || interrupted > 0, "no kill hit a relay that was publishing");
    stack.finish().await;
}
