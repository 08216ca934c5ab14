//! Which faults come when. Pure: the same seed gives the same plan.

use std::time::Duration;

use harness::Program;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};

/// A kind of fault; `name` is what the report calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL at any moment, and a new process.
    Kill(Program),
    /// SIGKILL in the middle of a transaction or between two steps, and a new process.
    KillAtPoint(Program),
    /// SIGSTOP, and SIGCONT later: perhaps after its lease.
    Pause(Program),
    /// Every connection to this server is reset.
    Reset(Server),
    /// The same after some bytes, in the middle of a frame.
    Cut(Server),
    /// Nothing passes, either way.
    Stall(Server),
    /// What the broker says is lost: confirms and deliveries.
    LoseConfirms,
    /// Every session of the services is ended by an administrator.
    TerminateSessions,
    /// One of them.
    TerminateSession,
    /// Messages come twice, and old ones again.
    RepeatMessages,
    /// Messages that nobody can read.
    Poison,
    /// The queue is deleted with all that is in it.
    DeleteQueue,
    /// The broker is short of memory and blocks its publishers.
    BlockBroker,
    /// The broker stops to answer, and keeps its connections.
    PauseBroker,
    /// The broker is stopped in good order, and started.
    RestartBroker,
    /// The broker is killed, and started.
    KillBroker,
    /// The broker is stopped, its data deleted, and started.
    WipeBroker,
    /// Postgres is killed, and started.
    CrashPostgres,
}

/// What the proxies stand before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    Postgres,
    RabbitMq,
}

const ALL: [Fault; 26] = [
    Fault::Kill(Program::Api),
    Fault::Kill(Program::Relay),
    Fault::Kill(Program::Worker),
    Fault::KillAtPoint(Program::Api),
    Fault::KillAtPoint(Program::Relay),
    Fault::KillAtPoint(Program::Worker),
    Fault::Pause(Program::Relay),
    Fault::Pause(Program::Worker),
    Fault::Reset(Server::Postgres),
    Fault::Reset(Server::RabbitMq),
    Fault::Cut(Server::Postgres),
    Fault::Cut(Server::RabbitMq),
    Fault::Stall(Server::Postgres),
    Fault::Stall(Server::RabbitMq),
    Fault::LoseConfirms,
    Fault::TerminateSessions,
    Fault::TerminateSession,
    Fault::RepeatMessages,
    Fault::Poison,
    Fault::DeleteQueue,
    Fault::BlockBroker,
    Fault::PauseBroker,
    Fault::RestartBroker,
    Fault::KillBroker,
    Fault::WipeBroker,
    Fault::CrashPostgres,
];

/// Points that ordinary traffic passes; `tests/survives_kill_points.rs` has all of them.
const API_POINTS: [&str; 3] = ["api.before_commit", "api.in_commit", "api.after_commit"];
const RELAY_POINTS: [&str; 7] = [
    "relay.after_turns",
    "relay.after_claim",
    "relay.between_publishes",
    "relay.after_last_publish",
    "relay.before_mark",
    "relay.in_commit",
    "relay.after_commit",
];
const WORKER_POINTS: [&str; 6] = [
    "worker.in_claim",
    "worker.after_claim",
    "worker.before_post",
    "worker.after_post",
    "worker.in_settle",
    "worker.before_ack",
];

/// One fault and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// How long all is left alone before.
    pub wait: Duration,
    pub fault: Fault,
    /// How long it lasts, if it is one that lasts.
    pub lasts: Duration,
    /// What is killed while it lasts, so that two faults meet.
    pub kill_meanwhile: Option<Program>,
    /// Where a process ends that ends at a point, and at which passage.
    pub point: &'static str,
    pub passage: u32,
    /// Bytes before a cut; copies of messages.
    pub amount: u64,
}

/// Before every so manieth fault all is left alone for so long that whatever can move must have moved.
const QUIET_EVERY: u32 = 4;

