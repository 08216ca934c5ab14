//! A migration may run while webhooks come in, and even while somebody reads a table that it wants for
//! itself: it gives up and tries again, sooner than a caller would notice.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use harness::{Client, PATIENCE, Stack, report, wait_until};
use outhook_migrate::{Migration, Runner};
use tokio::task::JoinSet;

const CALLERS: usize = 8;

/// Tries of the migration while the reader is in its way.
const TRIES: usize = 3;

/// Posts one webhook after the other, each of which must be answered with 202, until it is told to stop.
async fn post_until(client: Client, url: String, stop: Arc<AtomicBool>) -> usize {
    let mut posted = 0;
    while !stop.load(Ordering::Relaxed) {
        client.post("{}", &url).await;
        posted += 1;
    }
    posted
}

/// The migrations of this build and one more, which wants the jobs' table for itself.
fn with_one_more() -> Runner {
    let mut migrations = outhook_migrate::runner().get_migrations().clone();
    let next = outhook_migrate::newest() + 1;
    let sql = "ALTER TABLE webhook_jobs ADD COLUMN more text";
    migrations.push(Migration::unapplied(&format!("V{next}__more"), sql).expect("it is named like one"));
    Runner::new(&migrations)
}

async fn migrate(url: String) -> anyhow::Result<()> {
    let (mut client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    outhook_migrate::migrate_with(&mut client, &with_one_more()).await
}

/// Returns as soon as the migration has waited so many times for its table.
async fn wait_for_tries(stack: &Stack, tries: usize) {
    let mut seen = BTreeSet::new();
    wait_until("the migration to try again", PATIENCE, async || {
        let waiting = "SELECT query_start::text FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'ALTER TABLE webhook_jobs%'";
        let began: Option<String> = sqlx::query_scalar(waiting).fetch_optional(stack.pool()).await.expect("sessions");
        seen.extend(began);
        seen.len() >= tries
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_that_wants_a_table_for_itself_disturbs_no_caller() {
    let stack = Stack::builder("a_migration_under_load").start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        callers.spawn(post_until(stack.client.clone(), stack.receiver_url(""), Arc::clone(&stop)));
    }
    let mut reader = stack.pool().begin().await.expect("a transaction");
    sqlx::query("SELECT FROM webhook_jobs LIMIT 1").execute(&mut *reader).await.expect("it can be read");

    let migration = tokio::spawn(migrate(stack.database_url().to_owned()));
    wait_for_tries(&stack, TRIES).await;
    assert!(!migration.is_finished(), "the reader was in nobody's way");
    reader.rollback().await.expect("the reader ends");
    migration.await.expect("no panic").expect("it is applied once the reader is gone");
    assert_eq!(stack.count("SELECT count(more) FROM webhook_jobs").await, 0, "the column is there");
    let before = stack.client.accepted().len();
    wait_until("callers to go on", PATIENCE, async || stack.client.accepted().len() >= before + 2 * CALLERS).await;
    stop.store(true, Ordering::Relaxed);

    let posted: usize = callers.join_all().await.into_iter().sum();
    stack.wait_until_drained(PATIENCE).await;
    report(&format!("migration under load: {TRIES} tries in vain, {posted} webhooks accepted, none refused"));
    stack.finish().await;
}
