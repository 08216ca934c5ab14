//! A migration may run while webhooks come in, and even while somebody reads a table or a view that it wants for
//! itself: it gives up and tries again, sooner than a caller would notice.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use harness::{Client, PATIENCE, Stack, report, wait_until};
use outhook_migrate::{Migration, Runner, Schema};
use sqlx::{PgConnection, Postgres, Transaction};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

const CALLERS: usize = 8;

/// Tries of the migration while the reader is in its way.
const TRIES: usize = 3;

/// Callers who post one webhook after the other, each of which must be answered with 202, and look at it, for which the api
/// reads a view.
struct Callers {
    stop: Arc<AtomicBool>,
    posting: JoinSet<usize>,
}

impl Callers {
    fn start(stack: &Stack) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut posting = JoinSet::new();
        for _ in 0..CALLERS {
            posting.spawn(post_until(stack.client.clone(), stack.receiver_url(""), Arc::clone(&stop)));
        }
        Self { stop, posting }
    }

    /// Lets each have another answer, and returns how many they had in all.
    async fn finish(self, stack: &Stack) -> usize {
        let before = stack.client.accepted().len();
        let more = async || stack.client.accepted().len() >= before + 2 * CALLERS;
        wait_until("callers to go on", PATIENCE, more).await;
        self.stop.store(true, Ordering::Relaxed);
        self.posting.join_all().await.into_iter().sum()
    }
}

async fn post_until(client: Client, url: String, stop: Arc<AtomicBool>) -> usize {
    let mut posted = 0;
    while !stop.load(Ordering::Relaxed) {
        let accepted = client.post("{}", &url).await;
        client.job(accepted.job_id).await;
        posted += 1;
    }
    posted
}

/// What a later build wants, whose migration wants the jobs' table for itself.
fn with_another_column() -> Schema {
    let mut schema = with_another_function();
    let mut migrations = schema.tables.get_migrations().clone();
    let sql = "ALTER TABLE webhook_jobs ADD COLUMN more text";
    migrations.push(Migration::unapplied(&format!("V{}__more", schema.version), sql).expect("it is named like one"));
    schema.tables = Runner::new(&migrations);
    schema
}

/// What a later build wants that has the same tables.
fn with_another_function() -> Schema {
    let mut schema = Schema::of_this_build();
    schema.version += 1;
    schema.api.push_str("CREATE OR REPLACE FUNCTION outhook.more() RETURNS integer LANGUAGE sql RETURN 1;");
    schema
}

const MIGRATION: &str = "a_migration";

async fn migrate(url: String, schema: Schema) -> anyhow::Result<()> {
    let (mut client, connection) =
        tokio_postgres::connect(&format!("{url}?application_name={MIGRATION}"), tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    outhook_migrate::migrate_to(&mut client, &schema).await
}

/// Somebody who reads a table or a view, and does not end the transaction.
async fn read(stack: &Stack, statement: &'static str) -> Transaction<'static, Postgres> {
    let mut reader = stack.pool().begin().await.expect("a transaction");
    let connection: &mut PgConnection = &mut reader;
    sqlx::query(statement).execute(connection).await.expect("it can be read");
    reader
}

/// Returns when the migration was applied after the reader had ended, for whom it has tried in vain so many times.
async fn give_way(
    stack: &Stack,
    reader: Transaction<'static, Postgres>,
    migration: JoinHandle<anyhow::Result<()>>,
    tries: usize,
) {
    let mut seen = BTreeSet::new();
    wait_until("the migration to try again", PATIENCE, async || {
        let waiting = format!(
            "SELECT query_start::text FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock' AND application_name = '{MIGRATION}'"
        );
        let waiting = sqlx::AssertSqlSafe(waiting);
        let began: Option<String> = sqlx::query_scalar(waiting).fetch_optional(stack.pool()).await.expect("sessions");
        seen.extend(began);
        seen.len() >= tries
    })
    .await;
    assert!(!migration.is_finished(), "the reader was in nobody's way");
    reader.rollback().await.expect("the reader ends");
    migration.await.expect("no panic").expect("it is applied once the reader is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_that_wants_a_table_for_itself_disturbs_no_caller() {
    let stack = Stack::start().await;
    let callers = Callers::start(&stack);
    let reader = read(&stack, "SELECT FROM webhook_jobs LIMIT 1").await;
    let migration = tokio::spawn(migrate(stack.database_url().to_owned(), with_another_column()));
    give_way(&stack, reader, migration, TRIES).await;
    assert_eq!(stack.count("SELECT count(more) FROM webhook_jobs").await, 0, "the column is there");
    assert_eq!(stack.count("SELECT version::bigint FROM schema_version WHERE outhook.more() = 1").await, 2);

    let posted = callers.finish(&stack).await;
    stack.wait_until_drained(PATIENCE).await;
    report(&format!("migration under load: {TRIES} tries in vain, {posted} webhooks accepted, none refused"));
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn functions_and_views_are_replaced_under_load_and_keep_the_rights_that_others_have_on_them() {
    let stack = Stack::start().await;
    let grant = "GRANT SELECT ON outhook.outbox_lag TO outhook_enqueuer; GRANT EXECUTE ON FUNCTION outhook.cancel TO outhook_reader";
    sqlx::raw_sql(grant).execute(stack.pool()).await.expect("the owner may do it");
    let callers = Callers::start(&stack);

    // The api reads it too.
    let view = "SELECT FROM outhook.job_details LIMIT 1";
    let reader = read(&stack, view).await;
    let migration = tokio::spawn(migrate(stack.database_url().to_owned(), with_another_function()));
    give_way(&stack, reader, migration, TRIES).await;
    let kept = "SELECT count(*) WHERE outhook.more() = 1
        AND has_table_privilege('outhook_enqueuer', 'outhook.outbox_lag', 'SELECT')
        AND has_table_privilege('outhook_api', 'outhook.job_details', 'SELECT')
        AND has_function_privilege('outhook_reader', 'outhook.cancel(uuid)', 'EXECUTE')
        AND has_function_privilege('outhook_api', 'outhook.cancel(uuid)', 'EXECUTE')";
    assert_eq!(stack.count(kept).await, 1, "rights are lost");

    // What is as it should be is not touched: this reader is in nobody's way.
    let reader = read(&stack, view).await;
    let again = migrate(stack.database_url().to_owned(), with_another_function());
    timeout(PATIENCE, again).await.expect("it waits for nobody").expect("there is nothing to do");
    reader.rollback().await.expect("the reader ends");
    let older = migrate(stack.database_url().to_owned(), Schema::of_this_build()).await;
    let said = older.expect_err("an older build takes nothing back").to_string();
    assert!(said.contains("the database has schema version 2"), "{said}");

    callers.finish(&stack).await;
    stack.wait_until_drained(PATIENCE).await;
    stack.finish().await;
}
