//! A database for each test, copied from a template that was migrated once.

use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};

use crate::Servers;
use crate::processes::{self, Program};

/// What watches the state machine from inside the database, so that no transition goes unseen.
const OBSERVER: &str = include_str!("observer.sql");

/// One test's database.
pub struct Database {
    /// Where services find it.
    pub url: String,
    /// The test's own connections.
    pub pool: PgPool,
    name: String,
    server_url: String,
}

impl Database {
    /// A migrated and empty database.
    pub async fn create(servers: &Servers, test: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let template = servers.template.get_or_init(|| create_template(servers)).await;
        let name = format!("t_{}_{test}", COUNT.fetch_add(1, Ordering::Relaxed));
        execute(&servers.database_url, &format!("CREATE DATABASE {name} TEMPLATE {template}")).await;
        let url = with_database(&servers.database_url, &name);
        let pool = PgPoolOptions::new().max_connections(8).connect(&url).await.expect("Postgres takes connections");
        Self { url, pool, name, server_url: servers.database_url.clone() }
    }

    /// The URL by way of a proxy.
    pub(crate) fn url_through(&self, proxy: SocketAddr) -> String {
        let (user, rest) = self.url.split_once('@').expect("the servers' URL names a user");
        let (_, name) = rest.split_once('/').expect("the servers' URL names a database");
        format!("{user}@{proxy}/{name}")
    }

    /// The URL of a role that is made now, and may do what the tests' own may, but is no superuser.
    pub(crate) async fn url_of_new_role(&self, role: &str) -> String {
        let (server, owner) = ("postgres://", "outhook");
        execute(&self.server_url, &format!("CREATE ROLE {role} LOGIN IN ROLE {owner}")).await;
        self.url.replacen(&format!("{server}{owner}@"), &format!("{server}{role}@"), 1)
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
    processes::run(Program::Migrate, &[("DATABASE_URL", &url)]).await;
    execute(&url, OBSERVER).await;
    name
}

/// Runs statements on a connection that is closed before this returns: a template must have none.
async fn execute(url: &str, statements: &str) {
    let options = PgConnectOptions::from_str(url).expect("the servers' URL is one");
    let mut connection = PgConnection::connect_with(&options).await.expect("Postgres takes connections");
    let result = sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut connection).await;
    if let Err(error) = result {
        panic!("{error}, in: {statements}");
    }
    connection.close().await.expect("the connection closes");
}

fn with_database(url: &str, name: &str) -> String {
    let (server, _) = url.rsplit_once('/').expect("the servers' URL names a database");
    format!("{server}/{name}")
}
