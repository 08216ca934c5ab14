//! Plans are made once and kept. They must be right whatever size a table has by then.

use std::time::Duration;

use clap::Parser;
use harness::Servers;
use harness::database::Database;
use harness::job::{idempotency, new_job};
use outbox::broker::task::Task;
use outbox::destination::hold::hold_published;
use outbox::due::{DueRow, Statements, claim_chosen, claim_due, make_due_again, mark_published, next_due, scan_due};
use outbox::job::accept::{Accepted, NewJob, accept};
use outbox::job::claim::{Lease, claim, recover_claim};
use outbox::job::keys::forget_keys;
use outbox::job::settle::{Settlement, settle_free};
use outbox::job::states::{Outcome, Status};
use outbox::job::unclaimed::{check_again, look_up, postpone};
use outbox::service::database::{DatabaseConfig, JOIN_BY_HASH, Pool, on_connection};
use tokio_postgres::Client;
use uuid::Uuid;

/// Postgres chooses between a plan for all and one for each from the sixth execution on.
const USES: usize = 10;

const BATCH: usize = 100;

/// How often the statements of a turn look at a row, at the most. Whoever reads an index of [`BACKLOG`] whole exceeds
/// it by far.
const FEW: usize = 20;

const BACKLOG: i32 = 5_000;

/// Those that grow.
const TABLES: [&str; 3] = ["outbox", "webhook_jobs", "idempotency_keys"];

const MINUTE: Duration = Duration::from_mins(1);

