//! A private Postgres and RabbitMQ: one pair for all tests of the process, or one for a test that
//! breaks them.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::OnceCell;

/// A debug build's tests share one Postgres and never lose power.
const POSTGRES_OPTIONS: &str = "-c fsync=off -c max_connections=400";

/// The names of all stacks' exchanges and queues, as regular expressions: what RabbitMQ's users may reach.
const BROKER_NAMES: [(&str, &str); 2] =
    [("RABBITMQ_EXCHANGE_PATTERN", r"[a-z0-9_]+\.exchange"), ("RABBITMQ_QUEUE_PATTERN", r"[a-z0-9_]+\.jobs")];

/// A running Postgres and RabbitMQ. They stop when this is dropped or this process ends, however it ends.
pub struct Servers {
    /// Where Postgres is, with a database that is of no interest.
    pub database_url: String,
    /// Where RabbitMQ is.
    pub rabbitmq_url: String,
    /// Where RabbitMQ's management API is.
    pub management_url: String,
    /// The template that tests' databases are copied from, once it exists.
    pub(crate) template: OnceCell<String>,
    directory: PathBuf,
    holder: Child,
    /// Its closing is what tells the holder to stop the servers; the system closes it when we die.
    stdin: Option<ChildStdin>,
}

/// What of a pair of servers is stopped or started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// The database.
    Postgres,
    /// The broker.
    RabbitMq,
}

impl Server {
    fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::RabbitMq => "rabbitmq",
        }
    }
}

impl Servers {
    /// The pair that tests share which do not break it. Started by the first one that asks.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceLock<Servers> = OnceLock::new();
        tokio::task::spawn_blocking(|| SHARED.get_or_init(|| Self::start(&[]))).await.expect("the servers start")
    }

    /// A pair of one's own, to be killed and wiped.
    pub async fn private() -> Self {
        tokio::task::spawn_blocking(|| Self::start(&[])).await.expect("the servers start")
    }

    /// One server of one's own, to be killed and wiped; the other one of the pair is not there.
    pub async fn private_only(server: Server) -> Self {
        let start = move || Self::start(&["--only", server.name()]);
        tokio::task::spawn_blocking(start).await.expect("the server starts")
    }

    /// Stops one server in good order.
    pub async fn stop(&self, server: Server) {
        self.script(&["stop", "--only", server.name()]).await;
    }

    /// Ends one server as a crash would, by SIGKILL.
    pub async fn kill(&self, server: Server) {
        self.script(&["stop", "--only", server.name(), "--mode", "kill"]).await;
    }

    /// Stops one server and deletes its data.
    pub async fn wipe(&self, server: Server) {
        self.script(&["wipe", "--only", server.name()]).await;
    }

    /// Starts one server again, with what data it has.
    pub async fn start_again(&self, server: Server) {
        self.script(&["start", "--only", server.name()]).await;
    }

    /// Suspends one server: its connections stay, and nothing answers.
    pub async fn pause(&self, server: Server) {
        self.script(&["pause", "--only", server.name()]).await;
    }

    /// Lets a paused server go on.
    pub async fn resume(&self, server: Server) {
        self.script(&["resume", "--only", server.name()]).await;
    }

    /// Administers the broker.
    pub async fn rabbitmqctl(&self, arguments: &[&str]) {
        self.script(&[&["rabbitmqctl", "--"], arguments].concat()).await;
    }

    async fn script(&self, arguments: &[&str]) {
        let (command, options) = arguments.split_first().expect("a script's first argument is its command");
        let status = tokio::process::Command::new(script())
            .arg(command)
            .arg("--dir")
            .arg(&self.directory)
            .args(options)
            .stdout(Stdio::null())
            .env("POSTGRES_OPTIONS", POSTGRES_OPTIONS)
            .envs(BROKER_NAMES)
            .status()
            .await
            .expect("scripts/servers can be run");
        assert!(status.success(), "scripts/servers {arguments:?} ended with {status}");
    }

    fn start(options: &[&str]) -> Self {
        let directory = new_directory();
        let mut holder = Command::new(script())
            .args(["hold", "--dir"])
            .arg(&directory)
            .args(options)
            .env("POSTGRES_OPTIONS", POSTGRES_OPTIONS)
            .envs(BROKER_NAMES)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("scripts/servers can be run");
        let stdin = holder.stdin.take();
        let stdout = holder.stdout.take().expect("stdout is piped");
        let mut values = std::collections::HashMap::new();
        // The script limits its own waiting; when it gives up, the pipe ends.
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if line == "READY" {
                let mut take = |name: &str| values.remove(name).unwrap_or_else(|| panic!("hold printed no {name}"));
                return Self {
                    database_url: take("DATABASE_URL"),
                    rabbitmq_url: take("RABBITMQ_URL"),
                    management_url: take("RABBITMQ_MANAGEMENT_URL"),
                    template: OnceCell::new(),
                    directory,
                    holder,
                    stdin,
                };
            }
            if let Some((name, value)) = line.split_once('=') {
                values.insert(name.to_owned(), value.to_owned());
            }
        }
        panic!("scripts/servers hold ended with {:?}; what it said is above", holder.wait());
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.holder.wait();
    }
}

/// The first that are free from here on are taken: above what the kernel gives to clients and above
/// what `scripts/servers` takes, so that a service that is killed finds its port again.
static NEXT_PORT: AtomicU32 = AtomicU32::new(0);
const PORTS: std::ops::Range<u32> = 65_000..65_500;

/// A port that nobody listens on.
pub fn free_port() -> u16 {
    for _ in PORTS {
        // Another test process starts elsewhere in the range.
        let step = NEXT_PORT.fetch_add(1, Ordering::Relaxed) + std::process::id() * 31;
        let port = PORTS.start + step % (PORTS.end - PORTS.start);
        let port = u16::try_from(port).expect("the range ends below 65,536");
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port from {PORTS:?} is free");
}

/// Waits this long at most for one service to start or stop.
pub const SERVICE_TIMEOUT: Duration = Duration::from_secs(30);

fn script() -> PathBuf {
    workspace().join("scripts/servers")
}

/// The project's root.
pub(crate) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the workspace")
}

/// Made, filled and removed by the script.
fn new_directory() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("outhook-tests-{}-{count}", std::process::id()))
}
