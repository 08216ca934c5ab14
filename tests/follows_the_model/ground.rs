//! What all cases are replayed on: one database, emptied before each case.

use std::str::FromStr;
use std::sync::OnceLock;

use harness::Servers;
use harness::database::Database;
use outbox::due::Statements;
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::{Client, NoTls};

/// The database, and the runtime that its connections live on: the cases themselves are synchronous.
pub struct Ground {
    pub runtime: Runtime,
    pub pool: PgPool,
    /// The relay whose turns are replayed.
    pub relay: Client,
    /// Its statements.
    pub statements: Statements,
    /// Another one, which finds the broker wiped.
    pub other_relay: Client,
}

impl Ground {
    /// The one of this process.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Ground> = OnceLock::new();
        SHARED.get_or_init(|| {
            let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime starts");
            let (pool, relay, statements, other_relay) = runtime.block_on(async {
                // Not dropped at the end, but with the servers.
                let database = Database::create(Servers::shared().await, "follows_the_model").await;
                let relay = connect(&database.url).await;
                let statements = Statements::prepare(&relay).await.expect("the schema is this build's");
                (pool(&database.url), relay, statements, connect(&database.url).await)
            });
            Self { runtime, pool, relay, statements, other_relay }
        })
    }

    /// Empties the database.
    pub async fn clear(&self) {
        // What a case that failed has left open.
        self.relay.batch_execute("ROLLBACK").await.expect("it is only a warning when there is none");
        let clear = "TRUNCATE webhook_jobs, outbox, webhook_attempts, harness.transitions, harness.publications";
        sqlx::raw_sql(clear).execute(&self.pool).await.expect("the tables exist");
    }
}

/// Nothing waits for a lock as long as the model and the database agree: steps that would are not taken.
fn pool(url: &str) -> PgPool {
    let options = PgConnectOptions::from_str(url).expect("it was connected to just now");
    PgPoolOptions::new().max_connections(2).connect_lazy_with(options.options([("lock_timeout", "200ms")]))
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("Postgres takes connections");
    tokio::spawn(connection);
    client
}
