//! Outhook on a database of its own: empty tables for each measurement.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::process::Command;
use tokio_postgres::Client;

use crate::http::{Connection, get, signed_post};
use crate::load::{self, Pace, Run};
use crate::receiver::Receiver;
use crate::servers::Servers;
use crate::services::{Environment, Service, output};
use crate::usage::Usage;

const HMAC_SECRET: &str = "bench-secret-of-the-callers";
const SIGNING_SECRET: &str = "whsec_YmVuY2gtc2VjcmV0LW9mLXRoZS13b3JrZXItMzItYnl0ZXM=";

/// Bytes of a payload: what a typical event has.
pub(crate) const PAYLOAD_BYTES: usize = 250;

const MIGRATION_TIMEOUT: Duration = Duration::from_mins(1);
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// Where everything is.
pub(crate) struct Site<'a> {
    pub servers: &'a Servers,
    pub receiver: &'a Receiver,
    /// The directory of the release binaries.
    pub programs: PathBuf,
    /// Where the services' logs go.
    pub logs: PathBuf,
    /// What the services are told besides where everything is.
    pub settings: Environment,
    /// Run on every new database after its migration.
    pub alter: String,
}

/// Outhook, as far as it was started.
pub(crate) struct Stack<'a> {
    site: &'a Site<'a>,
    /// The bench's own connection to the database.
    pub client: Client,
    /// The database's name.
    pub database: String,
    environment: Environment,
    address: SocketAddr,
    api: Option<Service>,
    relays: Vec<Service>,
    workers: Vec<Service>,
}

impl<'a> Stack<'a> {
    /// Creates and migrates a database. Nothing is started.
    pub(crate) async fn create(site: &'a Site<'a>) -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let database = format!("bench_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        site.servers.connect("outhook").await?.batch_execute(&format!("CREATE DATABASE {database}")).await?;
        let address = free_address()?;
        let environment = environment(site, &database, address);
        migrate(&site.programs, &environment).await?;
        let client = site.servers.connect(&database).await?;
        client.batch_execute(&site.alter).await?;
        // So that every measurement starts at the same distance from the next checkpoint.
        client.batch_execute("CHECKPOINT").await?;
        let (relays, workers) = (Vec::new(), Vec::new());
        Ok(Self { site, client, database, environment, address, api: None, relays, workers })
    }

    /// The same with the api, so many relays and so many workers running.
    pub(crate) async fn start(site: &'a Site<'a>, relays: usize, workers: usize) -> anyhow::Result<Self> {
        let mut stack = Self::create(site).await?;
        stack.start_api().await?;
        stack.start_deliveries(relays, workers).await?;
        Ok(stack)
    }

    pub(crate) async fn start_api(&mut self) -> anyhow::Result<()> {
        self.api = Some(self.start_service("api", "api".to_owned()).await?);
        let answers = async {
            let mut connection = Connection::open(self.address).await?;
            let probe = get(self.address, "/ready");
            while connection.exchange(&probe).await?.status != 200 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(READY_TIMEOUT, answers).await.context("the api did not become ready")?
    }

    /// Starts what turns accepted jobs into deliveries.
    pub(crate) async fn start_deliveries(&mut self, relays: usize, workers: usize) -> anyhow::Result<()> {
        for number in 0..relays {
            let relay = self.start_service("relay", format!("relay-{number}")).await?;
            self.relays.push(relay);
        }
        for number in 0..workers {
            let worker = self.start_service("worker", format!("worker-{number}")).await?;
            self.workers.push(worker);
        }
        Ok(())
    }

    /// Stops it again; the api stays.
    pub(crate) async fn stop_deliveries(&mut self) -> anyhow::Result<()> {
        for service in self.relays.drain(..).chain(self.workers.drain(..)) {
            service.stop().await?;
        }
        Ok(())
    }

    async fn start_service(&self, command: &'static str, name: String) -> anyhow::Result<Service> {
        let log = self.site.logs.join(format!("{}-{name}.log", self.database));
        Service::start(&self.site.programs, command, &self.environment, log).await
    }

    /// Posts webhooks for the receiver, all of which must be accepted.
    pub(crate) async fn post(&self, connections: usize, pace: Pace) -> anyhow::Result<Run> {
        let request = signed_post(self.address, HMAC_SECRET, &body(&self.site.receiver.url()));
        load::run(self.address, request, connections, pace).await?.all_accepted()
    }

    pub(crate) fn receiver(&self) -> &'a Receiver {
        self.site.receiver
    }

