//! What an operator has to know is said, and what the documentation tells one to run does what it says.

use harness::database::Database;
use harness::{PATIENCE, Program, Servers, Stack, processes, wait_until};
use sqlx::AssertSqlSafe;

#[tokio::test]
async fn migrate_passes_on_that_an_administrator_must_grant_something() {
    let servers = Servers::shared().await;
    // The roles are there, and so the owner needs no right to create them.
    Database::create(servers).await.drop().await;
    let admin = sqlx::PgPool::connect(&servers.database_url).await.expect("Postgres takes connections");
    let run = async |statements: &'static str| {
        sqlx::query(statements).execute(&admin).await.expect("a superuser may do it");
    };
    run("CREATE ROLE no_administrator LOGIN").await;
    run("CREATE DATABASE of_no_administrator OWNER no_administrator").await;
    let url = format!("postgres://no_administrator@{}/of_no_administrator", servers.postgres_address());
    let output = processes::output(Program::Migrate, &[("DATABASE_URL", &url)], &["--roles"]).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("WARN"), "{said}");
    assert!(said.contains("let a superuser run GRANT pg_read_all_stats TO outhook_reader"), "{said}");
    run("DROP DATABASE of_no_administrator WITH (FORCE)").await;
    run("DROP ROLE no_administrator").await;
}

/// What Postgres says when it cannot take another notification. To fill its queue takes 8 GiB.
const NOTIFY_FAILS: &str = "CREATE OR REPLACE FUNCTION outhook.wake() RETURNS void LANGUAGE plpgsql AS $$
    BEGIN RAISE 'too many notifications in the NOTIFY queue' USING ERRCODE = 'program_limit_exceeded'; END $$";
const NOTIFY_WORKS: &str = "CREATE OR REPLACE FUNCTION outhook.wake() RETURNS void LANGUAGE plpgsql AS $$ BEGIN END $$";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_notify_queue_is_said_once_and_again_when_it_is_full_again() {
    let stack = Stack::start().await;
    let warnings = || stack.apis[0].log().matches("too many notifications in the NOTIFY queue").count();
    for expected in 1..=2 {
        sqlx::raw_sql(NOTIFY_FAILS).execute(stack.pool()).await.expect("a superuser may do it");
        wait_until("it to be said", PATIENCE, async || {
            stack.post("{}", "").await;
            warnings() == expected
        })
        .await;
        for _ in 0..20 {
            stack.post("{}", "").await;
        }
        sqlx::raw_sql(NOTIFY_WORKS).execute(stack.pool()).await.expect("a superuser may do it");
        wait_until("that it is over to be said", PATIENCE, async || {
            stack.post("{}", "").await;
            stack.apis[0].log().matches("the relays are notified again").count() == expected
        })
        .await;
        assert_eq!(warnings(), expected, "it was said more than once");
    }
    stack.wait_until_drained(PATIENCE).await;
    stack.finish().await;
}

/// The statements of the documentation.
fn statements_after_a_restore() -> String {
    let text = include_str!("../docs/operating.md");
    let section = text.split("## Restoring a dump").nth(1).expect("it has this section");
    let block = section.split("```sql").nth(1).expect("with a block of SQL");
    block.split("```").next().expect("a split has a part").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restore_what_was_published_is_delivered_at_once() {
    let mut stack = Stack::builder().workers(0).start().await;
    for _ in 0..5 {
        stack.post("{}", "").await;
    }
    wait_until("all to be published", PATIENCE, async || stack.published().await == 5).await;
    // As if the broker were another: its queue is there, and these messages are not.
    stack.broker.purge().await;
    sqlx::raw_sql(AssertSqlSafe(statements_after_a_restore())).execute(stack.pool()).await.expect("they run");
    stack.start_worker().await;
    stack.wait_until_drained(PATIENCE).await;
    stack.finish().await;
}
