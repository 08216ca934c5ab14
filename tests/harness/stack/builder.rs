//! How a stack is set up and started.

use std::net::{Ipv4Addr, SocketAddr};

use receiver::Receiver;
use uuid::Uuid;

use crate::broker::{Broker, Names};
use crate::database::Database;
use crate::environment::{self, Environment, Secrets};
use crate::servers::free_port;
use crate::{Client, Servers, Stack, TcpProxy, name};

/// How a stack is set up.
pub struct StackBuilder {
    /// The running test's, unless said.
    name: Option<String>,
    database_at: Option<String>,
    database_parameters: String,
    database_direct: bool,
    database_role: Option<&'static str>,
    receiver_verifies: bool,
    relays: usize,
    workers: usize,
    common: Environment,
    relay: Environment,
    worker: Environment,
    rewrite: Rewrite,
}

/// Says the variables of a process in another way.
pub(super) type Rewrite = Box<dyn Fn(Environment) -> Environment + Send + Sync>;

impl StackBuilder {
    pub(super) fn new() -> Self {
        Self {
            name: None,
            database_at: None,
            database_parameters: String::new(),
            database_direct: false,
            database_role: None,
            receiver_verifies: true,
            relays: 1,
            workers: 1,
            common: Environment::new(),
            relay: Environment::new(),
            worker: Environment::new(),
            rewrite: Box::new(|environment| environment),
        }
    }

    /// What its database, queue and logs are called, where it is not the test's only stack or there is no test.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// How many relays start with it; 1 unless said.
    #[must_use]
    pub fn relays(mut self, count: usize) -> Self {
        self.relays = count;
        self
    }

    /// How many workers start with it; 1 unless said.
    #[must_use]
    pub fn workers(mut self, count: usize) -> Self {
        self.workers = count;
        self
    }

    /// A variable of every service.
    #[must_use]
    pub fn env(mut self, name: &'static str, value: &str) -> Self {
        self.common.insert(name, value.to_owned());
        self
    }

    /// A variable of the relays, instead of the common one.
    #[must_use]
    pub fn relay_env(mut self, name: &'static str, value: &str) -> Self {
        self.relay.insert(name, value.to_owned());
        self
    }

    /// A variable of the workers, instead of the common one.
    #[must_use]
    pub fn worker_env(mut self, name: &'static str, value: &str) -> Self {
        self.worker.insert(name, value.to_owned());
        self
    }

    /// Every process is given its variables as `rewrite` says them.
    #[must_use]
    pub fn rewrite(mut self, rewrite: impl Fn(Environment) -> Environment + Send + Sync + 'static) -> Self {
        self.rewrite = Box::new(rewrite);
        self
    }

    /// The services reach the database through this proxy; the test itself does not.
    #[must_use]
    pub fn database_through(self, proxy: &TcpProxy) -> Self {
        self.database_at(&proxy.address().to_string())
    }

    /// The services reach the database at this host, or at one of several; the test itself does not.
    #[must_use]
    pub fn database_at(mut self, hosts: &str) -> Self {
        self.database_at = Some(hosts.to_owned());
        self
    }

    /// What the services' URL of the database has behind its question mark.
    #[must_use]
    pub fn database_parameters(mut self, parameters: &str) -> Self {
        self.database_parameters = format!("?{parameters}");
        self
    }

    /// What needs a session of its own goes straight to the database.
    #[must_use]
    pub fn database_direct(mut self) -> Self {
        self.database_direct = true;
        self
    }

    /// The services share a user of this name, which is made for them: its connections can be limited without
    /// limiting those of other tests.
    #[must_use]
    pub fn database_role(mut self, role: &'static str) -> Self {
        self.database_role = Some(role);
        self
    }

    /// The receiver only sees that it is signed: the test has keys of its own, and verifies itself.
    #[must_use]
    pub fn receiver_without_key(mut self) -> Self {
        self.receiver_verifies = false;
        self
    }

    /// Starts all of it, and returns when every process is ready.
    pub async fn start(self) -> Stack {
        self.start_on(Servers::shared().await).await
    }

    /// The same on a pair of servers of the test's own.
    pub async fn start_on(self, servers: &Servers) -> Stack {
        self.start_between(servers, servers).await
    }

    /// The same with Postgres of the one pair and RabbitMQ of the other.
    pub async fn start_between(self, postgres: &Servers, rabbitmq: &Servers) -> Stack {
        let name = self.name.unwrap_or_else(name::of_this_test);
        let database = Database::named(postgres, &name).await;
        let prefix = format!("{name}_{}", Uuid::new_v4().simple());
        let names = Names {
            exchange: format!("{prefix}.exchange"),
            queue: format!("{prefix}.jobs"),
            routing_key: format!("{prefix}.key"),
        };
        let secrets = Secrets::new();
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let key = self.receiver_verifies.then_some(secrets.signing.as_str());
        let receiver = Receiver::start(loopback, key).await.expect("loopback has free ports");
        let port = free_port();
        let mut common = environment::common(&rabbitmq.rabbitmq_url, &database, &names, &secrets, port);
        if let Some(hosts) = &self.database_at {
            common.insert("DATABASE_URL", database.url_at(hosts) + &self.database_parameters);
        }
        if self.database_direct {
            common.insert("DATABASE_DIRECT_URL", database.url.clone());
        }
        if let Some(role) = self.database_role {
            common.insert("DATABASE_URL", database.url_of_new_user(role).await);
        }
        common.extend(self.common);
        let url = format!("http://127.0.0.1:{port}");
        let mut stack = Stack {
            client: Client::new(url, secrets.hmac, secrets.token),
            receiver,
            broker: Broker::connect(&rabbitmq.rabbitmq_url, names).await,
            apis: Vec::new(),
            relays: Vec::new(),
            workers: Vec::new(),
            database,
            name,
            common,
            relay: self.relay,
            worker: self.worker,
            rewrite: self.rewrite,
            processes_started: 0,
            heard: true,
        };
        stack.start_api().await;
        for _ in 0..self.relays {
            stack.start_relay().await;
        }
        for _ in 0..self.workers {
            stack.start_worker().await;
        }
        stack
    }
}
