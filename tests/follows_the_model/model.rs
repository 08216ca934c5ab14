//! The model: what a few jobs, their outbox rows and the broker become, step by step. Pure.
//!
//! Time stands still in it: what is due, and what lease has expired, changes by steps of their own. So any
//! wait may end at any moment, as it may for processes that are slow or were paused.

use outbox::destination::breaker::{Finding, State};
use outbox::job::states::{Status, Verdict};

use super::state::{Attempt, Batch, Job, OutboxRow, Task, Turn, Waits, World};

/// How a relay's turn ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnEnd {
    /// The broker confirmed: the rows are marked.
    Confirmed,
    /// It refused, or its answer did not come.
    Unconfirmed,
    /// The relay was killed.
    Killed,
}

/// What can happen. Jobs, messages and attempts are named by their place in the [`World`].
#[derive(Clone, Debug)]
pub enum Step {
    Accept { scheduled: bool, max_attempts: i32, key: Option<u8> },
    RelayPublishes { arrives: bool },
    RelayEnds(TurnEnd),
    RelayChecks,
    RelayGivesTurns,
    RelayHolds,
    RelayLooks,
    RelayFreesStrays,
    GiveBack { message: usize },
    Report(Finding),
    ClosedByHand,
    Duplicate { message: usize },
    Deliver { worker: usize, messages: Vec<usize>, answer_lost: bool },
    Settle { attempt: usize, verdict: Verdict, retry_at_once: bool, twice: bool },
    Crash { worker: usize },
    LeaseExpires { job: usize },
    OutboxRowRings { job: usize },
    Cancel { job: usize },
    BrokerWiped,
}

