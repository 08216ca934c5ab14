//! The whole of Outhook for one test: its own database, queue, processes and receiver.

mod counts;

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use receiver::{Received, Receiver};
use sqlx::PgPool;
use uuid::Uuid;

use crate::broker::{Broker, Names, Wire};
use crate::database::Database;
pub use crate::environment::Environment;
use crate::environment::{self, Secrets};
use crate::invariants::{self, Evidence};
use crate::processes::{Process, Program};
use crate::servers::free_port;
use crate::wait::{PATIENCE, wait_until};
use crate::{Accepted, Client, Servers, TcpProxy, name};

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
type Rewrite = Box<dyn Fn(Environment) -> Environment + Send + Sync>;

impl StackBuilder {
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
    rewrite: Rewrite,
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
        StackBuilder {
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

    /// A variable of all services that are started from here on.
    pub fn set_env(&mut self, name: &'static str, value: &str) {
        self.common.insert(name, value.to_owned());
    }

    /// A variable of the workers that are started from here on.
    pub fn set_worker_env(&mut self, name: &'static str, value: &str) {
        self.worker.insert(name, value.to_owned());
    }

    /// Starts an api, and returns when it is ready.
    pub async fn start_api(&mut self) {
        let mut api = self.start_process(Program::Api, &Environment::new()).await;
        api.wait_for_word("ready").await;
        self.wait_until_ready().await;
        self.apis.push(api);
    }

    /// Waits until the api says that it accepts webhooks.
    pub async fn wait_until_ready(&self) {
        let probe = self.client.get("/ready");
        wait_until("GET /ready to answer 200", PATIENCE, async || {
            let probe = probe.try_clone().expect("a GET can be repeated");
            probe.send().await.is_ok_and(|response| response.status().is_success())
        })
        .await;
    }

    /// Starts one more relay, and returns when it publishes.
    pub async fn start_relay(&mut self) {
        let mut relay = self.start_process(Program::Relay, &self.relay.clone()).await;
        relay.wait_for_word("ready").await;
        self.relays.push(relay);
    }

    /// Starts one more worker, and returns when it consumes.
    pub async fn start_worker(&mut self) {
        let mut worker = self.start_process(Program::Worker, &self.worker.clone()).await;
        worker.wait_for_word("ready").await;
        self.workers.push(worker);
    }

    /// Starts one more service, and does not wait until it is ready: nothing it needs may be there.
    pub async fn spawn(&mut self, program: Program) {
        let process = self.start_process(program, &self.own(program)).await;
        self.processes(program).push(process);
    }

    /// The same with its log into `log`, where the test reads it or nobody.
    pub async fn spawn_into(&mut self, program: Program, log: impl Into<Stdio>) {
        let process = self.start_process_into(program, &self.own(program), log.into()).await;
        self.processes(program).push(process);
    }

    /// The services of one program.
    pub fn processes(&mut self, program: Program) -> &mut Vec<Process> {
        match program {
            Program::Relay => &mut self.relays,
            Program::Worker => &mut self.workers,
            _ => &mut self.apis,
        }
    }

    fn own(&self, program: Program) -> Environment {
        match program {
            Program::Relay => self.relay.clone(),
            Program::Worker => self.worker.clone(),
            _ => Environment::new(),
        }
    }

    /// Starts a process that ends by SIGKILL when it passes this kill point for the n-th time, which may be
    /// before it is ready.
    pub async fn start_doomed(&mut self, program: Program, kill_point: &str, passage: u32) -> Process {
        self.start_with(program, "KILL_AT", format!("{kill_point}:{passage}")).await
    }

    /// Starts a process that stops there by SIGSTOP instead.
    pub async fn start_that_stops(&mut self, program: Program, kill_point: &str, passage: u32) -> Process {
        self.start_with(program, "STOP_AT", format!("{kill_point}:{passage}")).await
    }

    async fn start_with(&mut self, program: Program, variable: &'static str, value: String) -> Process {
        let mut own = self.own(program);
        own.insert(variable, value);
        self.start_process(program, &own).await
    }

    async fn start_process(&mut self, program: Program, own: &Environment) -> Process {
        self.start_process_into(program, own, Stdio::piped()).await
    }

    async fn start_process_into(&mut self, program: Program, own: &Environment, log: Stdio) -> Process {
        self.processes_started += 1;
        let name = format!("{}-{program:?}-{}", self.name, self.processes_started).to_lowercase();
        let mut environment = self.common.clone();
        environment.insert("METRICS_ADDR", format!("127.0.0.1:{}", free_port()));
        environment.extend(own.clone());
        let environment = (self.rewrite)(environment::with_own_users(environment, program));
        let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Process::start_into(name, program, &environment, log).await
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

    /// Waits until every job is finished.
    pub async fn wait_until_drained(&self, timeout: Duration) {
        wait_until("every job to be finished", timeout, async || self.unfinished().await == 0).await;
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

    /// Cancels what is not finished, until nothing is under way any more: the end of a test that has seen enough.
    pub async fn cancel_the_rest(&self) {
        let cancel = "SELECT count(outhook.cancel(id))
            FROM (SELECT id FROM webhook_jobs WHERE status = 'pending' LIMIT 1000) AS jobs";
        wait_until("the rest to be cancelled", PATIENCE, async || {
            // Who is in the way of services, as so many at once may be, gives up and tries again.
            let _: Result<i64, _> = sqlx::query_scalar(cancel).fetch_one(self.pool()).await;
            self.unfinished().await == 0
        })
        .await;
    }

    /// The end of a good test: waits for quiet, checks every invariant, stops all in order and tidies up.
    pub async fn finish(self) {
        self.finish_with_dead_letters(0).await;
    }

    /// The same for a test whose webhooks went to servers of its own: what those answered is the test's to check.
    pub async fn finish_unheard(mut self) {
        self.heard = false;
        self.finish().await;
    }

    /// The same for a test that put so many unreadable messages into the queue.
    pub async fn finish_with_dead_letters(mut self, dead: u32) {
        self.wait_until_drained(PATIENCE).await;
        wait_until("the queue to be empty", PATIENCE, async || self.broker.ready().await == 0).await;
        self.assert_invariants().await;
        for process in self.apis.iter_mut().chain(&mut self.relays).chain(&mut self.workers) {
            process.terminate().await;
        }
        // With the workers gone, what they held without an ack is back in the queue.
        assert_eq!(self.broker.ready().await, 0, "I12: messages are left in the queue");
        assert_eq!(self.broker.dead().await, dead, "I12: dead letters");
        self.broker.delete().await;
        self.database.drop().await;
    }

    /// The end of a test that leaves a backlog on purpose: nothing is waited for, and nothing checked.
    pub async fn abandon(mut self) {
        for process in self.apis.iter_mut().chain(&mut self.relays).chain(&mut self.workers) {
            process.kill().await;
        }
        self.broker.delete().await;
        self.database.drop().await;
    }

    /// Checks every invariant; all jobs must be finished.
    pub async fn assert_invariants(&self) {
        let (accepted, received) = (self.client.accepted(), self.receiver.received());
        let max_retries = self.common["MAX_RETRIES"].parse().expect("MAX_RETRIES is a number");
        let evidence = Evidence { accepted: &accepted, received: &received, max_retries };
        if self.heard {
            invariants::assert_hold(self.pool(), evidence).await;
        } else {
            invariants::assert_hold_unheard(self.pool(), evidence).await;
        }
    }
}
