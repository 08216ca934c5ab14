//! A deployment's database belongs to a user that is no superuser.

use std::process::Output;

use harness::processes::output;
use harness::servers::Server;
use harness::{Program, Servers};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

async fn execute(url: &str, statements: &[&str]) {
    let mut connection = PgConnection::connect(url).await.expect("Postgres takes connections");
    for statement in statements {
        let done = sqlx::raw_sql(AssertSqlSafe((*statement).to_owned())).execute(&mut connection).await;
        done.unwrap_or_else(|error| panic!("{error}, in: {statement}"));
    }
    connection.close().await.expect("the connection closes");
}

/// The URL with another user and database.
fn url(servers: &Servers, user: &str, database: &str) -> String {
    let (_, host) = servers.database_url.split_once('@').expect("the servers' URL names a user");
    let (host, _) = host.split_once('/').expect("the servers' URL names a database");
    format!("postgres://{user}@{host}/{database}")
}

async fn migrate(url: &str) -> Output {
    output(Program::Migrate, &[("DATABASE_URL", url)], &["--roles"]).await
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_who_is_no_superuser_gives_the_services_their_rights() {
    let servers = Servers::private_only(Server::Postgres).await;
    let superuser = url(&servers, "outhook", "postgres");
    let databases = ["CREATE ROLE owner LOGIN", "CREATE DATABASE one OWNER owner", "CREATE DATABASE two OWNER owner"];
    execute(&superuser, &databases).await;

    // Without the right to create roles nothing is granted, and it says so.
    let one = url(&servers, "owner", "one");
    let refused = migrate(&one).await;
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains("permission denied to create role"), "{}", said(&refused));

    execute(&superuser, &["ALTER ROLE owner CREATEROLE"]).await;
    for _ in 0..2 {
        let done = migrate(&one).await;
        assert!(done.status.success(), "{}", said(&done));
    }
    let users = ["CREATE ROLE api LOGIN IN ROLE outhook_api", "CREATE ROLE reader LOGIN IN ROLE outhook_reader"];
    execute(&one, &users).await;
    let accept =
        "SELECT outhook.accept_jobs(ARRAY[gen_random_uuid()], '{http://example.com/}', '{http://example.com}', '{x}',
        ARRAY[jsonb '{}'], '{}', '{}', '{}', '{}', '{}', '{}', '{}', NULL, NULL, NULL, NULL)";
    execute(&url(&servers, "api", "one"), &[accept, "SELECT outhook.cancel(gen_random_uuid())"]).await;

    // Once the roles are there, the right to create them is not needed, nor by another database.
    execute(&superuser, &["ALTER ROLE owner NOCREATEROLE"]).await;
    let done = migrate(&url(&servers, "owner", "two")).await;
    assert!(done.status.success(), "{}", said(&done));
    execute(&url(&servers, "api", "two"), &[accept]).await;

    // A checker that cannot see the others' sessions does not say that all is well with them.
    execute(&superuser, &["REVOKE pg_read_all_stats FROM outhook_reader"]).await;
    let api = PgConnection::connect(&url(&servers, "api", "two")).await.expect("the api logs in");
    let reader = url(&servers, "reader", "two");
    let checked = output(Program::Check, &[("DATABASE_URL", &reader)], &[]).await;
    assert_eq!(checked.status.code(), Some(2), "{}", said(&checked));
    assert!(said(&checked).contains("GRANT pg_read_all_stats"), "{}", said(&checked));
    api.close().await.expect("the connection closes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_in_which_anybody_may_create_things_is_refused() {
    let servers = Servers::private_only(Server::Postgres).await;
    // As Postgres 14 made it, and as an upgrade leaves it: not the owner's to change.
    let old = ["ALTER SCHEMA public OWNER TO outhook", "GRANT CREATE ON SCHEMA public TO PUBLIC"];
    let superuser = url(&servers, "outhook", "postgres");
    execute(&superuser, &["CREATE ROLE owner LOGIN CREATEROLE", "CREATE DATABASE old OWNER owner"]).await;
    execute(&url(&servers, "outhook", "old"), &old).await;
    let refused = migrate(&url(&servers, "owner", "old")).await;
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains("REVOKE CREATE ON SCHEMA public FROM PUBLIC"), "{}", said(&refused));
}