#[derive(Parser)]
struct Service {
    #[command(flatten)]
    database: DatabaseConfig,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_made_for_empty_tables_read_no_full_ones() {
    let database = Database::create(Servers::shared().await).await;
    know_tables_as_empty(&database).await;
    let service = Service::parse_from(["service", "--database-url", &database.url]);
    let mut relay = service.database.connect_service("relay").await.expect("Postgres is there");
    let statements = Statements::prepare(&relay).await.expect("the schema is this build's");
    // One connection, so that each use is a use of the same plan.
    let worker = service.database.pool_with("worker", 1, MINUTE, &[JOIN_BY_HASH]);
    for _ in 0..USES {
        assert_eq!(publish(&mut relay, &statements).await.len(), 0);
        let unknown: Vec<Task> = (0..BATCH).map(|_| Task::new(Uuid::now_v7(), 0, 1, None)).collect();
        assert_eq!(deliver(&worker, &unknown).await, 0);
    }

    let fill = "SELECT outhook.enqueue('http://127.0.0.1/', '{}') FROM generate_series(1, $1)";
    sqlx::query(fill).bind(BACKLOG).execute(&database.pool).await.expect("they are accepted");
    let before = Reads::so_far(&relay, &worker).await;
    for _ in 0..USES {
        let messages = publish(&mut relay, &statements).await;
        assert_eq!(deliver(&worker, &messages).await, BATCH);
    }
    let after = Reads::so_far(&relay, &worker).await;
    assert_eq!(after.without_index, before.without_index, "a table was read whole");
    let rows = usize::try_from(after.rows - before.rows).expect("they are counted up");
    assert!(rows < FEW * USES * BATCH, "an index was read whole: {rows} rows");
    drop(worker);
    database.drop().await;
}

/// As small as can be, and taken to be so: whatever Postgres learned later would make it plan anew.
async fn know_tables_as_empty(database: &Database) {
    for table in TABLES {
        let prepare =
            [format!("ALTER TABLE {table} SET (autovacuum_enabled = false)"), format!("VACUUM ANALYZE {table}")];
        for statement in prepare {
            sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&database.pool).await.expect("the owner may do it");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_made_for_no_keys_find_each_of_many() {
    let database = Database::create(Servers::shared().await).await;
    know_tables_as_empty(&database).await;
    let service = Service::parse_from(["service", "--database-url", &database.url]);
    let mut relay = service.database.connect_service("relay").await.expect("Postgres is there");
    let api = service.database.pool_with("api", 1, MINUTE, &[]);
    for number in 0..USES {
        // The second one finds the first one, by all there is to look a key up.
        let key = format!("first {number}");
        let answers = accept(&api, &[keyed(&key), keyed(&key)]).await.expect("they are accepted");
        assert!(matches!(answers[..], [Accepted::New(_), Accepted::Known(..)]), "{answers:?}");
        assert_eq!(forget(&mut relay).await, 0);
    }

    for fill in [
        "SELECT outhook.enqueue('http://127.0.0.1/', '{}', idempotency_key => 'key ' || n) FROM generate_series(1, $1) AS n",
        "INSERT INTO idempotency_keys (created_at, job_id, is_signed, body_hash, key)
         SELECT now() - interval '3 days' + n * interval '1 second', gen_random_uuid(), true, '', 'key ' || n
         FROM generate_series(1, $1) AS n",
    ] {
        sqlx::query(fill).bind(BACKLOG).execute(&database.pool).await.expect("they are there");
    }
    let before = Reads::so_far(&relay, &api).await;
    for number in 0..USES {
        let jobs: Vec<NewJob> = (1..=BATCH).map(|place| keyed(&format!("key {}", number * BATCH + place))).collect();
        let answers = accept(&api, &jobs).await.expect("they are looked up");
        assert!(answers.iter().all(|answer| *answer == Accepted::KeyConflict), "{answers:?}");
        assert_eq!(forget(&mut relay).await, BATCH);
    }
    let after = Reads::so_far(&relay, &api).await;
    assert_eq!(after.without_index, before.without_index, "a table was read whole");
    let rows = usize::try_from(after.rows - before.rows).expect("they are counted up");
    assert!(rows < FEW * USES * BATCH, "an index was read whole: {rows} rows");
    drop(api);
    database.drop().await;
}

fn keyed(key: &str) -> NewJob {
    NewJob { idempotency: Some(idempotency(key, None)), ..new_job("http://127.0.0.1") }
}

/// Forgets some keys of a day ago. Returns how many.
async fn forget(relay: &mut Client) -> usize {
    let page = BATCH.try_into().expect("it is small");
    let forgotten = forget_keys(relay, 1, None, page, MINUTE).await.expect("it is answered");
    forgotten.expect("it takes less than that").keys.try_into().expect("it is small")
}

/// What the sessions read of the tables.
struct Reads {
    without_index: i64,
    rows: i64,
}

impl Reads {
    async fn so_far(relay: &Client, worker: &Pool) -> Self {
        let flush = "SELECT pg_stat_force_next_flush()";
        let flushed = on_connection(worker, async |connection| sqlx::query(flush).execute(connection).await);
        flushed.await.expect("Postgres 15 or later");
        relay.batch_execute(flush).await.expect("Postgres 15 or later");
        let reads = "SELECT sum(seq_scan)::bigint, sum(idx_tup_fetch)::bigint FROM pg_stat_user_tables
            WHERE relname = ANY($1)";
        let row = relay.query_one(reads, &[&TABLES.as_slice()]).await.expect("it is counted");
        Self { without_index: row.get(0), rows: row.get(1) }
    }
}

/// What the relay does without a broker. Returns the messages of what was due.
async fn publish(relay: &mut Client, statements: &Statements) -> Vec<Task> {
    let limit = BATCH.try_into().expect("it is small");
    let transaction = relay.transaction().await.expect("it begins");
    let due = claim_due(&transaction, statements, limit, None).await.expect("rows are claimed");
    let ids: Vec<i64> = due.iter().map(DueRow::id).collect();
    mark_published(&transaction, statements, &ids, MINUTE).await.expect("rows are marked");
    transaction.commit().await.expect("it ends");
    // As it does when there is more than one batch.
    let page = scan_due(relay, statements, limit, None).await.expect("rows are read");
    let chosen: Vec<i64> = page.iter().map(|((_, id), _)| *id).collect();
    let transaction = relay.transaction().await.expect("it begins");
    let same = claim_chosen(&transaction, statements, &chosen).await.expect("rows are claimed");
    assert_eq!(same.len(), page.len());
    transaction.rollback().await.expect("it ends");
    next_due(relay, statements, 0).await.expect("it is answered");
    make_due_again(relay, 0, 1_000).await.expect("it is answered");
    due.into_iter().map(|row| row.task).collect()
}

/// What the worker does without a receiver, and what it does when something is in the way. Returns how many
/// jobs it finished.
async fn deliver(pool: &Pool, messages: &[Task]) -> usize {
    let job_ids: Vec<Uuid> = messages.iter().map(|message| message.job_id).collect();
    let lease = Lease { timeout: MINUTE, margin: MINUTE };
    let none: Vec<_> =
        messages.iter().map(|message| (Task::new(Uuid::now_v7(), 7, message.outbox_id, None), MINUTE)).collect();
    let none: Vec<_> = none.iter().map(|(message, wait)| (message, *wait)).collect();
    postpone(pool, &none).await.expect("rows of other jobs are left alone");
    hold_published(pool, messages).await.expect("rows are held");
    claim(pool, messages, "worker", lease).await.expect("jobs are claimed");
    recover_claim(pool, messages, "worker", lease).await.expect("claims are found");
    look_up(pool, &job_ids).await.expect("jobs are found");
    check_again(pool, messages).await.expect("rows are listed");
    let settlements: Vec<Settlement> = job_ids.into_iter().map(delivered).collect();
    let free = settle_free(pool, &settlements).await.expect("attempts are recorded");
    assert!(free.held.is_empty(), "{:?}", free.held);
    free.settled.len()
}

fn delivered(job_id: Uuid) -> Settlement {
    Settlement {
        job_id,
        attempt: 1,
        status: Status::Success,
        retry_in: Duration::ZERO,
        ordered: false,
        taken_over: false,
        worker: "worker".to_owned(),
        started_at: outbox::service::clock::now(),
        duration_ms: Some(1),
        status_code: Some(200),
        outcome: Outcome::Success,
        error: String::new(),
        response_excerpt: String::new(),
    }
}
