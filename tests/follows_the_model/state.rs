//! What the model consists of: jobs, their outbox rows, messages, attempts, and a relay's transaction. Pure.

use std::collections::BTreeSet;

use outbox::destination::breaker::State;
use outbox::job::states::Status;

/// Jobs in one case.
pub const JOBS: usize = 3;

/// Workers in one case.
pub const WORKERS: usize = 2;

/// A job, as its row says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    pub status: Status,
    pub attempt: i32,
    pub retry_count: i32,
    pub max_attempts: i32,
    /// Of no meaning unless processing.
    pub lease_expired: bool,
    /// Its ordering key.
    pub key: Option<u8>,
    /// Its outbox row.
    pub outbox_row: Option<OutboxRow>,
}

/// An outbox row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "columns of a row")]
pub struct OutboxRow {
    pub attempt: i32,
    pub published: bool,
    /// Of no meaning while it waits.
    pub due: bool,
    pub waits: Option<Waits>,
    pub turn: bool,
    pub released: bool,
}

/// A message in the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    pub job: usize,
    pub attempt: i32,
}

/// An attempt that a worker believes to be its own: it may have lost its lease long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub worker: usize,
    pub job: usize,
    pub number: i32,
    /// What is acked at its end.
    pub message: Task,
}

/// A relay's transaction over its publishing: the rows that it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    pub publishing: Vec<usize>,
    /// Rings, but its job is leased.
    pub waiting: Vec<usize>,
    /// Was lost, and its destination is sick: it is held.
    pub holding: Vec<usize>,
    /// Has a key and no turn: begins to wait for it.
    pub lining_up: Vec<usize>,
    /// Whether the broker has the messages.
    pub arrived: bool,
}

/// Everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    pub jobs: Vec<Job>,
    /// In no order: a message may be held back for as long as it likes.
    pub broker: Vec<Task>,
    pub under_way: Vec<Attempt>,
    pub turn: Option<Turn>,
    /// Rows to look at again, by job and attempt: their messages were dropped because of a lease or somebody's lock.
    pub checks: BTreeSet<(usize, i32)>,
    /// Keys whose next turn is to be given.
    pub lines: BTreeSet<u8>,
    /// The destination of all jobs.
    pub sickness: Sickness,
}

/// What a row of the outbox waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// An earlier one of its key.
    Turn,
    /// Its destination.
    Destination,
}

/// How the destination is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sickness {
    pub state: State,
    pub openings: i32,
}

impl Default for Sickness {
    fn default() -> Self {
        Self { state: State::Closed, openings: 0 }
    }
}

/// What a worker does with a batch of messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub claimed: Vec<Task>,
    /// Jobs whose leases hold, and the messages' attempts: their rows are looked at again.
    pub leased: Vec<(usize, i32)>,
    /// Jobs whose workers are lost: they are taken over.
    pub lost: Vec<usize>,
}

impl Turn {
    pub fn holds(&self, job: usize) -> bool {
        [&self.publishing, &self.waiting, &self.holding, &self.lining_up].iter().any(|jobs| jobs.contains(&job))
    }
}

impl Job {
    pub fn is_leased(&self) -> bool {
        self.status == Status::Processing && !self.lease_expired
    }

    pub fn has_no_turn(&self) -> bool {
        self.key.is_some() && self.outbox_row.is_some_and(|outbox_row| !outbox_row.turn)
    }

    pub fn rings_under_lease(&self) -> bool {
        self.is_leased() && self.outbox_row.is_some_and(|outbox_row| outbox_row.published)
    }

    pub fn claim(&mut self) {
        self.status = Status::Processing;
        self.attempt += 1;
        self.lease_expired = false;
    }
}
