//! A private Postgres and RabbitMQ of `scripts/servers`, durable as they would be in production.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use outbox::service::database::DatabaseConfig;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::options::database_config;

/// The script bounds its own waits; this is longer than all of them.
const START_TIMEOUT: Duration = Duration::from_mins(4);
const STOP_TIMEOUT: Duration = Duration::from_mins(1);

/// Settings without which a commit is no promise.
const DURABLE: [&str; 3] = ["fsync", "synchronous_commit", "full_page_writes"];

/// Two running servers. They stop when this is dropped or this process ends, however it ends.
pub(crate) struct Servers {
    values: HashMap<String, String>,
    pub postgres_pid: u32,
    pub rabbitmq_pid: u32,
    holder: Child,
    /// Its closing is what tells the holder to stop the servers; the system closes it when we die.
    stdin: Option<ChildStdin>,
}

impl Servers {
    /// Starts both in a new directory.
    pub(crate) async fn start(directory: &Path, postgres_options: &str) -> anyhow::Result<Self> {
        let mut holder = Command::new(script())
            .args(["hold", "--dir"])
            .arg(directory)
            .env("POSTGRES_OPTIONS", postgres_options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("scripts/servers cannot be run")?;
        let stdin = holder.stdin.take();
        let values = timeout(START_TIMEOUT, read_values(&mut holder)).await.context("the servers did not start")??;
        let postgres_pid = read_pid(&values, "POSTGRES_PID_FILE")?;
        let rabbitmq_pid = read_pid(&values, "RABBITMQ_PID_FILE")?;
        let servers = Self { values, postgres_pid, rabbitmq_pid, holder, stdin };
        servers.require_durable().await?;
        Ok(servers)
    }

    async fn require_durable(&self) -> anyhow::Result<()> {
        let client = self.connect("outhook").await?;
        for name in DURABLE {
            let value: String = client.query_one("SELECT current_setting($1)", &[&name]).await?.get(0);
            ensure!(value == "on", "{name} is {value}: these figures would promise what no restart keeps");
        }
        Ok(())
    }

    /// The URL of a database.
    pub(crate) fn database_url(&self, database: &str) -> String {
        let url = &self.values["DATABASE_URL"];
        let (server, _) = url.rsplit_once('/').expect("a database's URL ends in its name");
        format!("{server}/{database}")
    }

    /// The bench's own connection.
    pub(crate) async fn connect(&self, database: &str) -> anyhow::Result<Client> {
        Ok(database_config(&self.database_url(database)).connect("outhook-bench").await?)
    }

    /// What crate `outbox` connects with.
    pub(crate) fn database_config(&self, database: &str) -> DatabaseConfig {
        database_config(&self.database_url(database))
    }

    pub(crate) fn rabbitmq_url(&self) -> &str {
        &self.values["RABBITMQ_URL"]
    }

    /// A program that stands beside `postgres`.
    pub(crate) fn postgres_program(&self, name: &str) -> PathBuf {
        Path::new(&self.values["POSTGRES_BIN"]).join(name)
    }

    /// Stops both and removes their data.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        drop(self.stdin.take());
        timeout(STOP_TIMEOUT, self.holder.wait()).await.context("the servers did not stop")??;
        Ok(())
    }
}

/// Reads `NAME=value` lines up to `READY`.
async fn read_values(holder: &mut Child) -> anyhow::Result<HashMap<String, String>> {
    let mut lines = BufReader::new(holder.stdout.take().expect("stdout is piped")).lines();
    let mut values = HashMap::new();
    while let Some(line) = lines.next_line().await? {
        match line.split_once('=') {
            Some((name, value)) => {
                values.insert(name.to_owned(), value.to_owned());
            }
            None if line == "READY" => return Ok(values),
            None => {}
        }
    }
    bail!("scripts/servers ended early; run `scripts/servers start --dir DIR` to see why")
}

fn read_pid(values: &HashMap<String, String>, name: &str) -> anyhow::Result<u32> {
    let path = values.get(name).with_context(|| format!("scripts/servers names no {name}"))?;
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    text.trim().parse().with_context(|| format!("{path} holds no process id"))
}

fn script() -> PathBuf {
    workspace().join("scripts/servers")
}

/// The project's root.
pub(crate) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("bench/ is in the workspace")
}
