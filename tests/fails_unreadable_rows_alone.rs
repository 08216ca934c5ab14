//! A row with bytes that are no text, as a database without an encoding takes them or a disk makes them, ends by itself and
//! stops nobody. `outhook migrate` refuses a database that would take such bytes.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use harness::servers::Server;
use harness::{PATIENCE, Program, Servers, Stack, processes, wait_until};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

/// Nobody could write them without it.
const LET_BYTES_BE_TEXT: &str = "CREATE CAST (bytea AS text) WITHOUT FUNCTION";

/// Twenty webhooks, of which one is spoilt before anybody sees it. Returns that one's job.
async fn enqueue_and_spoil(stack: &Stack, spoil: &str) -> Uuid {
    let mut transaction = stack.pool().begin().await.expect("a transaction");
    let enqueue = "SELECT outhook.enqueue($1, '{}') FROM generate_series(1, 20)";
    let enqueue = sqlx::query_scalar(enqueue).bind(stack.receiver_url("")).fetch_all(&mut *transaction).await;
    let jobs: Vec<Uuid> = enqueue.expect("they are accepted");
    let spoil = AssertSqlSafe(format!("{spoil} = '{}'", jobs[7]));
    sqlx::raw_sql(spoil).execute(&mut *transaction).await.expect("a superuser may do it");
    transaction.commit().await.expect("it commits");
    stack.wake().await;
    jobs[7]
}

