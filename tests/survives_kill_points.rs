//! Each process may end at any moment. Here it does, at each point in its source that is marked with
//! `kill_point!`: between every two steps that matter, and in the middle of each transaction.

use std::collections::BTreeSet;
use std::path::Path;

use futures_util::{StreamExt, stream};
use harness::load::Burst;
use harness::{PATIENCE, Program, Stack, Webhook, report, wait_until};

const WEBHOOKS: usize = 60;
const CONNECTIONS: usize = 8;

/// Stacks at once: more only wait for the processor.
const AT_ONCE: usize = 3;

/// What must be going on for a point to be passed.
#[derive(Clone, Copy)]
enum Scene {
    /// Webhooks come in; each fails once and is tried again.
    Traffic,
    /// Webhooks come in and are taken at once, so that one more POST is one too many.
    TakenAtOnce,
    /// Webhooks of one ordering key come in.
    Ordered,
    /// Webhooks come in for a destination that is slow, so that many of them are held.
    Sick,
    /// A worker was lost with deliveries under way, and the next one finds its messages.
    LostWorker,
    /// The broker was wiped with messages in the queue.
    WipedBroker,
}

/// Every point, its scene, and at which passages the process ends. The first passage of a transaction may
/// come before its statements are prepared; later ones are in the middle of it.
const POINTS: [(&str, Scene, &[u32]); 26] = [
    ("api.before_commit", Scene::Traffic, &[1, 4]),
    ("api.in_commit", Scene::Traffic, &[1, 2, 4]),
    ("api.after_commit", Scene::Traffic, &[1, 4]),
    ("relay.after_declare", Scene::WipedBroker, &[1]),
    ("relay.after_rewind", Scene::WipedBroker, &[1]),
    ("relay.after_turns", Scene::Ordered, &[1, 4]),
    ("relay.after_claim", Scene::Traffic, &[1, 3]),
    ("relay.between_publishes", Scene::Traffic, &[1, 20]),
    ("relay.after_last_publish", Scene::Traffic, &[1, 3]),
    ("relay.before_mark", Scene::Traffic, &[1, 3]),
    ("relay.before_commit", Scene::Traffic, &[1, 3]),
    ("relay.in_commit", Scene::Traffic, &[1, 3]),
    ("relay.after_commit", Scene::Traffic, &[1, 3]),
    ("worker.before_claim", Scene::Traffic, &[1, 3]),
    ("worker.in_claim", Scene::Traffic, &[1, 2, 4]),
    ("worker.after_claim", Scene::Traffic, &[1, 3]),
    ("worker.before_post", Scene::Traffic, &[1, 20]),
    ("worker.after_post", Scene::TakenAtOnce, &[1, 20]),
    ("worker.in_settle", Scene::TakenAtOnce, &[1, 2, 4]),
    ("worker.after_hold", Scene::Sick, &[1]),
    ("worker.before_ack", Scene::Traffic, &[1, 20]),
    ("worker.after_ack", Scene::Traffic, &[1, 20]),
    ("worker.before_check_again", Scene::LostWorker, &[1]),
    ("worker.after_check_again", Scene::LostWorker, &[1]),
    ("worker.before_take_over", Scene::LostWorker, &[1, 3]),
    ("worker.after_take_over", Scene::LostWorker, &[1]),
];

