//! The model's part about what waits: for its turn in a key, for its destination, or to be looked at again. Pure.

use std::collections::BTreeSet;

use outbox::destination::breaker::{Finding, State};
use outbox::job::states::{Status, Verdict};

use super::state::{Job, OutboxRow, Sickness, Waits, World};

impl Sickness {
    pub fn is_closed(self) -> bool {
        self.state == State::Closed
    }

    /// Whether a finding changes anything: only these are steps.
    pub fn is_news(self, finding: Finding) -> bool {
        match finding {
            Finding::Down { .. } => matches!(self.state, State::Closed | State::Metered),
            Finding::StillDown => self.state == State::HalfOpen,
            Finding::Slow { .. } => self.state == State::Closed,
            Finding::Recovered => matches!(self.state, State::Open | State::HalfOpen),
        }
    }

    pub fn found(&mut self, finding: Finding) {
        *self = match finding {
            Finding::Down { .. } | Finding::StillDown => Self { state: State::Open, openings: self.openings + 1 },
            Finding::Slow { .. } => Self { state: State::Metered, ..*self },
            Finding::Recovered => Self { state: State::Metered, openings: 0 },
        };
    }
}

impl World {
    /// Whether a relay publishes a job's row.
    pub fn is_publishable(&self, job: usize) -> bool {
        let has_no_turn = self.jobs[job].has_no_turn();
        let passes = |outbox_row: OutboxRow| {
            outbox_row.released || outbox_row.published || has_no_turn || self.sickness.is_closed()
        };
        self.jobs[job]
            .outbox_row
            .is_some_and(|outbox_row| outbox_row.waits.is_none() && outbox_row.due && passes(outbox_row))
    }

    /// Whether a relay holds a job's row that it finds due again.
    pub fn is_to_hold_again(&self, job: usize) -> bool {
        let is_lost = |outbox_row: OutboxRow| outbox_row.published && !outbox_row.released;
        !self.sickness.is_closed()
            && self.jobs[job].status == Status::Pending
            && self.jobs[job].outbox_row.is_some_and(is_lost)
    }

    pub fn hold_again(&mut self, job: usize) {
        if let Some(outbox_row) = &mut self.jobs[job].outbox_row {
            (outbox_row.published, outbox_row.waits) = (false, Some(Waits::Destination));
        }
    }

    /// A scheduled row whose time has come takes its place.
    pub fn line_up(&mut self, job: usize) {
        let key = self.jobs[job].key;
        if let Some(outbox_row) = &mut self.jobs[job].outbox_row {
            outbox_row.waits = Some(Waits::Turn);
            self.lines.extend(key);
        }
    }

    /// The first of each key, unless one of it has the turn.
    pub fn give_turns(&mut self) {
        for key in std::mem::take(&mut self.lines) {
            let of_key =
                self.jobs.iter_mut().filter(|job| job.key == Some(key)).filter_map(|job| job.outbox_row.as_mut());
            let mut outbox_rows: Vec<&mut OutboxRow> = of_key.collect();
            if outbox_rows.iter().any(|outbox_row| outbox_row.turn) {
                continue;
            }
            if let Some(first) = outbox_rows.iter_mut().find(|outbox_row| outbox_row.waits == Some(Waits::Turn)) {
                (first.turn, first.waits, first.due) = (true, None, true);
            }
        }
    }

    /// Whether a relay would hold a job's row for its destination.
    pub fn is_to_hold(&self, job: usize) -> bool {
        let is_free = |outbox_row: OutboxRow| {
            outbox_row.due && outbox_row.waits.is_none() && !outbox_row.released && !outbox_row.published
        };
        !self.sickness.is_closed()
            && self.jobs[job].outbox_row.is_some_and(is_free)
            && !self.jobs[job].has_no_turn()
            && !self.is_held(job)
    }

    pub fn hold(&mut self) {
        let held: Vec<usize> = (0..self.jobs.len()).filter(|job| self.is_to_hold(*job)).collect();
        for job in held {
            self.jobs[job].outbox_row.as_mut().expect("it is due").waits = Some(Waits::Destination);
        }
    }

    pub fn is_held_for_destination(&self, job: usize) -> bool {
        self.jobs[job].outbox_row.is_some_and(|outbox_row| outbox_row.waits == Some(Waits::Destination))
    }

    /// Sets rows free that are held for the destination.
    pub fn free(&mut self, which: impl Fn(usize) -> bool) {
        for job in 0..self.jobs.len() {
            if self.is_held_for_destination(job) && which(job) {
                let outbox_row = self.jobs[job].outbox_row.as_mut().expect("it is held");
                (outbox_row.waits, outbox_row.released, outbox_row.due) = (None, true, true);
            }
        }
    }