/// Faults without end: every kind once in a random order, then all again in another.
pub struct Plan {
    random: StdRng,
    round: Vec<Fault>,
    steps: u32,
}

impl Plan {
    pub fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed), round: Vec::new(), steps: 0 }
    }
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.round.is_empty() {
            self.round = ALL.to_vec();
            self.round.shuffle(&mut self.random);
        }
        let fault = self.round.pop()?;
        let random = &mut self.random;
        let point = match fault {
            Fault::KillAtPoint(Program::Api) => API_POINTS.choose(random),
            Fault::KillAtPoint(Program::Relay) => RELAY_POINTS.choose(random),
            _ => WORKER_POINTS.choose(random),
        };
        self.steps += 1;
        let wait = if self.steps.is_multiple_of(QUIET_EVERY) { 8_000..10_000 } else { 100..1_500 };
        let programs = [None, None, Some(Program::Api), Some(Program::Relay), Some(Program::Worker)];
        Some(Step {
            wait: Duration::from_millis(random.random_range(wait)),
            fault,
            lasts: lasts(fault, random),
            kill_meanwhile: programs.choose(random).copied().flatten(),
            point: point.copied().unwrap_or_default(),
            passage: random.random_range(1..6),
            amount: random.random_range(1..8_000),
        })
    }
}

/// Short ones are lived through, long ones outlast time-outs and leases.
fn lasts(fault: Fault, random: &mut StdRng) -> Duration {
    let longest = match fault {
        Fault::Pause(_) | Fault::PauseBroker => 12_000,
        Fault::Stall(_) | Fault::LoseConfirms | Fault::BlockBroker => 8_000,
        _ => 1_000,
    };
    Duration::from_millis(random.random_range(200..longest))
}

impl Fault {
    /// Whether anything may stand still for it. What one of two does the other does as well, and what somebody makes of
    /// messages or of one session is nobody's reason.
    pub fn is_excuse(self, has_others: bool) -> bool {
        match self {
            Self::Kill(Program::Api) | Self::TerminateSession | Self::RepeatMessages | Self::Poison => false,
            Self::Kill(_) => !has_others,
            _ => true,
        }
    }

    /// What the report calls it.
    pub fn name(self) -> String {
        let of = |program: Program| format!("{program:?}").to_lowercase();
        match self {
            Self::Kill(program) => format!("{} killed", of(program)),
            Self::KillAtPoint(program) => format!("{} killed at a kill point", of(program)),
            Self::Pause(program) => format!("{} paused", of(program)),
            Self::Reset(server) => format!("connections to {server:?} reset"),
            Self::Cut(server) => format!("connections to {server:?} cut in a frame"),
            Self::Stall(server) => format!("network to {server:?} stalled"),
            Self::LoseConfirms => "answers of RabbitMq lost".to_owned(),
            Self::TerminateSessions => "sessions of Postgres ended".to_owned(),
            Self::TerminateSession => "one session of Postgres ended".to_owned(),
            Self::RepeatMessages => "messages repeated, old ones too".to_owned(),
            Self::Poison => "unreadable messages".to_owned(),
            Self::DeleteQueue => "queue deleted".to_owned(),
            Self::BlockBroker => "RabbitMq short of memory".to_owned(),
            Self::PauseBroker => "RabbitMq paused".to_owned(),
            Self::RestartBroker => "RabbitMq restarted".to_owned(),
            Self::KillBroker => "RabbitMq killed".to_owned(),
            Self::WipeBroker => "RabbitMq wiped".to_owned(),
            Self::CrashPostgres => "Postgres killed".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_is_a_plan_and_a_round_has_every_fault() {
        let plan = |seed| Plan::new(seed).take(ALL.len()).collect::<Vec<_>>();
        assert_eq!(plan(1), plan(1));
        assert_ne!(plan(1), plan(2));
        let kinds: BTreeSet<String> = plan(3).iter().map(|step| step.fault.name()).collect();
        assert_eq!(kinds.len(), ALL.len());
    }
}
