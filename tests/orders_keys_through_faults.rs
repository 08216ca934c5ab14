//! Whoever is killed, deleted, left open or cut off meanwhile: two of a key are never at their receiver at once, and
//! when that is over no key stands still.
//!
//! `KEYS_SEED` repeats the choices of a chaos whose seed was printed.

use std::collections::HashMap;
use std::time::Duration;

use harness::tcp_proxy::Direction;
use harness::{Mode, PATIENCE, Program, Stack, TcpProxy, look_for, report, wait_until};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use sqlx::{PgConnection, Postgres, Transaction};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::delivers_in_order::assert_order;

/// How often a relay may be met while it asks something else, and not while it publishes.
const TRIES: usize = 5;

/// How long the receiver takes for one: a new relay starts, and does all it can, in less.
const DELAY: Duration = Duration::from_secs(4);

/// A key whose rows nobody needs to wait for any more is empty by then, an attempt of a killed worker included.
const DRAINED: Duration = Duration::from_secs(20);

async fn enqueue(connection: &mut PgConnection, url: &str, key: &str) -> Uuid {
    let statement = "SELECT outhook.enqueue($1, '{}', ordering_key => $2)";
    sqlx::query_scalar(statement).bind(url).bind(key).fetch_one(connection).await.expect("it is taken")
}

/// One whose transaction began first and commits last, and one that is at the receiver although the relay never
/// heard that the broker has it. Whichever goes first, the other waits for its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_a_key_are_never_at_the_receiver_at_once() {
    let servers = harness::Servers::shared().await;
    let (proxy, through_proxy) = TcpProxy::before(&servers.rabbitmq_url).await;
    let builder = Stack::builder().env("HTTP_CLIENT_TIMEOUT_SEC", "8");
    let mut stack = builder.relay_env("RABBITMQ_URL", &through_proxy).start().await;
    let url = stack.receiver_url(&format!("?delay_ms={}", DELAY.as_millis()));
    for round in 0..TRIES {
        let key = format!("key {round}");
        let mut earlier = stack.pool().begin().await.expect("a transaction begins");
        let first = enqueue(&mut earlier, &url, &key).await;
        proxy.set(Mode::Drop(Direction::ToClient));
        let mut connection = stack.pool().acquire().await.expect("Postgres takes connections");
        let second = enqueue(&mut connection, &url, &key).await;
        sqlx::query("SELECT outhook.wake()").execute(&mut *connection).await.expect("a hint is taken");
        drop(connection);
        let arrived = async || (!stack.deliveries(second).is_empty()).then_some(());
        if look_for(Duration::from_secs(1), arrived).await.is_none() {
            // It was another answer that the relay did not get.
            proxy.set(Mode::Forward);
            earlier.commit().await.expect("it commits");
            stack.wait_until_drained(PATIENCE).await;
            continue;
        }
        stack.relays.remove(0).kill().await;
        assert_eq!(stack.unpublished().await, 1, "the relay heard of the confirm");
        earlier.commit().await.expect("it commits");
        proxy.set(Mode::Forward);
        stack.start_relay().await;
        stack.wait_until_drained(PATIENCE).await;

        let (first, second) = (&stack.deliveries(first)[0], &stack.deliveries(second)[0]);
        let apart = (first.at - second.at).abs();
        assert!(apart >= DELAY, "the second of a key came {apart} after the first, which took {DELAY:?}");
        return stack.finish().await;
    }
    panic!("the relay was never met while it published");
}

/// A cancel that somebody leaves open for a while.
struct Cancel {
    job: Uuid,
    transaction: Transaction<'static, Postgres>,
    until: Instant,
    is_kept: bool,
}

impl Cancel {
    /// Begins one of any webhook that is not under way, unless somebody else is at it.
    async fn begin(stack: &Stack, random: &mut StdRng) -> Option<Self> {
        let mut transaction = stack.pool().begin().await.expect("a transaction begins");
        let timeout = "SET LOCAL lock_timeout = '200 ms'";
        sqlx::query(timeout).execute(&mut *transaction).await.expect("anybody may set it");
        let any = "SELECT id FROM webhook_jobs WHERE status = 'pending' ORDER BY random() LIMIT 1";
        let job = sqlx::query_scalar(any).fetch_optional(&mut *transaction).await.expect("jobs can be read")?;
        let cancel = sqlx::query_scalar("SELECT outhook.cancel($1)").bind(job).fetch_one(&mut *transaction).await;
        let until = Instant::now() + Duration::from_millis(random.random_range(10..1_500));
        let cancelled: Option<bool> = cancel.ok()?;
        (cancelled == Some(true)).then(|| Self { job, transaction, until, is_kept: random.random_bool(0.5) })
    }

