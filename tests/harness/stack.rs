//! The whole of Outhook for one test: its own database, queue, processes and receiver.

mod builder;
mod counts;
mod ending;
mod services;

use std::sync::Arc;

use receiver::{Received, Receiver};
use sqlx::PgPool;
use uuid::Uuid;

pub use self::builder::StackBuilder;
use crate::broker::{Broker, Wire};
use crate::database::Database;
pub use crate::environment::Environment;
use crate::processes::Process;
use crate::wait::PATIENCE;
use crate::{Accepted, Client, Webhook};

/// A running Outhook.
pub struct Stack {
    /// The caller of the api.
    pub client: Client,
    /// The endpoint that webhooks are delivered to.
    pub receiver: Receiver,
    /// The test's own way to the broker.
    pub broker: Broker,
    /// The api, unless it was taken.
    pub apis: Vec<Process>,
    /// The relays.
    pub relays: Vec<Process>,
    /// The workers.
    pub workers: Vec<Process>,
    database: Database,
    name: String,
    common: Environment,
    relay: Environment,
    worker: Environment,
    rewrite: builder::Rewrite,
    processes_started: usize,
    /// Whether every answer is in the receiver's log.
    heard: bool,
}

impl Stack {
    /// A stack as most tests want it, on the shared servers.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// A stack that is to be set up. It is called after the test that starts it.
    #[must_use]
    pub fn builder() -> StackBuilder {
        StackBuilder::new()
    }

    /// The test's own connections to its database.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.database.pool
    }

    /// Where the test's database is, without any proxy.
    #[must_use]
    pub fn database_url(&self) -> &str {
        &self.database.url
    }

    /// Where the user of one of the database's roles finds it.
    #[must_use]
    pub fn url_of(&self, role: &str) -> String {
        self.database.url_of(role)
    }

    /// A webhook for this stack's receiver; the query says how that answers.
    #[must_use]
    pub fn webhook(&self, query: &str) -> Webhook {
        Webhook::to(&self.receiver_url(query))
    }

    /// Posts a webhook for this stack's receiver; the query says how that answers. `payload` is JSON text.
    pub async fn post(&self, payload: &str, query: &str) -> Accepted {
        self.client.post(payload, &self.receiver_url(query)).await
    }

    /// The receiver's URL, with a query or without.
    #[must_use]
    pub fn receiver_url(&self, query: &str) -> String {
        self.receiver.url(&format!("/hook{query}"))
    }

    /// What the receiver got for one job, in order.
    #[must_use]
    pub fn deliveries(&self, job_id: Uuid) -> Vec<Arc<Received>> {
        let id = job_id.to_string();
        self.receiver.received().into_iter().filter(|it| it.job_id.as_deref() == Some(&id)).collect()
    }

    /// How many of these jobs the receiver has got.
    #[must_use]
    pub fn deliveries_of(&self, job_ids: &[Uuid]) -> usize {
        let received = self.receiver.received();
        let arrived = |id: &Uuid| received.iter().any(|it| it.job_id.as_deref() == Some(&id.to_string()));
        job_ids.iter().filter(|id| arrived(id)).count()
    }

    /// Waits until so many deliveries have arrived.
    pub async fn wait_for_deliveries(&self, count: usize) {
        let waited = self.receiver.wait_for(|received| received.len() >= count, PATIENCE).await;
        waited.unwrap_or_else(|error| panic!("waited in vain for {count} deliveries: {error}"));
    }

    /// Listens to all that is published from now on.
    pub async fn listen(&self) -> Wire {
        self.broker.listen().await
    }

    /// Accepts so many webhooks from SQL, all in one transaction, and wakes the relays.
    pub async fn enqueue(&self, client_url: &str, payload: &str, count: i32) {
        let statement = "SELECT count(outhook.enqueue($1, $2)) FROM generate_series(1, $3)";
        let enqueue = sqlx::query(statement).bind(client_url).bind(payload).bind(count);
        enqueue.execute(self.pool()).await.expect("they are accepted");
        self.wake().await;
    }

    /// Tells the relays that something is due.
    pub async fn wake(&self) {
        sqlx::query("SELECT outhook.wake()").execute(self.pool()).await.expect("relays can be told");
    }
}
