//! The harness's poolers, standbys and certificates are what they are said to be: without that, a test that passes
//! with them proves nothing.

use std::str::FromStr;

use harness::certificates::Identity;
use harness::pooler::{PoolMode, Pooler};
use harness::postgres_with_tls::PostgresWithTls;
use harness::servers::Server;
use harness::{PATIENCE, Servers, TcpProxy, wait_until};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio_postgres::{Client, NoTls};

/// A client that asks for nothing special. The session ends with it.
async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("Postgres takes connections");
    tokio::spawn(connection);
    client
}

async fn setting(client: &Client, name: &str) -> String {
    let rows = client.query_typed(&format!("SHOW {name}"), &[]).await.expect("settings can be shown");
    rows[0].get(0)
}

#[tokio::test]
async fn a_session_pooler_keeps_what_a_client_sets_and_a_transaction_pooler_passes_it_on() {
    let servers = Servers::shared().await;
    for (mode, seen_by_another) in [(PoolMode::Session, "0"), (PoolMode::Transaction, "7s")] {
        let pooler = Pooler::start(servers, mode, "default_pool_size = 2").await;
        let url = pooler.url(servers, &servers.database_url);
        let first = connect(&url).await;
        first.batch_execute("SET statement_timeout = '7s'").await.expect("it can be set");
        let second = connect(&url).await;
        assert_eq!(setting(&first, "statement_timeout").await, "7s");
        assert_eq!(setting(&second, "statement_timeout").await, seen_by_another, "{mode:?}");
    }
}

#[tokio::test]
async fn a_pooler_refuses_start_up_parameters_that_it_does_not_know() {
    let servers = Servers::shared().await;
    let pooler = Pooler::start(servers, PoolMode::Session, "").await;
    let url = pooler.url(servers, &servers.database_url);
    let error = tokio_postgres::connect(&format!("{url}?options=-cjit%3Doff"), NoTls).await.err().expect("an error");
    let said = error.as_db_error().expect("the pooler says it").message().to_owned();
    assert!(said.contains("unsupported startup parameter"), "{said}");
    assert!(pooler.log().contains("unsupported startup parameter"), "{}", pooler.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_promoted_and_the_old_primary_follows_it() {
    let old = Servers::private_only(Server::Postgres).await;
    let new = old.standby().await;
    let (proxy, url) = TcpProxy::before(&old.database_url).await;
    let before = connect(&url).await;
    before.batch_execute("CREATE TABLE kept AS SELECT 1 AS id").await.expect("a primary can be written to");
    new.wait_for_all_of(&old).await;
    let refused = connect(&new.database_url).await.batch_execute("INSERT INTO kept VALUES (2)").await;
    assert_eq!(
        refused.err().and_then(|error| error.code().map(|code| code.code().to_owned())).as_deref(),
        Some("25006")
    );

    new.promote().await;
    proxy.redirect(new.postgres_address());
    before.batch_execute("INSERT INTO kept VALUES (3)").await.expect("an old session stays where it is");
    old.become_standby_of(&new).await;
    wait_until("the old session to end", PATIENCE, async || before.is_closed()).await;
    let after = connect(&url).await;
    after.batch_execute("INSERT INTO kept VALUES (2)").await.expect("a new session is at the new primary");
    old.wait_for_all_of(&new).await;

    assert!(old.is_standby().await && !new.is_standby().await);
    let kept = connect(&old.database_url).await.query("SELECT id FROM kept ORDER BY id", &[]).await.expect("rows");
    assert_eq!(kept.iter().map(|row| row.get(0)).collect::<Vec<i32>>(), [1, 2]);
}

/// Connects as one who verifies the certificate and the name.
async fn verify(postgres: &PostgresWithTls) -> Result<PgConnection, sqlx::Error> {
    let options = PgConnectOptions::from_str(&postgres.servers.database_url).expect("the servers' URL is one");
    options.ssl_mode(PgSslMode::VerifyFull).ssl_root_cert(postgres.ca_file()).connect().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_shows_its_authoritys_certificate_until_it_shows_another() {
    let postgres = PostgresWithTls::start().await;
    let mut connection = verify(&postgres).await.expect("the certificate is good");
    let statement = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert!(sqlx::query_scalar::<_, bool>(statement).fetch_one(&mut connection).await.expect("a row"));

    for bad in [Identity::self_signed("127.0.0.1"), postgres.authority.issue("elsewhere.example")] {
        postgres.show(&bad).await;
        let error = verify(&postgres).await.expect_err("nobody vouches for it").to_string();
        assert!(error.contains("certificate"), "{error}");
    }
    connection.ping().await.expect("what was connected before stays");
}