/// What one kill left behind.
struct Seen {
    accepted: usize,
    posts: usize,
    taken_again: usize,
    duplicates_on_the_wire: usize,
    unknown_attempts: i64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_may_end_at_each_point() {
    let kills = POINTS
        .into_iter()
        .flat_map(|(point, scene, passages)| passages.iter().map(move |&passage| kill_at(point, scene, passage)));
    let seen: Vec<Seen> = stream::iter(kills).buffer_unordered(AT_ONCE).collect().await;
    let sum = |count: fn(&Seen) -> usize| seen.iter().map(count).sum::<usize>();
    report(&format!(
        "kill points: {} points, {} kills; {} accepted, {} POSTs, {} of them of what the receiver had, \
         {} duplicate messages on the wire, {} unknown attempts",
        POINTS.len(),
        seen.len(),
        sum(|it| it.accepted),
        sum(|it| it.posts),
        sum(|it| it.taken_again),
        sum(|it| it.duplicates_on_the_wire),
        seen.iter().map(|it| it.unknown_attempts).sum::<i64>(),
    ));
    // The window that nobody can close; each of these has its unknown attempt, as every stack has checked.
    assert!(sum(|it| it.taken_again) > 0, "no kill came between a POST and its record");
}

/// Ends a process at the point, starts another, and insists that everything is delivered.
async fn kill_at(point: &'static str, scene: Scene, passage: u32) -> Seen {
    let (program, mut stack) = set_up(point, scene).await;
    let wire = stack.listen().await;
    let url = match scene {
        Scene::LostWorker => stack.receiver_url("?fail_times=1&hang=1"),
        // So slow that what waits has waited for too long.
        Scene::Sick => stack.receiver_url("?delay_ms=700"),
        Scene::TakenAtOnce | Scene::Ordered => stack.receiver_url(""),
        Scene::Traffic | Scene::WipedBroker => stack.receiver_url("?fail_times=1"),
    };
    let burst = match scene {
        Scene::Traffic | Scene::TakenAtOnce | Scene::Ordered | Scene::Sick => None,
        Scene::LostWorker => Some(lose_a_worker(&mut stack, &url).await),
        Scene::WipedBroker => Some(wipe_the_broker(&mut stack, &url).await),
    };
    let mut doomed = stack.start_doomed(program, point, passage).await;
    let burst = if let Some(burst) = burst {
        burst
    } else {
        // Ready before the traffic, or all of it would come as one batch.
        doomed.wait_for_word("ready").await;
        let webhook = Webhook::to(&url);
        let webhook = if matches!(scene, Scene::Ordered) { webhook.ordering_key("one") } else { webhook };
        Burst::start_like(&stack.client, &webhook, WEBHOOKS, CONNECTIONS)
    };
    doomed.wait_for_kill_point(point, PATIENCE).await;
    start(&mut stack, program).await;
    if matches!(scene, Scene::WipedBroker) {
        stack.start_worker().await;
    }
    let outcome = burst.outcome().await;
    assert_eq!(outcome.accepted + outcome.known, WEBHOOKS, "{point}");
    stack.wait_until_drained(2 * PATIENCE).await;
    let seen = Seen {
        accepted: WEBHOOKS,
        posts: stack.receiver.received().len(),
        taken_again: taken_again(&stack),
        duplicates_on_the_wire: wire.duplicates(),
        unknown_attempts: stack.unknown_attempts().await,
    };
    stack.finish().await;
    seen
}

/// Deliveries that the receiver took although it had taken one of the same webhook before.
fn taken_again(stack: &Stack) -> usize {
    let received = stack.receiver.received();
    let taken: Vec<_> = received.iter().filter(|it| it.status_answered() == Some(200)).collect();
    let webhooks: BTreeSet<_> = taken.iter().map(|it| it.webhook_id.clone()).collect();
    taken.len() - webhooks.len()
}

/// A stack without the process that is to end. It had its relay, which made the queue.
async fn set_up(point: &str, scene: Scene) -> (Program, Stack) {
    let builder = Stack::builder()
        .named(&point.replace('.', "_"))
        .env("HTTP_CLIENT_TIMEOUT_SEC", "2")
        .env("MAX_RETRIES", "20")
        // Small batches, so that there are enough of them for the last passage of each point.
        .env("ACCEPT_BATCH_SIZE", "4")
        .env("RELAY_BATCH_SIZE", "8")
        .env("WORKER_CONCURRENCY", "8");
    match (point.split('.').next(), scene) {
        (Some("api"), _) => {
            let mut stack = builder.start().await;
            stack.apis.remove(0).kill().await;
            (Program::Api, stack)
        }
        (Some("relay"), Scene::Traffic | Scene::Ordered) => {
            let mut stack = builder.start().await;
            stack.relays.remove(0).kill().await;
            (Program::Relay, stack)
        }
        (Some("relay"), _) => (Program::Relay, builder.workers(0).start().await),
        _ => (Program::Worker, builder.workers(0).start().await),
    }
}

/// A worker takes what it can and dies with it.
async fn lose_a_worker(stack: &mut Stack, url: &str) -> Burst {
    stack.start_worker().await;
    let mut burst = Burst::start(&stack.client, url, WEBHOOKS, CONNECTIONS);
    burst.wait_for(WEBHOOKS).await;
    // One destination gets half of the slots.
    stack.wait_for_deliveries(4).await;
    stack.workers.remove(0).kill().await;
    burst
}

/// Everything is published and nothing consumed, when the queue is gone.
async fn wipe_the_broker(stack: &mut Stack, url: &str) -> Burst {
    let burst = Burst::start(&stack.client, url, WEBHOOKS, CONNECTIONS);
    wait_until("everything to be published", PATIENCE, async || {
        let published = stack.published().await;
        usize::try_from(published) == Ok(WEBHOOKS)
    })
    .await;
    stack.relays.remove(0).kill().await;
    stack.broker.delete_queue().await;
    burst
}

async fn start(stack: &mut Stack, program: Program) {
    match program {
        Program::Api => stack.start_api().await,
        Program::Relay => stack.start_relay().await,
        _ => stack.start_worker().await,
    }
}

/// A point that is added to the source and not to the table would never be passed here.
#[test]
fn every_point_of_the_source_is_in_the_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the workspace");
    let mut found = BTreeSet::new();
    for directory in ["api/src", "relay/src", "worker/src", "outbox/src"] {
        find_points(&root.join(directory), &mut found);
    }
    let table: BTreeSet<String> = POINTS.iter().map(|(point, ..)| (*point).to_owned()).collect();
    assert_eq!(found.into_iter().filter(|it| !it.contains(' ')).collect::<BTreeSet<_>>(), table);
}

fn find_points(directory: &Path, found: &mut BTreeSet<String>) {
    for file in std::fs::read_dir(directory).expect("the crate has sources") {
        let path = file.expect("a directory can be read").path();
        if path.is_dir() {
            find_points(&path, found);
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let after = text.split("kill_point!(\"").chain(text.split("kill_point_in!(\"")).skip(1);
        found.extend(after.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()).filter(|it| it.contains('.'))));
    }
}
