//! What is broken: private servers, a stack behind proxies, and a flow of webhooks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use harness::broker::Wire;
use harness::invariants::Evidence;
use harness::load::Flow;
use harness::{Mode, PATIENCE, Process, Program, Servers, Stack, TcpProxy, invariants, look_for, wait_until};
use outbox::service::clock;
use outhook_check::Violation;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use time::OffsetDateTime;

use crate::Config;
use crate::excuses::Excuses;
use crate::gate::Gate;
use crate::load::{Caller, Keyed, KeyedLoad};
use crate::outsiders::{Deeds, Outsiders};
use crate::plan::Fault;
use crate::watch::{Seen, Watch};

/// The worker's time-out, and what its lease is longer.
pub const HTTP_TIMEOUT: Duration = Duration::from_secs(3);
pub const LEASE: Duration = Duration::from_secs(8);

/// More attempts than the faults can take: a webhook that fails is counted.
const MAX_RETRIES: u32 = 100;

/// After the last fault everything must be delivered by then: some leases and backoffs after each other.
const DRAIN_LIMIT: Duration = Duration::from_mins(3);

/// How receivers answer, in turn: most at once, some late, wrongly or not at all before they do. None asks to slow down:
/// who does that gets a webhook or two a second from then on, which would be all of the load.
const RECEIVERS: [&str; 8] =
    ["", "", "?delay_ms=30", "?fail_times=1", "", "?fail_times=2", "?fail_times=1&reset=1", "?fail_times=1&hang=1"];

/// The same of webhooks with a key, one at random each time: the next ones wait for each.
const RECEIVERS_OF_KEYS: [&str; 16] = [
    "",
    "",
    "",
    "",
    "",
    "",
    "",
    "?delay_ms=30",
    "?delay_ms=30",
    "?delay_ms=100",
    "?delay_ms=300",
    "?fail_times=1",
    "?fail_times=1",
    "?fail_times=1",
    "?fail_times=2",
    "?delay_ms=5",
];

pub struct Arena {
    pub servers: Servers,
    pub stack: Stack,
    pub database: TcpProxy,
    pub broker: TcpProxy,
    pub wire: Wire,
    pub injected: BTreeMap<String, usize>,
    pub poison: u32,
    pub excuses: Excuses,
    pub began: OffsetDateTime,
    /// A destination that is limited at times.
    pub limited: Arc<Gate>,
    /// One that falls sick at times: open for as long as anything may be on its way.
    _sick: Arc<Gate>,
    pub known: Known,
    load: Option<Load>,
}

/// What ends with the faults.
struct Load {
    flow: Flow,
    keyed: KeyedLoad,
    outsiders: Outsiders,
    watch: Watch,
}

/// What is known of the load once it has ended.
#[derive(Default)]
pub struct Known {
    pub keyed: Vec<Keyed>,
    pub deeds: Deeds,
    pub seen: Seen,
    /// Whether all was finished in time.
    pub is_drained: bool,
}

impl Arena {
    pub async fn start(config: &Config, seed: u64) -> Self {
        let servers = Servers::private().await;
        let (database, _) = TcpProxy::before(&servers.database_url).await;
        let (broker, broker_url) = TcpProxy::before(&servers.rabbitmq_url).await;
        let stack = Stack::builder()
            .named("chaos")
            .env("RABBITMQ_URL", &broker_url)
            .env("HTTP_CLIENT_TIMEOUT_SEC", &HTTP_TIMEOUT.as_secs().to_string())
            .env("MAX_RETRIES", &MAX_RETRIES.to_string())
            .env("BREAKER_FAILURES", "10")
            .database_through(&database)
            .relays(config.relays.into())
            .workers(config.workers.into())
            .start_on(&servers)
            .await;
        let wire = stack.listen().await;
        let receiver = stack.receiver.url("");
        let receiver = receiver.trim_end_matches('/');
        let (sick, limited) = (Arc::new(Gate::open(receiver).await), Arc::new(Gate::open(receiver).await));
        let excuses = Excuses::new();
        // Of their own: those of the harness are for the faults.
        let pool = PgPoolOptions::new().max_connections(20).connect_lazy(stack.database_url());
        let pool = pool.expect("the URL is one");
        let load = Some(Load::start(&stack, &pool, &sick, &limited, &excuses, config.rate, seed));
        let (injected, known, began) = (BTreeMap::new(), Known::default(), clock::now());
        Self {
            servers,
            stack,
            database,
            broker,
            wire,
            injected,
            poison: 0,
            excuses,
            began,
            limited,
            _sick: sick,
            known,
            load,
        }
    }

    /// Whether others do the same as the one that this is about.
    pub fn has_others(&mut self, fault: Fault) -> bool {
        matches!(fault, Fault::Kill(program) if self.stack.processes(program).len() > 1)
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
        let load = self.load.take().expect("it is taken once");
        load.flow.stop().await;
        self.known.keyed = load.keyed.stop().await;
        self.known.deeds = load.outsiders.stop().await;
        let drained = async || (self.stack.unfinished().await == 0).then_some(());
        self.known.is_drained = look_for(DRAIN_LIMIT, drained).await.is_some();
        let took = healed.elapsed();
        self.known.seen = load.watch.stop().await;
        took
    }

    pub async fn check(&self) -> Vec<Violation> {
        let (accepted, received) = (self.stack.client.accepted(), self.stack.receiver.received());
        let evidence = Evidence { accepted: &accepted, received: &received, max_retries: MAX_RETRIES };
        invariants::check(self.stack.pool(), evidence).await
    }
}

impl Load {
    fn start(
        stack: &Stack,
        pool: &PgPool,
        sick: &Arc<Gate>,
        limited: &Arc<Gate>,
        excuses: &Excuses,
        rate: u32,
        seed: u64,
    ) -> Self {
        let mut urls: Vec<String> = RECEIVERS.iter().map(|query| stack.receiver_url(query)).collect();
        urls.extend([sick.url(""), limited.url("")]);
        let gates = vec![Arc::clone(sick), Arc::clone(limited)];
        Self {
            flow: Flow::start(&stack.client, urls, rate),
            keyed: KeyedLoad::start(&stack.client, pool, callers(stack, sick, limited), seed),
            outsiders: Outsiders::start(pool, sick, limited, excuses, seed),
            watch: Watch::start(pool, gates, excuses),
        }
    }
}

/// The same key is another one at another destination.
fn callers(stack: &Stack, sick: &Gate, limited: &Gate) -> Vec<Caller> {
    let well = stack.receiver_url("").trim_end_matches("/hook").to_owned();
    let caller = |destination: &str, key, from_sql| Caller {
        key,
        destination: destination.to_owned(),
        urls: RECEIVERS_OF_KEYS.iter().map(|query| format!("{destination}/hook{query}")).collect(),
        from_sql,
    };
    let (sick, limited) = (sick.destination(), limited.destination());
    vec![
        caller(&well, "a", false),
        caller(&well, "b", false),
        caller(&well, "c", false),
        caller(&well, "d", true),
        caller(&well, "d", true),
        caller(&well, "e", true),
        caller(&sick, "a", false),
        caller(&sick, "f", true),
        caller(&sick, "f", true),
        caller(&limited, "a", false),
    ]
}

/// Nothing but a kill may end a process.
pub fn insist_on_life(process: &mut Process) {
    let ended = process.has_ended();
    assert!(ended.is_none(), "{} ended by itself with {ended:?}:\n{}", process.name(), process.log());
}