    /// One row as a probe, from both ends of those with the fewest attempts; all when it is well again, which are fewer
    /// than may be set free at once.
    pub fn look(&mut self) {
        let held = (0..self.jobs.len()).filter(|job| self.is_held_for_destination(*job));
        let attempt = |job: usize| self.jobs[job].outbox_row.map_or(0, |outbox_row| outbox_row.attempt);
        let fewest = held.clone().map(attempt).min();
        let mut best = held.filter(|job| Some(attempt(*job)) == fewest);
        match self.sickness.state {
            State::Open | State::HalfOpen => {
                let probe = if self.sickness.openings % 2 == 0 { best.next_back() } else { best.next() };
                let Some(probe) = probe else { return self.sickness.found(Finding::Recovered) };
                self.free(|job| job == probe);
                self.sickness.state = State::HalfOpen;
            }
            State::Closed | State::Metered => {
                self.free(|_| true);
                self.sickness.state = State::Closed;
            }
        }
    }

    /// A worker gives a message back because the destination is sick.
    pub fn give_back(&mut self, message: usize) {
        let message = self.broker.remove(message);
        let (is_held, is_leased) = (self.is_held(message.job), self.jobs[message.job].is_leased());
        let job = &mut self.jobs[message.job];
        let is_free = job.status == Status::Pending && job.attempt == message.attempt;
        let outbox_row = job
            .outbox_row
            .as_mut()
            .filter(|outbox_row| outbox_row.attempt == message.attempt && outbox_row.waits.is_none());
        match outbox_row {
            Some(outbox_row) if is_free && !is_held => {
                (outbox_row.published, outbox_row.released, outbox_row.waits) =
                    (false, false, Some(Waits::Destination));
            }
            _ if is_free || is_leased => {
                self.checks.insert((message.job, message.attempt));
            }
            _ if job.status == Status::Processing => self.settle(message.job, Verdict::TryAgain, true),
            _ => {}
        }
    }

    /// The end of an attempt.
    pub fn settle(&mut self, job: usize, verdict: Verdict, retry_at_once: bool) {
        let job = &mut self.jobs[job];
        let (retries, most) = (job.retry_count.cast_unsigned(), job.max_attempts.cast_unsigned());
        job.status = Status::after_attempt(verdict, retries, most);
        job.retry_count += i32::from(job.status != Status::Success);
        let turn = job.outbox_row.is_some_and(|outbox_row| outbox_row.turn);
        let (attempt, due) = (job.attempt, retry_at_once);
        let again = OutboxRow { attempt, published: false, due, waits: None, turn, released: false };
        job.outbox_row = (job.status == Status::Pending).then_some(again);
        self.lines.extend(job.key.filter(|_| turn && job.outbox_row.is_none()));
    }

    pub fn cancel(&mut self, job: usize) {
        let job = &mut self.jobs[job];
        if job.status != Status::Pending {
            return;
        }
        job.status = Status::Cancelled;
        let had_turn = job.outbox_row.take().is_some_and(|outbox_row| outbox_row.turn);
        self.lines.extend(job.key.filter(|_| had_turn));
    }

    pub fn wipe_broker(&mut self) {
        self.broker.clear();
        let held = self.turn.clone();
        for (place, job) in self.jobs.iter_mut().enumerate() {
            // What a relay holds is passed over, and looked at again.
            let held = held.as_ref().is_some_and(|turn| turn.holds(place));
            let may_be_lost =
                |outbox_row: &&mut OutboxRow| (outbox_row.published || outbox_row.due) && outbox_row.waits.is_none();
            let Some(outbox_row) = job.outbox_row.as_mut().filter(may_be_lost) else { continue };
            if held {
                self.checks.insert((place, outbox_row.attempt));
            } else {
                outbox_row.due = true;
            }
        }
    }

    /// What nobody holds is due again, at the end of its lease or a second after that.
    pub fn relay_checks(&mut self) {
        let (held, free): (BTreeSet<_>, BTreeSet<_>) =
            std::mem::take(&mut self.checks).into_iter().partition(|(job, attempt)| self.waits(*job, *attempt));
        self.checks = held;
        for (job, attempt) in free {
            self.jobs[job].check(attempt);
        }
    }

    /// Whether a row that is to be looked at is held.
    fn waits(&self, job: usize, attempt: i32) -> bool {
        self.is_held(job) && self.jobs[job].outbox_row.is_some_and(|outbox_row| outbox_row.attempt == attempt)
    }
}

impl Job {
    /// A row that was not marked yet, or was re-armed for the next attempt, is left as it is.
    fn check(&mut self, attempt: i32) {
        let is_processing = self.status == Status::Processing;
        if let Some(outbox_row) =
            self.outbox_row.as_mut().filter(|outbox_row| outbox_row.published && outbox_row.attempt == attempt)
        {
            outbox_row.due = !is_processing;
        }
    }
}