    /// Process ids of the api, the relays and the workers.
    pub(crate) fn services(&self) -> [Vec<u32>; 3] {
        let pids = |services: &[Service]| services.iter().map(|service| service.pid).collect();
        [self.api.iter().map(|api| api.pid).collect(), pids(&self.relays), pids(&self.workers)]
    }

    /// What every process has used so far.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        Usage::now(&self.services(), self.site.servers)
    }

    /// Bytes of write-ahead log so far.
    pub(crate) async fn wal_bytes(&self) -> anyhow::Result<i64> {
        let statement = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint";
        Ok(self.client.query_one(statement, &[]).await?.get(0))
    }

    /// The number that a statement counts.
    pub(crate) async fn count(&self, statement: &str) -> anyhow::Result<i64> {
        Ok(self.client.query_one(statement, &[]).await?.get(0))
    }

    /// Where the database is.
    pub(crate) fn database_url(&self) -> String {
        self.site.servers.database_url(&self.database)
    }

    /// Stops everything and drops the database.
    pub(crate) async fn remove(mut self) -> anyhow::Result<()> {
        self.stop_deliveries().await?;
        if let Some(api) = self.api.take() {
            api.stop().await?;
        }
        drop(self.client);
        let admin = self.site.servers.connect("outhook").await?;
        admin.batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", self.database)).await?;
        Ok(())
    }
}

fn environment(site: &Site<'_>, database: &str, address: SocketAddr) -> Environment {
    let ours = [
        ("DATABASE_URL", site.servers.database_url(database)),
        ("RABBITMQ_URL", site.servers.rabbitmq_url().to_owned()),
        ("APP_HOST", address.ip().to_string()),
        ("APP_PORT", address.port().to_string()),
        ("API_TOKEN", "bench-token-of-the-api".to_owned()),
        ("HMAC_SECRET", HMAC_SECRET.to_owned()),
        ("WEBHOOK_SIGNING_SECRET", SIGNING_SECRET.to_owned()),
        ("ALLOW_NETWORKS", "127.0.0.0/8".to_owned()),
    ];
    let ours = ours.map(|(name, value)| (name.to_owned(), value));
    ours.into_iter().chain(site.settings.iter().cloned()).collect()
}

async fn migrate(programs: &Path, environment: &Environment) -> anyhow::Result<()> {
    let mut command = Command::new(programs.join("outhook"));
    command.arg("migrate").env_clear().envs(environment.iter().map(|(name, value)| (name, value)));
    output(&mut command, MIGRATION_TIMEOUT).await?;
    Ok(())
}

/// A request's body: a payload of [`PAYLOAD_BYTES`] for the receiver.
fn body(url: &str) -> String {
    format!(r#"{{"payload":{},"client_url":"{url}"}}"#, payload())
}

/// An event as they are: a few fields and some text.
pub(crate) fn payload() -> String {
    let start = r#"{"event":"invoice.paid","account":"acct_4711","amount":1999,"currency":"EUR","note":""#;
    let end = r#""}"#;
    format!("{start}{}{end}", "lorem ipsum ".repeat(30).split_at(PAYLOAD_BYTES - start.len() - end.len()).0)
}

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_has_its_bytes_and_is_json() {
        assert_eq!(payload().len(), PAYLOAD_BYTES);
        assert!(serde_json::from_str::<serde_json::Value>(&payload()).is_ok());
    }
}
