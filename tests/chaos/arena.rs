//! What is broken: private servers, a stack behind proxies, and a flow of webhooks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use harness::broker::Wire;
use harness::invariants::Evidence;
use harness::load::Flow;
use harness::{Mode, PATIENCE, Process, Program, Servers, Stack, TcpProxy, invariants, wait_until};
use outbox::clock;
use outhook_check::Violation;
use time::OffsetDateTime;

use crate::Config;
use crate::report::Report;

/// The worker's time-out, and what its lease is longer.
pub const HTTP_TIMEOUT: Duration = Duration::from_secs(3);
pub const LEASE: Duration = Duration::from_secs(8);

/// More attempts than the faults can take: a webhook that fails is counted.
const MAX_RETRIES: u32 = 50;

/// After the last fault everything must be delivered by then: some leases and backoffs after each other.
const DRAIN_LIMIT: Duration = Duration::from_mins(3);

/// Parts of a run that must each have seen deliveries.
pub const PARTS: u32 = 3;

/// How receivers answer, in turn: most at once, some late, wrongly or not at all before they do.
const RECEIVERS: [&str; 8] = [
    "",
    "",
    "?delay_ms=30",
    "?fail_times=1",
    "",
    "?fail_times=2&status=503",
    "?fail_times=1&reset=1",
    "?fail_times=1&hang=1",
];

pub struct Arena {
    pub servers: Servers,
    pub stack: Stack,
    pub database: TcpProxy,
    pub broker: TcpProxy,
    pub wire: Wire,
    pub injected: BTreeMap<String, usize>,
    pub poison: u32,
    flow: Option<Flow>,
    began: OffsetDateTime,
}

impl Arena {
    pub async fn start(config: &Config) -> Self {
        let servers = Servers::private().await;
        let (database, _) = TcpProxy::before(&servers.database_url).await;
        let (broker, broker_url) = TcpProxy::before(&servers.rabbitmq_url).await;
        let stack = Stack::builder("chaos")
            .env("RABBITMQ_URL", &broker_url)
            .env("HTTP_CLIENT_TIMEOUT_SEC", &HTTP_TIMEOUT.as_secs().to_string())
            .env("MAX_RETRIES", &MAX_RETRIES.to_string())
            .database_through(&database)
            .relays(config.relays.into())
            .workers(config.workers.into())
            .start_on(&servers)
            .await;
        let wire = stack.listen().await;
        let urls = RECEIVERS.iter().map(|query| stack.receiver_url(query)).collect();
        let flow = Some(Flow::start(&stack.client, urls, config.rate));
        Self { servers, stack, database, broker, wire, injected: BTreeMap::new(), poison: 0, flow, began: clock::now() }
    }

    /// Ends one that did not expect it, and starts another without waiting for it.
    pub async fn replace(&mut self, program: Program) {
        let mut victim = self.stack.processes(program).remove(0);
        insist_on_life(&mut victim);
        victim.kill().await;
        self.stack.spawn(program).await;
    }

    /// A new broker has no exchange until a relay has declared it.
    pub async fn await_exchange(&self) {
        wait_until("a relay to declare the exchange", PATIENCE, async || self.stack.broker.has_exchange().await).await;
    }

    /// Ends every fault, and returns how long it took until everything was delivered.
    pub async fn heal_and_drain(&mut self) -> Duration {
        self.database.set(Mode::Forward);
        self.broker.set(Mode::Forward);
        let healed = Instant::now();
        let flow = self.flow.take().expect("it is taken once");
        flow.stop().await;
        self.stack.wait_until_drained(DRAIN_LIMIT).await;
        healed.elapsed()
    }

    /// Compares what was promised with what is there.
    pub async fn judge(&mut self, seed: u64, faults_lasted: Duration, drained: Duration) -> Report {
        for program in [Program::Api, Program::Relay, Program::Worker] {
            self.stack.processes(program).iter_mut().for_each(insist_on_life);
        }
        let accepted: BTreeSet<_> = self.stack.client.accepted().iter().map(|it| it.job_id).collect();
        let received = self.stack.receiver.received();
        let taken: Vec<_> = received.iter().filter(|it| it.answered_success()).collect();
        let delivered: BTreeSet<_> = taken.iter().filter_map(|it| it.job_id.as_deref()).collect();
        let posts: BTreeSet<_> = received.iter().map(|it| (&it.job_id, it.attempt)).collect();
        let lost = accepted.iter().filter(|id| !delivered.contains(id.to_string().as_str())).count();
        let count = async |statement| self.stack.count(statement).await;
        Report {
            seed,
            faults_lasted,
            injected: self.injected.clone(),
            accepted: accepted.len(),
            lost,
            failed: count("SELECT count(*) FROM webhook_jobs WHERE status = 'failed'").await,
            attempts_run_twice: received.len() - posts.len(),
            messages: self.wire.messages(),
            duplicate_messages: self.wire.duplicates(),
            posts: received.len(),
            duplicate_posts: taken.len() - delivered.len(),
            unknown_attempts: count("SELECT count(*) FROM webhook_attempts WHERE outcome = 'unknown'").await,
            timed_out: count("SELECT count(*) FROM webhook_attempts WHERE error LIKE 'no answer within%'").await,
            idle_parts: self.idle_parts(faults_lasted),
            drained,
            recovery: Vec::new(),
            violations: self.check().await,
        }
    }

    pub async fn check(&self) -> Vec<Violation> {
        let (accepted, received) = (self.stack.client.accepted(), self.stack.receiver.received());
        let evidence = Evidence { accepted: &accepted, received: &received, max_retries: MAX_RETRIES };
        invariants::check(self.stack.pool(), evidence).await
    }

    /// Parts of the run in which nothing was delivered: a system that stood still would lose nothing either.
    fn idle_parts(&self, faults_lasted: Duration) -> usize {
        let received = self.stack.receiver.received();
        let part = faults_lasted / PARTS;
        let idle = |number: &u32| {
            let (from, to) = (self.began + part * *number, self.began + part * (number + 1));
            !received.iter().any(|it| it.answered_success() && it.at >= from && it.at < to)
        };
        (0..PARTS).filter(idle).count()
    }
}

/// Nothing but a kill may end a process.
pub fn insist_on_life(process: &mut Process) {
    let ended = process.has_ended();
    assert!(ended.is_none(), "{} ended by itself with {ended:?}:\n{}", process.name(), process.log());
}
