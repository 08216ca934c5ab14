//! A database for each test, copied from a template that was migrated once.

use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use clap::Parser;
use outbox::service::database::{DatabaseConfig, Pool};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Decode, PgConnection, PgPool, Postgres, Type};

use crate::processes::{self, Program};
use crate::{Servers, name};

/// A pool as the services have theirs, for what a test does in their place.
#[must_use]
pub fn service_pool(url: &str, connections: u32, settings: &[(&str, &str)]) -> Pool {
    #[derive(Parser)]
    struct Config {
        #[command(flatten)]
        database: DatabaseConfig,
    }
    let config = Config::parse_from(["test", "--database-url", url]).database;
    config.pool_with("test", connections, Duration::from_secs(10), settings)
}

/// What watches the state machine from inside the database, so that no transition goes unseen.
const OBSERVER: &str = include_str!("observer.sql");

/// The user of each role, as a deployment makes them: `outhook_api_login` and so on.
pub const ROLES: [&str; 5] = ["api", "relay", "worker", "reader", "enqueuer"];

/// Bytes that Postgres keeps of a name; it cuts off the rest.
const LONGEST_NAME: usize = 63;

/// One test's database.
pub struct Database {
    /// Where the tests find it, who own it and may do anything.
    pub url: String,
    /// The test's own connections.
    pub pool: PgPool,
    name: String,
    server_url: String,
}

impl Database {
    /// A migrated and empty database, called after the test that runs on this thread.
    pub async fn create(servers: &Servers) -> Self {
        Self::named(servers, &name::of_this_test()).await
    }

    /// The same with a name of its own.
    pub async fn named(servers: &Servers, name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let template = servers.template.get_or_init(|| create_template(servers)).await;
        let mut name = format!("t_{}_{name}", COUNT.fetch_add(1, Ordering::Relaxed));
        name.truncate(LONGEST_NAME);
        execute(&servers.database_url, &format!("CREATE DATABASE {name} TEMPLATE {template}")).await;
        let url = with_database(&servers.database_url, &name);
        let pool = PgPoolOptions::new().max_connections(8).connect(&url).await.expect("Postgres takes connections");
        // A copy does not have these, and is an installation of its own.
        let rights = format!(
            "UPDATE installation SET id = gen_random_uuid();
             REVOKE ALL ON DATABASE {name} FROM PUBLIC;
             GRANT CONNECT ON DATABASE {name} TO outhook_api, outhook_relay, outhook_worker, outhook_reader, outhook_enqueuer"
        );
        sqlx::raw_sql(AssertSqlSafe(rights)).execute(&pool).await.expect("the owner may do it");
        Self { url, pool, name, server_url: servers.database_url.clone() }
    }

    /// Where the user of one of the [`ROLES`] finds it.
    #[must_use]
    pub fn url_of(&self, role: &str) -> String {
        as_user_of(&self.url, role)
    }

    /// The URL at another host, or at several.
    pub(crate) fn url_at(&self, hosts: &str) -> String {
        let (user, rest) = self.url.split_once('@').expect("the servers' URL names a user");
        let (_, name) = rest.split_once('/').expect("the servers' URL names a database");
        format!("{user}@{hosts}/{name}")
    }

    /// The URL of a user that is made now, and may do what the services together may.
    pub(crate) async fn url_of_new_user(&self, user: &str) -> String {
        let create = format!("CREATE ROLE {user} LOGIN IN ROLE outhook_api, outhook_relay, outhook_worker");
        execute(&self.server_url, &create).await;
        self.url.replacen(OWNER, &format!("//{user}@"), 1)
    }

    /// Removes it, whoever is still connected.
    pub async fn drop(self) {
        self.pool.close().await;
        execute(&self.server_url, &format!("DROP DATABASE {} WITH (FORCE)", self.name)).await;
    }
}

async fn create_template(servers: &Servers) -> String {
    let name = "outhook_template".to_owned();
    execute(&servers.database_url, &format!("CREATE DATABASE {name}")).await;
    let url = with_database(&servers.database_url, &name);
    // Whatever certificate a server shows: it is the test's own.
    let unencrypted = format!("{url}?sslmode=disable");
    processes::run(Program::Migrate, &[("DATABASE_URL", &unencrypted)], &["--roles"]).await;
    for role in ROLES {
        execute(&url, &format!("CREATE ROLE outhook_{role}_login LOGIN IN ROLE outhook_{role}")).await;
    }
    execute(&url, OBSERVER).await;
    name
}

/// The tests' own user, as it stands in URLs. Nobody has a password: Postgres trusts this machine.
const OWNER: &str = "//outhook@";

/// The URL with the user of a role in place of the tests' own, if it names that.
pub(crate) fn as_user_of(url: &str, role: &str) -> String {
    url.replacen(OWNER, &format!("//outhook_{role}_login@"), 1)
}

/// The same without what surrounds it.
pub(crate) const OWNER_NAME: &str = "outhook";

/// Runs statements on a connection that is closed before this returns: a template must have none.
pub(crate) async fn execute(url: &str, statements: &str) {
    let options = PgConnectOptions::from_str(url).expect("the servers' URL is one");
    let mut connection = PgConnection::connect_with(&options).await.expect("Postgres takes connections");
    let result = sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut connection).await;
    if let Err(error) = result {
        panic!("{error}, in: {statements}");
    }
    connection.close().await.expect("the connection closes");
}

/// The one value of a statement's one row, on a connection of its own.
pub(crate) async fn query<T>(url: &str, statement: &str) -> T
where
    T: for<'row> Decode<'row, Postgres> + Type<Postgres> + Send + Unpin,
{
    let mut connection = PgConnection::connect(url).await.expect("Postgres takes connections");
    let value = sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(&mut connection).await;
    value.unwrap_or_else(|error| panic!("{error}, in: {statement}"))
}

fn with_database(url: &str, name: &str) -> String {
    let (server, _) = url.rsplit_once('/').expect("the servers' URL names a database");
    format!("{server}/{name}")
}
