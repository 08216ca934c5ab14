//! A private Postgres and RabbitMQ: one pair for all tests of the process, or one for a test that
//! breaks them.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
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
    /// The name of RabbitMQ's node.
    pub rabbitmq_node: String,
    /// The template that tests' databases are copied from, once it exists.
    pub(crate) template: OnceCell<String>,
    postgres_address: SocketAddr,
    directory: PathBuf,
    /// What they were started with, and are started again.
    environment: Vec<(&'static str, String)>,
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
    pub(crate) const fn name(self) -> &'static str {
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
        tokio::task::spawn_blocking(|| SHARED.get_or_init(|| Self::start(&[], Vec::new())))
            .await
            .expect("the servers start")
    }

    /// A pair of one's own, to be killed and wiped.
    pub async fn private() -> Self {
        tokio::task::spawn_blocking(|| Self::start(&[], Vec::new())).await.expect("the servers start")
    }

    /// One server of one's own, to be killed and wiped; the other one of the pair is not there.
    pub async fn private_only(server: Server) -> Self {
        let start = move || Self::start(&["--only", server.name()], Vec::new());
        tokio::task::spawn_blocking(start).await.expect("the server starts")
    }

    /// A broker of one's own with more lines in its `rabbitmq.conf`.
    pub async fn private_broker(lines: String) -> Self {
        let start = move || Self::start(&["--only", Server::RabbitMq.name()], vec![("RABBITMQ_CONF_EXTRA", lines)]);
        tokio::task::spawn_blocking(start).await.expect("the server starts")
    }

    /// A broker of one's own that is a node of `first`'s cluster, which it joins; without one, the first of its cluster.
    pub(crate) async fn cluster_node(first: Option<&Self>) -> Self {
        let directory = new_directory();
        let cluster = first.map_or(&directory, |first| &first.directory).display().to_string();
        let options = ["--only", Server::RabbitMq.name()];
        let start = move || Self::start_in(directory, &options, vec![("RABBITMQ_CLUSTER", cluster)]);
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

    /// Gives all of the broker's quorum queues a member on this node.
    pub async fn grow_queues(&self) {
        self.script(&["rabbitmq-queues", "--", "grow", &self.rabbitmq_node, "all"]).await;
    }

    /// All that Postgres has logged so far.
    #[must_use]
    pub fn postgres_log(&self) -> String {
        self.log_of(Server::Postgres)
    }

    /// All that RabbitMQ has logged so far.
    #[must_use]
    pub fn rabbitmq_log(&self) -> String {
        self.log_of(Server::RabbitMq)
    }

    fn log_of(&self, server: Server) -> String {
        let log = std::fs::read(self.directory.join(format!("log/{}.log", server.name()))).expect("a server has a log");
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Where Postgres itself is, whatever way `database_url` goes.
    #[must_use]
    pub fn postgres_address(&self) -> SocketAddr {
        self.postgres_address
    }

    async fn script(&self, arguments: &[&str]) {
        self.script_with(arguments, &[]).await;
    }

    pub(crate) async fn script_with(&self, arguments: &[&str], environment: &[(&str, &str)]) {
        let (command, options) = arguments.split_first().expect("a script's first argument is its command");
        let status = tokio::process::Command::new(script())
            .arg(command)
            .arg("--dir")
            .arg(&self.directory)
            .args(options)
            .stdout(Stdio::null())
            .env("POSTGRES_OPTIONS", POSTGRES_OPTIONS)
            .envs(BROKER_NAMES)
            .envs(self.environment.iter().map(|(name, value)| (*name, value)))
            .envs(environment.iter().copied())
            .status()
            .await
            .expect("scripts/servers can be run");
        assert!(status.success(), "scripts/servers {arguments:?} ended with {status}");
    }

    pub(crate) fn start(options: &[&str], environment: Vec<(&'static str, String)>) -> Self {
        Self::start_in(new_directory(), options, environment)
    }

    fn start_in(directory: PathBuf, options: &[&str], environment: Vec<(&'static str, String)>) -> Self {
        let mut holder = Command::new(script())
            .args(["hold", "--dir"])
            .arg(&directory)
            .args(options)
            .env("POSTGRES_OPTIONS", POSTGRES_OPTIONS)
            .envs(BROKER_NAMES)
            .envs(environment.iter().map(|(name, value)| (*name, value)))
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
                let database_url: String = take("DATABASE_URL");
                return Self {
                    postgres_address: address_of(&database_url),
                    database_url,
                    rabbitmq_url: take("RABBITMQ_URL"),
                    management_url: take("RABBITMQ_MANAGEMENT_URL"),
                    rabbitmq_node: take("RABBITMQ_NODE"),
                    template: OnceCell::new(),
                    directory,
                    environment,
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

/// The address of a server's URL.
pub(crate) fn address_of(url: &str) -> SocketAddr {
    let authority = url.split("//").nth(1).and_then(|rest| rest.split('/').next()).expect("a URL has a host");
    let host = authority.rsplit('@').next().expect("a split has a part");
    host.parse().expect("the servers' URLs have an address and a port")
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
