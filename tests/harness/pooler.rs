//! `PgBouncer` between the services and Postgres.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::Servers;
use crate::database::{OWNER_NAME, ROLES};
use crate::servers::free_port;
use crate::wait::{PATIENCE, wait_until};

/// For how long a client has a connection to the server of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    /// Until it leaves.
    Session,
    /// Until its transaction ends; the next one may have another.
    Transaction,
}

impl PoolMode {
    fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Transaction => "transaction",
        }
    }
}

/// A pooler before the Postgres of a pair. It ends when this is dropped.
pub struct Pooler {
    address: SocketAddr,
    files: TempDir,
    process: Child,
}

impl Pooler {
    /// Starts one with the defaults of its package, but for `settings`, lines as in `pgbouncer.ini`.
    pub async fn start(servers: &Servers, mode: PoolMode, settings: &str) -> Self {
        let files = tempfile::tempdir().expect("there is room for temporary files");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let configuration = configuration(address.port(), servers.postgres_address(), mode, settings);
        for (name, text) in [("pgbouncer.ini", configuration), ("users.txt", users())] {
            std::fs::write(files.path().join(name), text).expect("there is room for it");
        }
        let everybody = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(files.path(), everybody).expect("it is the test's own");
        let process = spawn(&files);
        let pooler = Self { address, files, process };
        pooler.wait_until_it_listens().await;
        pooler
    }

    async fn wait_until_it_listens(&self) {
        let listens = async || TcpStream::connect(self.address).await.is_ok();
        wait_until("PgBouncer to listen", PATIENCE, listens).await;
    }

    /// Ends it as a crash would, by SIGKILL.
    pub async fn kill(&mut self) {
        self.process.kill().await.expect("it runs");
    }

    /// Starts it again, where it was.
    pub async fn start_again(&mut self) {
        self.process = spawn(&self.files);
        self.wait_until_it_listens().await;
    }

    /// Lends for another time from now on, also to those that are connected.
    pub fn change_mode(&self, mode: PoolMode) {
        let path = self.files.path().join("pgbouncer.ini");
        let configuration = std::fs::read_to_string(&path).expect("it was written");
        let lines = configuration.lines().map(|line| match line.strip_prefix("pool_mode = ") {
            Some(_) => format!("pool_mode = {}\n", mode.name()),
            None => format!("{line}\n"),
        });
        std::fs::write(path, lines.collect::<String>()).expect("there is room for it");
        let pid = self.process.id().and_then(|id| Pid::from_raw(id.cast_signed())).expect("it runs");
        kill_process(pid, Signal::HUP).expect("it is the test's own");
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of any database of the pair, by way of the pooler.
    #[must_use]
    pub fn url(&self, servers: &Servers, url: &str) -> String {
        url.replace(&servers.postgres_address().to_string(), &self.address.to_string())
    }

    /// All that it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.files.path().join(LOG)).expect("it has a log")
    }
}

const LOG: &str = "pgbouncer.log";

fn spawn(files: &TempDir) -> Child {
    let log = OpenOptions::new().append(true).create(true).open(files.path().join(LOG)).expect("there is room for it");
    let mut command = unprivileged();
    command.arg("pgbouncer.ini").current_dir(files.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.kill_on_drop(true).spawn().expect("scripts/test installs pgbouncer")
}

/// It refuses to be run by root.
fn unprivileged() -> Command {
    let mut command = Command::new("pgbouncer");
    if rustix::process::geteuid().is_root() {
        command = Command::new("setpriv");
        command.args(["--reuid", "postgres", "--regid", "postgres", "--init-groups", "--", "pgbouncer"]);
    }
    // Debian keeps servers out of an ordinary user's PATH.
    command.env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()));
    command
}

/// Nobody needs a password, as Postgres asks for none, but it must know each user. The names of those that a test
/// makes it asks Postgres for.
fn configuration(port: u16, postgres: SocketAddr, mode: PoolMode, settings: &str) -> String {
    format!(
        "[databases]
* = host={} port={}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = users.txt
auth_user = {OWNER_NAME}
pool_mode = {}
{settings}
",
        postgres.ip(),
        postgres.port(),
        mode.name()
    )
}

fn users() -> String {
    let mut users = format!("\"{OWNER_NAME}\" \"\"\n");
    for role in ROLES {
        let _ = writeln!(users, "\"outhook_{role}_login\" \"\"");
    }
    users
}
