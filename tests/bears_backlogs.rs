//! Nobody waits for what only lies there: destinations that were sick once, index entries of what is gone, and jobs
//! that wait for their time.

use std::time::Duration;

use harness::latency::{median, one_at_a_time};
use harness::processes::processor_time_of;
use harness::{PATIENCE, Stack, report, wait_until};
use sqlx::PgConnection;
use tokio::time::{Instant, sleep};

/// What a webhook takes at the most, in the middle of some, when nothing is in its way.
const AT_ONCE: Duration = Duration::from_millis(150);

/// So far apart each webhook comes to a relay that has seen nothing for a while.
const APART: Duration = Duration::from_millis(1_100);

/// A relay finds what was published, and makes it due, within this time.
const FOUND_AGAIN: Duration = Duration::from_secs(4);

/// A breaker that is open for an hour.
const OPEN: &str = "INSERT INTO destinations (destination, state, openings, hold_until, error)
    VALUES ('http://sick.example', 'open', 1, now() + interval '1 hour', 'cannot connect')";

async fn execute(connection: &mut PgConnection, statement: &'static str) {
    sqlx::query(statement).execute(connection).await.unwrap_or_else(|error| panic!("{error}, in: {statement}"));
}

/// Runs a statement that makes so many rows.
async fn fill_with(connection: &mut PgConnection, statement: &'static str, rows: i32) {
    let started = Instant::now();
    let filled = sqlx::query(statement).bind(rows).execute(connection).await;
    filled.unwrap_or_else(|error| panic!("{error}, in: {statement}"));
    report(&format!("made {rows} rows in {:.1?}", started.elapsed()));
}

/// The processor time that the relay has used so far, with its sessions in Postgres.
async fn processor_time_of_relay(stack: &Stack) -> Duration {
    let sessions = "SELECT pid FROM pg_stat_activity
        WHERE datname = current_database() AND application_name LIKE 'outhook-relay%'";
    let pids: Vec<i32> = sqlx::query_scalar(sessions).fetch_all(stack.pool()).await.expect("sessions can be seen");
    pids.into_iter().map(processor_time_of).sum::<Duration>() + stack.relays[0].processor_time()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn destinations_that_were_sick_once_cost_nothing() {
    const WATCHED: Duration = Duration::from_secs(5);
    const CLOSED: i32 = 1_200_000;
    let stack = Stack::start().await;
    let mut connection = stack.pool().acquire().await.expect("Postgres is there").detach();
    let fill = "INSERT INTO destinations (destination)
        SELECT 'https://' || n || '.example' FROM generate_series(1, $1) AS n";
    fill_with(&mut connection, fill, CLOSED).await;
    let taken = one_at_a_time(&stack, 10, Duration::ZERO).await;
    let before = processor_time_of_relay(&stack).await;
    sleep(WATCHED).await;
    let used = processor_time_of_relay(&stack).await.saturating_sub(before);
    report(&format!("{CLOSED} closed destinations: median {:.1?}, idle {used:.1?} of {WATCHED:.1?}", median(&taken)));
    assert!(median(&taken) < AT_ONCE, "{taken:?}");
    assert!(used < WATCHED / 20, "a relay that has nothing to do used {used:?} of {WATCHED:?}");
    stack.finish().await;
}

/// Whoever leaves a transaction open keeps Postgres from tidying up, and must keep it from nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn index_entries_of_what_is_gone_delay_nobody() {
    const GONE: i32 = 2_000_000;
    let stack = Stack::start().await;
    let mut reader = stack.pool().acquire().await.expect("Postgres is there").detach();
    execute(&mut reader, "BEGIN ISOLATION LEVEL REPEATABLE READ").await;
    execute(&mut reader, "SELECT count(*) FROM outbox").await;

    // Nobody but the reader could have seen them.
    let mut fill = stack.pool().begin().await.expect("Postgres is there");
    let insert = "INSERT INTO outbox (id, job_id, message_id, attempt, due_at, destination)
        SELECT -n, '00000000-0000-0000-0000-000000000000', '00000000-0000-0000-0000-000000000000', 0,
               now() - interval '1 hour', 'http://gone.example'
        FROM generate_series(1, $1) AS n";
    fill_with(&mut fill, insert, GONE).await;
    execute(&mut fill, "DELETE FROM outbox WHERE id < 0").await;
    fill.commit().await.expect("it ends");

    let well = one_at_a_time(&stack, 6, APART).await;
    execute(&mut stack.pool().acquire().await.expect("Postgres is there"), OPEN).await;
    let with_a_breaker = one_at_a_time(&stack, 6, APART).await;
    report(&format!(
        "{GONE} dead index entries: median {:.1?}, with an open breaker {:.1?}",
        median(&well),
        median(&with_a_breaker)
    ));
    assert!(median(&well) < AT_ONCE, "{well:?}");
    assert!(median(&with_a_breaker) < AT_ONCE, "with an open breaker: {with_a_breaker:?}");
    execute(&mut reader, "COMMIT").await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_published_is_found_among_all_that_waits() {
    const WAITING: i32 = 1_000_000;
    const PUBLISHED: i32 = 30_000;
    let stack = Stack::start().await;
    let mut connection = stack.pool().acquire().await.expect("Postgres is there").detach();
    execute(&mut connection, OPEN).await;
    let held = "INSERT INTO outbox (id, job_id, message_id, attempt, due_at, destination, waits_for)
        SELECT -n, '00000000-0000-0000-0000-000000000000', '00000000-0000-0000-0000-000000000000', 0,
               now() + interval '15 minutes', 'http://sick.example', 'destination'
        FROM generate_series(1, $1) AS n";
    fill_with(&mut connection, held, WAITING).await;
    let scheduled = "INSERT INTO outbox (id, job_id, message_id, attempt, due_at, destination)
        SELECT -n, '00000000-0000-0000-0000-000000000000', '00000000-0000-0000-0000-000000000000', 0,
               now() + interval '5 minutes', 'http://later.example'
        FROM generate_series($1 + 1, 2 * $1) AS n";
    fill_with(&mut connection, scheduled, WAITING).await;
    // Their messages were lost, which nobody knows yet.
    let mut accepting = stack.pool().begin().await.expect("Postgres is there");
    sqlx::query("SELECT count(outhook.enqueue($1, '{}')) FROM generate_series(1, $2)")
        .bind(stack.receiver_url(""))
        .bind(PUBLISHED)
        .execute(&mut *accepting)
        .await
        .expect("they are accepted");
    execute(
        &mut accepting,
        "UPDATE outbox SET published_at = '2000-01-01', due_at = now() + interval '15 minutes' WHERE id > 0",
    )
    .await;
    accepting.commit().await.expect("it ends");

    stack.broker.delete_queue().await;
    let lost = Instant::now();
    wait_until("the queue to be there again", PATIENCE, async || stack.broker.has_queue().await).await;
    let found = lost.elapsed();
    let forgotten = "SELECT count(*) FROM outbox WHERE published_at = '2000-01-01' AND due_at > now()";
    assert_eq!(stack.count(forgotten).await, 0, "not all that was published is due again");
    report(&format!("{PUBLISHED} published among {WAITING} held and as many scheduled: due again after {found:.1?}"));
    assert!(found < FOUND_AGAIN, "it took {found:?} to find what was published");
    stack.wait_for_deliveries(1_000).await;
    execute(&mut connection, "DELETE FROM outbox WHERE id < 0").await;
    stack.cancel_the_rest().await;
    stack.finish().await;
}