impl World {
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::Accept { scheduled, max_attempts, key } => self.accept(*scheduled, *max_attempts, *key),
            Step::RelayPublishes { arrives } => self.relay_publishes(*arrives),
            Step::RelayEnds(end) => self.relay_ends(*end),
            Step::RelayChecks => self.relay_checks(),
            Step::RelayGivesTurns => self.give_turns(),
            Step::RelayHolds => self.hold(),
            Step::RelayLooks => self.look(),
            Step::RelayFreesStrays => self.free(|_| true),
            Step::GiveBack { message } => self.give_back(*message),
            Step::Report(finding) => self.sickness.found(*finding),
            Step::ClosedByHand => self.sickness.state = State::Closed,
            Step::Duplicate { message } => self.broker.push(self.broker[*message]),
            Step::Deliver { worker, messages, .. } => self.deliver(*worker, messages),
            Step::Settle { attempt, verdict, retry_at_once, .. } => {
                let attempt = self.under_way.remove(*attempt);
                if self.holds(&attempt) {
                    self.settle(attempt.job, *verdict, *retry_at_once);
                }
            }
            Step::Crash { worker } => {
                // Its connection ends, so the broker hands out again what was not acked.
                let (lost, kept) = self.under_way.iter().partition(|attempt| attempt.worker == *worker);
                self.under_way = kept;
                self.broker.extend(Vec::into_iter(lost).map(|attempt: Attempt| attempt.message));
            }
            Step::LeaseExpires { job } => self.jobs[*job].lease_expired = true,
            Step::OutboxRowRings { job } => self.set_due(*job, true),
            Step::Cancel { job } => self.cancel(*job),
            Step::BrokerWiped => self.wipe_broker(),
        }
    }

    fn accept(&mut self, scheduled: bool, max_attempts: i32, key: Option<u8>) {
        let waits = key.filter(|_| !scheduled).map(|_| Waits::Turn);
        self.lines.extend(key.filter(|_| waits.is_some()));
        let outbox_row =
            OutboxRow { attempt: 0, published: false, due: !scheduled, waits, turn: false, released: false };
        let (status, outbox_row) = (Status::Pending, Some(outbox_row));
        self.jobs.push(Job { status, attempt: 0, retry_count: 0, max_attempts, lease_expired: false, key, outbox_row });
    }

    fn relay_publishes(&mut self, arrives: bool) {
        let due = (0..self.jobs.len()).filter(|job| self.is_publishable(*job));
        let (waiting, ready): (Vec<_>, Vec<_>) = due.partition(|job| self.jobs[*job].rings_under_lease());
        let (holding, ready): (Vec<_>, Vec<_>) = ready.into_iter().partition(|job| self.is_to_hold_again(*job));
        let (lining_up, publishing): (Vec<_>, Vec<_>) =
            ready.into_iter().partition(|job| self.jobs[*job].has_no_turn());
        if arrives {
            let messages = publishing.iter().filter_map(|job| self.message_of(*job));
            self.broker.extend(messages.collect::<Vec<_>>());
        }
        self.turn = Some(Turn { publishing, waiting, holding, lining_up, arrived: arrives });
    }

    fn relay_ends(&mut self, end: TurnEnd) {
        let Some(turn) = self.turn.take() else { return };
        if end == TurnEnd::Killed {
            return;
        }
        for job in turn.waiting.iter().chain(&turn.publishing) {
            self.set_due(*job, false);
        }
        turn.lining_up.iter().for_each(|job| self.line_up(*job));
        turn.holding.iter().for_each(|job| self.hold_again(*job));
        if end == TurnEnd::Confirmed {
            let marked = self.jobs.iter_mut().enumerate().filter(|(job, _)| turn.publishing.contains(job));
            marked.filter_map(|(_, job)| job.outbox_row.as_mut()).for_each(|outbox_row| outbox_row.published = true);
        }
    }

    fn deliver(&mut self, worker: usize, messages: &[usize]) {
        let batch = self.batch(messages);
        let mut place = 0;
        self.broker.retain(|_| {
            place += 1;
            !messages.contains(&(place - 1))
        });
        for message in batch.claimed {
            self.jobs[message.job].claim();
            let number = message.attempt + 1;
            self.under_way.push(Attempt { worker, job: message.job, number, message });
        }
        self.checks.extend(batch.leased);
        // An unknown attempt counts, and its lease was wait enough.
        batch.lost.into_iter().for_each(|job| self.settle(job, Verdict::TryAgain, true));
    }

    /// What a worker will do with these messages: one claim an attempt, and the rest is refused.
    pub fn batch(&self, messages: &[usize]) -> Batch {
        let mut batch = Batch::default();
        let mut refused = Vec::new();
        for message in messages.iter().map(|place| self.broker[*place]) {
            let job = &self.jobs[message.job];
            let free = job.status == Status::Pending && job.attempt == message.attempt;
            if free && !batch.claimed.contains(&message) {
                batch.claimed.push(message);
            } else {
                refused.push(message);
            }
        }
        let claimed_now = |job: usize| batch.claimed.iter().any(|message| message.job == job);
        for Task { job, attempt } in refused {
            if claimed_now(job) || self.jobs[job].is_leased() {
                batch.leased.push((job, attempt));
            } else if self.jobs[job].status == Status::Processing && !batch.lost.contains(&job) {
                batch.lost.push(job);
            }
        }
        batch
    }

    fn set_due(&mut self, job: usize, due: bool) {
        if let Some(outbox_row) = &mut self.jobs[job].outbox_row {
            outbox_row.due = due;
        }
    }

    /// What a relay publishes for a job.
    pub fn message_of(&self, job: usize) -> Option<Task> {
        self.jobs[job].outbox_row.map(|outbox_row| Task { job, attempt: outbox_row.attempt })
    }

    /// Whether an attempt still has its job.
    pub fn holds(&self, attempt: &Attempt) -> bool {
        let job = &self.jobs[attempt.job];
        job.status == Status::Processing && job.attempt == attempt.number
    }

    /// Whether an attempt lost its lease to one that is under way.
    pub fn is_zombie(&self, attempt: usize) -> bool {
        let attempt = &self.under_way[attempt];
        self.jobs[attempt.job].status == Status::Processing && !self.holds(attempt)
    }

    /// Whether a relay's open transaction holds the job's outbox row: whoever needs that waits.
    pub fn is_held(&self, job: usize) -> bool {
        self.turn.as_ref().is_some_and(|turn| turn.holds(job))
    }
}
