//! What all cases are replayed on: one database, emptied before each case.

use std::sync::OnceLock;

use harness::Servers;
use harness::database::{Database, service_pool};
use outbox::due::Statements;
use outbox::service::database::Pool;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Mutex;
use tokio_postgres::{Client, NoTls};

/// The database, and the runtime that its connections live on: the cases themselves are synchronous.
pub struct Ground {
    pub runtime: Runtime,
    pub pool: PgPool,
    /// Those of the api and of the worker.
    pub services: Pool,
    /// The relay whose turns are replayed.
    pub relay: Client,
    /// Its statements.
    pub statements: Statements,
    /// Another one, which finds the broker wiped.
    pub other_relay: Client,
    pub other_statements: Statements,
    /// A third, which looks after destinations.
    pub third_relay: Mutex<Client>,
}

impl Ground {
    /// The one of this process.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Ground> = OnceLock::new();
        SHARED.get_or_init(|| {
            let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime starts");
            let url = runtime.block_on(async {
                // Not dropped at the end, but with the servers.
                Database::named(Servers::shared().await, "follows_the_model").await.url.clone()
            });
            let (pool, (relay, statements), (other_relay, other_statements), third_relay) = runtime.block_on(async {
                let pool = PgPoolOptions::new().max_connections(2).connect_lazy(&url).expect("it was connected to");
                (pool, prepared(&url).await, prepared(&url).await, connect(&url).await)
            });
            // Nothing waits for a lock as long as the model and the database agree: steps that would are not taken.
            let services = service_pool(&url, 2, &[("lock_timeout", "200ms")]);
            let third_relay = Mutex::new(third_relay);
            Self { runtime, pool, services, relay, statements, other_relay, other_statements, third_relay }
        })
    }

    /// Empties the database.
    pub async fn clear(&self) {
        // What a case that failed has left open.
        self.relay.batch_execute("ROLLBACK").await.expect("it is only a warning when there is none");
        let clear = "TRUNCATE webhook_jobs, idempotency_keys, outbox, outbox_checks, ordering_checks, destinations, webhook_attempts,
                harness.transitions, harness.publications, harness.withdrawals";
        sqlx::raw_sql(clear).execute(&self.pool).await.expect("the tables exist");
    }
}

async fn prepared(url: &str) -> (Client, Statements) {
    let relay = connect(url).await;
    let statements = Statements::prepare(&relay).await.expect("the schema is this build's");
    (relay, statements)
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("Postgres takes connections");
    tokio::spawn(connection);
    client
}