async fn status_and_error(stack: &Stack, job_id: Uuid) -> (String, String) {
    let ask = "SELECT status, error FROM webhook_jobs WHERE id = $1";
    sqlx::query_as(ask).bind(job_id).fetch_one(stack.pool()).await.expect("the job has a row")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_columns_are_no_text_fails_and_the_others_are_delivered() {
    let stack = Stack::start().await;
    sqlx::raw_sql(LET_BYTES_BE_TEXT).execute(stack.pool()).await.expect("a superuser may do it");
    for (spoil, column) in [
        (r"UPDATE webhook_jobs SET payload = '\x636166e9'::bytea::text WHERE id", "payload"),
        (r"UPDATE webhook_jobs SET client_url = client_url || '\xe9'::bytea::text WHERE id", "client_url"),
        (r#"UPDATE webhook_jobs SET headers = '{"x-number": 1e400}' WHERE id"#, "headers"),
    ] {
        let spoilt = enqueue_and_spoil(&stack, spoil).await;
        stack.wait_until_drained(PATIENCE).await;
        let (status, error) = status_and_error(&stack, spoilt).await;
        assert_eq!(status, "failed", "{column}: {error}");
        assert!(error.contains(column), "{column}: {error}");
        let mend = AssertSqlSafe(format!(
            "UPDATE webhook_jobs SET payload = '{{}}', client_url = 'http://a.example/', headers = '{{}}' WHERE id = '{spoilt}'"
        ));
        sqlx::raw_sql(mend).execute(stack.pool()).await.expect("a superuser may do it");
    }
    let delivered = stack.delivered().await;
    assert_eq!(delivered, 3 * 19);
    stack.finish().await;
}

/// Takes away all that lies outside the table's own pages, as a disk may: the one long payload.
const DAMAGE: &str = "CREATE EXTENSION pg_surgery;
    DO $$
    DECLARE
        toast regclass;
        chunks tid[];
    BEGIN
        SELECT reltoastrelid INTO toast FROM pg_class WHERE oid = 'webhook_jobs'::regclass;
        EXECUTE format('SELECT array_agg(ctid) FROM %s', toast) INTO chunks;
        EXECUTE format('SELECT heap_force_kill(%L::regclass, $1)', toast) USING chunks;
    END $$";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_postgres_cannot_read_stops_nobody() {
    let mut stack = Stack::builder().workers(0).start().await;
    let long = "UPDATE webhook_jobs SET payload = (SELECT string_agg(gen_random_uuid()::text, '') FROM generate_series(1, 500))
        WHERE id";
    let damaged = enqueue_and_spoil(&stack, long).await;
    sqlx::raw_sql(DAMAGE).execute(stack.pool()).await.expect("a superuser may do it");
    stack.start_worker().await;
    wait_until("the others to be delivered", PATIENCE, async || stack.delivered().await == 19).await;
    assert_eq!(status_and_error(&stack, damaged).await.0, "pending");
    stack.workers[0].says("Postgres cannot read a job").await;

    let mend = format!(
        "UPDATE webhook_jobs SET payload = '{{}}' WHERE id = '{damaged}'; UPDATE outbox SET due_at = now(); SELECT outhook.wake()"
    );
    sqlx::raw_sql(AssertSqlSafe(mend)).execute(stack.pool()).await.expect("a superuser may do it");
    stack.wait_until_drained(PATIENCE).await;
    stack.finish().await;
}

/// What says of a page of a table what it holds; Postgres refuses one that says nonsense.
const PAGE_HEADER: usize = 24;

/// Overwrites the beginning of the first page of `webhook_jobs`. Returns what stood there.
async fn overwrite(postgres: &Servers, table: &PathBuf, header: [u8; PAGE_HEADER]) -> [u8; PAGE_HEADER] {
    postgres.stop(Server::Postgres).await;
    let file = OpenOptions::new().read(true).write(true).open(table).expect("the table has a file");
    let mut old = [0; PAGE_HEADER];
    file.read_exact_at(&mut old, 0).expect("it has a page");
    file.write_all_at(&header, 0).expect("it can be written");
    postgres.start_again(Server::Postgres).await;
    old
}

/// Some of its jobs were never published, some are due again, and some are on the list of those to look at again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_jobs_that_postgres_cannot_read_stops_nobody() {
    const JOBS: i32 = 80;
    let postgres = Servers::private_only(Server::Postgres).await;
    let builder = Stack::builder().relays(0).workers(0);
    let mut stack = builder.start_between(&postgres, Servers::shared().await).await;
    stack.enqueue(&stack.receiver_url(""), "{}", JOBS).await;
    let prepare = "UPDATE outbox SET published_at = now(), due_at = now() WHERE id % 2 = 0;
         INSERT INTO outbox_checks (outbox_id, attempt) SELECT id, attempt FROM outbox WHERE id % 4 = 0;
         UPDATE webhook_jobs SET status = 'processing', attempt = 1, claimed_by = 'lost', lease_until = now()
         WHERE id IN (SELECT id FROM webhook_jobs WHERE ctid < '(1,0)' ORDER BY id LIMIT 3);
         UPDATE outbox SET published_at = now(), due_at = now()
         WHERE job_id IN (SELECT id FROM webhook_jobs WHERE status = 'processing')";
    sqlx::raw_sql(prepare).execute(stack.pool()).await.expect("a superuser may do it");
    let damaged = stack.count("SELECT count(*) FROM webhook_jobs WHERE ctid < '(1,0)'").await;
    let damaged = usize::try_from(damaged).expect("it is no less than none");
    assert!((4..40).contains(&damaged), "{damaged} jobs in the first page");
    let table = "SELECT current_setting('data_directory') || '/' || pg_relation_filepath('webhook_jobs')";
    let table: String = sqlx::query_scalar(table).fetch_one(stack.pool()).await.expect("a superuser may know");
    let table = PathBuf::from(table);
    let header = overwrite(&postgres, &table, [0xff; PAGE_HEADER]).await;

    stack.start_relay().await;
    // Also those that look for lost messages must come past the page.
    wait_until("the relay to publish", PATIENCE, async || stack.broker.ready().await >= JOBS.unsigned_abs() / 2).await;
    stack.broker.purge().await;
    stack.start_worker().await;
    let others = usize::try_from(JOBS).expect("it is small") - damaged;
    stack.wait_for_deliveries(others).await;
    stack.post("{}", "").await;
    stack.wait_for_deliveries(others + 1).await;

    overwrite(&postgres, &table, header).await;
    stack.wait_until_ready().await;
    let ring = "UPDATE outbox SET due_at = now(); SELECT outhook.wake()";
    sqlx::raw_sql(ring).execute(stack.pool()).await.expect("a superuser may do it");
    stack.wait_until_drained(PATIENCE).await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outbox_row_whose_columns_are_no_text_stops_no_relay() {
    let stack = Stack::start().await;
    sqlx::raw_sql(LET_BYTES_BE_TEXT).execute(stack.pool()).await.expect("a superuser may do it");
    for spoil in [
        r"UPDATE outbox SET destination = '\xe9'::bytea::text WHERE job_id",
        r"UPDATE outbox SET traceparent = '\xe9'::bytea::text WHERE job_id",
    ] {
        enqueue_and_spoil(&stack, spoil).await;
        stack.wait_until_drained(PATIENCE).await;
    }
    let delivered = stack.delivered().await;
    assert_eq!(delivered, 2 * 20);
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_another_encoding_is_not_migrated() {
    let servers = Servers::shared().await;
    let admin = sqlx::PgPool::connect(&servers.database_url).await.expect("Postgres takes connections");
    for encoding in ["SQL_ASCII", "LATIN1"] {
        let name = format!("encoding_{}", encoding.to_lowercase());
        let create = format!("CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0");
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&admin).await.expect("a superuser may do it");
        let url = format!("postgres://outhook@{}/{name}", servers.postgres_address());
        let output = processes::output(Program::Migrate, &[("DATABASE_URL", &url)], &["--roles"]).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{said}");
        assert!(said.contains(encoding) && said.contains("ENCODING 'UTF8'"), "{said}");

        let pool = sqlx::PgPool::connect(&url).await.expect("Postgres takes connections");
        let left = "SELECT count(*) FROM pg_class WHERE relnamespace::regnamespace::text IN ('public', 'outhook')";
        let left: i64 = sqlx::query_scalar(left).fetch_one(&pool).await.expect("a count");
        assert_eq!(left, 0, "something was written");
        pool.close().await;
        let remove = format!("DROP DATABASE {name} WITH (FORCE)");
        sqlx::raw_sql(AssertSqlSafe(remove)).execute(&admin).await.expect("a superuser may do it");
    }
}
