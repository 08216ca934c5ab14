//! The model: what a few jobs, their outbox rows and the broker become, step by step. Pure.
//!
//! Time stands still in it: what is due, and what lease has expired, changes by steps of their own. So any
//! wait may end at any moment, as it may for processes that are slow or were paused.

use outbox::job::{Status, Verdict};

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
    /// Its outbox row.
    pub alarm: Option<Alarm>,
}

/// An outbox row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alarm {
    pub attempt: i32,
    pub published: bool,
    pub due: bool,
}

/// A message in the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
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
    pub message: Message,
}

/// A relay's transaction over its publishing: the rows that it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    pub publishing: Vec<usize>,
    /// Rings, but its job is leased.
    pub waiting: Vec<usize>,
    /// Whether the broker has the messages.
    pub arrived: bool,
}

/// Everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    pub jobs: Vec<Job>,
    /// In no order: a message may be held back for as long as it likes.
    pub broker: Vec<Message>,
    pub under_way: Vec<Attempt>,
    pub turn: Option<Turn>,
}

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
    Accept { scheduled: bool, max_attempts: i32 },
    RelayPublishes { arrives: bool },
    RelayEnds(TurnEnd),
    Duplicate { message: usize },
    Deliver { worker: usize, messages: Vec<usize>, answer_lost: bool },
    Settle { attempt: usize, verdict: Verdict, retry_at_once: bool, twice: bool },
    Crash { worker: usize },
    LeaseExpires { job: usize },
    AlarmRings { job: usize },
    Cancel { job: usize },
    BrokerWiped,
}

/// What a worker does with a batch of messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub claimed: Vec<Message>,
    /// Jobs whose leases hold: their alarms are set to the leases' ends.
    pub leased: Vec<usize>,
    /// Jobs whose workers are lost: they are taken over.
    pub lost: Vec<usize>,
}

impl World {
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::Accept { scheduled, max_attempts } => self.accept(*scheduled, *max_attempts),
            Step::RelayPublishes { arrives } => self.relay_publishes(*arrives),
            Step::RelayEnds(end) => self.relay_ends(*end),
            Step::Duplicate { message } => self.broker.push(self.broker[*message]),
            Step::Deliver { worker, messages, .. } => self.deliver(*worker, messages),
            Step::Settle { attempt, verdict, retry_at_once, .. } => {
                let attempt = self.under_way.remove(*attempt);
                if self.holds(&attempt) {
                    self.jobs[attempt.job].settle(*verdict, *retry_at_once);
                }
            }
            Step::Crash { worker } => {
                // Its connection ends, so the broker hands out again what was not acked.
                let (lost, kept) = self.under_way.iter().partition(|attempt| attempt.worker == *worker);
                self.under_way = kept;
                self.broker.extend(Vec::into_iter(lost).map(|attempt: Attempt| attempt.message));
            }
            Step::LeaseExpires { job } => self.jobs[*job].lease_expired = true,
            Step::AlarmRings { job } => self.set_due(*job, true),
            Step::Cancel { job } => self.jobs[*job].cancel(),
            Step::BrokerWiped => self.wipe_broker(),
        }
    }

    fn accept(&mut self, scheduled: bool, max_attempts: i32) {
        let alarm = Some(Alarm { attempt: 0, published: false, due: !scheduled });
        let status = Status::Pending;
        self.jobs.push(Job { status, attempt: 0, retry_count: 0, max_attempts, lease_expired: false, alarm });
    }

    fn relay_publishes(&mut self, arrives: bool) {
        let due = |job: &usize| self.jobs[*job].alarm.is_some_and(|alarm| alarm.due);
        let due = (0..self.jobs.len()).filter(due);
        let (waiting, publishing): (Vec<_>, Vec<_>) = due.partition(|job| self.jobs[*job].rings_under_lease());
        if arrives {
            let messages = publishing.iter().filter_map(|job| self.message_of(*job));
            self.broker.extend(messages.collect::<Vec<_>>());
        }
        self.turn = Some(Turn { publishing, waiting, arrived: arrives });
    }

    fn relay_ends(&mut self, end: TurnEnd) {
        let Some(turn) = self.turn.take() else { return };
        if end == TurnEnd::Killed {
            return;
        }
        for job in turn.waiting.iter().chain(&turn.publishing) {
            self.set_due(*job, false);
        }
        if end == TurnEnd::Confirmed {
            let marked = self.jobs.iter_mut().enumerate().filter(|(job, _)| turn.publishing.contains(job));
            marked.filter_map(|(_, job)| job.alarm.as_mut()).for_each(|alarm| alarm.published = true);
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
        batch.leased.into_iter().for_each(|job| self.jobs[job].ring_after_lease());
        // An unknown attempt counts, and its lease was wait enough.
        batch.lost.into_iter().for_each(|job| self.jobs[job].settle(Verdict::TryAgain, true));
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
                refused.push(message.job);
            }
        }
        refused.sort_unstable();
        refused.dedup();
        let claimed_now = |job: usize| batch.claimed.iter().any(|message| message.job == job);
        for job in refused {
            if claimed_now(job) || self.jobs[job].is_leased() {
                batch.leased.push(job);
            } else if self.jobs[job].status == Status::Processing {
                batch.lost.push(job);
            }
        }
        batch
    }

    fn wipe_broker(&mut self) {
        self.broker.clear();
        let held = self.turn.clone();
        for (place, job) in self.jobs.iter_mut().enumerate() {
            // What a relay holds is passed over: it marks the row itself, and the row rings when its time comes.
            let held = held.as_ref().is_some_and(|turn| turn.holds(place));
            if let Some(alarm) = job.alarm.as_mut().filter(|alarm| alarm.published && !held) {
                alarm.due = true;
            }
        }
    }

    fn set_due(&mut self, job: usize, due: bool) {
        if let Some(alarm) = &mut self.jobs[job].alarm {
            alarm.due = due;
        }
    }

    /// What a relay publishes for a job.
    pub fn message_of(&self, job: usize) -> Option<Message> {
        self.jobs[job].alarm.map(|alarm| Message { job, attempt: alarm.attempt })
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

impl Turn {
    fn holds(&self, job: usize) -> bool {
        self.publishing.contains(&job) || self.waiting.contains(&job)
    }
}

impl Job {
    pub fn is_leased(&self) -> bool {
        self.status == Status::Processing && !self.lease_expired
    }

    fn rings_under_lease(&self) -> bool {
        self.is_leased() && self.alarm.is_some_and(|alarm| alarm.published)
    }

    fn claim(&mut self) {
        self.status = Status::Processing;
        self.attempt += 1;
        self.lease_expired = false;
    }

    /// A row that was not marked yet, or was re-armed for the next attempt, is left as it is.
    fn ring_after_lease(&mut self) {
        let current = self.attempt - 1;
        if let Some(alarm) = self.alarm.as_mut().filter(|alarm| alarm.published && alarm.attempt == current) {
            alarm.due = false;
        }
    }

    fn settle(&mut self, verdict: Verdict, retry_at_once: bool) {
        self.status =
            Status::after_attempt(verdict, self.retry_count.cast_unsigned(), self.max_attempts.cast_unsigned());
        self.retry_count += i32::from(self.status != Status::Success);
        let again = Alarm { attempt: self.attempt, published: false, due: retry_at_once };
        self.alarm = (self.status == Status::Pending).then_some(again);
    }

    fn cancel(&mut self) {
        if self.status == Status::Pending {
            self.status = Status::Cancelled;
            self.alarm = None;
        }
    }
}