    /// Returns the job if it is cancelled now.
    async fn end(self) -> Option<Uuid> {
        if !self.is_kept {
            self.transaction.rollback().await.expect("it rolls back");
            return None;
        }
        self.transaction.commit().await.expect("it commits");
        Some(self.job)
    }
}

/// Ends the cancels whose time has come, and returns those that count.
async fn end_cancels(open: &mut Vec<Cancel>, now: Instant) -> Vec<Uuid> {
    let (ripe, rest) = std::mem::take(open).into_iter().partition(|it| it.until <= now);
    *open = rest;
    let mut cancelled = Vec::new();
    let ripe: Vec<Cancel> = ripe;
    for cancel in ripe {
        cancelled.extend(cancel.end().await);
    }
    cancelled
}

async fn break_something(stack: &mut Stack, random: &mut StdRng) {
    match random.random_range(0..8) {
        0..3 => replace(stack, Program::Relay).await,
        3..6 => replace(stack, Program::Worker).await,
        6 => stack.broker.delete_queue().await,
        _ => {
            let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                WHERE datname = current_database() AND application_name IN ('outhook-relay', 'outhook-worker')";
            stack.count(end).await;
        }
    }
}

async fn replace(stack: &mut Stack, program: Program) {
    stack.processes(program).remove(0).kill().await;
    stack.spawn(program).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_key_stands_still_after_a_chaos() {
    const KEYS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    const CHAOS: Duration = Duration::from_secs(30);
    let seed: u64 = std::env::var("KEYS_SEED").map_or_else(|_| rand::random(), |text| text.parse().expect("a number"));
    report(&format!("a chaos of keys: KEYS_SEED={seed}"));
    let mut random = StdRng::seed_from_u64(seed);
    let builder = Stack::builder().relays(2).workers(2);
    let mut stack = builder.env("MAX_RETRIES", "100").env("HTTP_CLIENT_TIMEOUT_SEC", "1").start().await;
    let mut accepted: HashMap<String, Vec<Uuid>> = HashMap::new();
    let (mut open, mut cancelled) = (Vec::new(), Vec::new());
    let started = Instant::now();
    let mut next_fault = started + Duration::from_secs(1);
    while started.elapsed() < CHAOS {
        let key = KEYS.choose(&mut random).expect("there are some");
        let query = ["", "?delay_ms=5", "?delay_ms=100", "?fail_times=1"].choose(&mut random).expect("there are some");
        let mut connection = stack.pool().acquire().await.expect("Postgres takes connections");
        let id = enqueue(&mut connection, &stack.receiver_url(query), key).await;
        accepted.entry((*key).to_owned()).or_default().push(id);
        if open.len() < 3 && random.random_bool(0.1) {
            open.extend(Cancel::begin(&stack, &mut random).await);
        }
        cancelled.extend(end_cancels(&mut open, Instant::now()).await);
        if Instant::now() > next_fault {
            break_something(&mut stack, &mut random).await;
            next_fault = Instant::now() + Duration::from_millis(random.random_range(200..2_500));
        }
        // Less than the receiver takes, also while some keys wait for the leases of killed workers.
        sleep(Duration::from_millis(40)).await;
    }
    for cancel in open {
        cancelled.extend(cancel.end().await);
    }
    let waiting = "SELECT count(*) FROM outbox WHERE ordering_key IS NOT NULL";
    let left = stack.count(waiting).await;
    let ended = Instant::now();
    wait_until("every key to be empty after a chaos", DRAINED, async || stack.count(waiting).await == 0).await;
    let total: usize = accepted.values().map(Vec::len).sum();
    report(&format!(
        "a chaos of {total} webhooks of {} keys, {} cancelled: the last {left} were done after {:?}",
        KEYS.len(),
        cancelled.len(),
        ended.elapsed()
    ));
    for ids in accepted.values_mut() {
        ids.retain(|id| !cancelled.contains(id));
    }
    assert_order(&stack, &accepted).await;
    stack.finish().await;
}
