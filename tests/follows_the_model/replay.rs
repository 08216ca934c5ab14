//! The same steps on a real database, through the library that api, relay and worker use.

use std::time::Duration;

use harness::job::new_job;
use outbox::broker::task::Task;
use outbox::due;
use outbox::due::ordering::line_up;
use outbox::job::accept::{Accepted, NewJob, accept};
use outbox::job::cancel::{Cancellation, cancel};
use outbox::job::claim::{Claimed, Lease, claim, recover_claim};
use outbox::job::settle::settle;
use outbox::job::states::{Status, Verdict};
use outbox::job::unclaimed::{UnclaimedJob, check_again, look_up};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};
use uuid::Uuid;

use super::ground::Ground;
use super::model::{Step, TurnEnd};
use super::settlements;
use super::state::World;
use super::steps::Model;
use super::tending::DESTINATION;

/// Longer than any case, and so is every other wait: time moves only in steps.
pub const LONG: Duration = Duration::from_hours(1);

/// One that does not end by itself.
const LEASE: Lease = Lease { timeout: LONG, margin: Duration::ZERO };

/// One case under way.
pub struct Replay {
    pub ground: &'static Ground,
    pub jobs: Vec<Uuid>,
    pub broker: Vec<Task>,
    /// The worker, what it claimed, and the message that it did not ack yet.
    pub under_way: Vec<(usize, Claimed, Task)>,
    /// The rows that the relay's transaction publishes.
    turn: Vec<i64>,
    claims: u32,
}

impl StateMachineTest for Replay {
    type SystemUnderTest = Self;
    type Reference = Model;

    fn init_test(_: &World) -> Self {
        let ground = Ground::shared();
        ground.runtime.block_on(ground.clear());
        Self { ground, jobs: Vec::new(), broker: Vec::new(), under_way: Vec::new(), turn: Vec::new(), claims: 0 }
    }

    fn apply(mut replay: Self, world: &World, step: <Model as ReferenceStateMachine>::Transition) -> Self {
        replay.ground.runtime.block_on(replay.take(step, world));
        replay
    }

    fn check_invariants(replay: &Self, world: &World) {
        replay.ground.runtime.block_on(replay.compare(world));
    }

    fn teardown(mut replay: Self, _: World) {
        replay.ground.runtime.block_on(replay.finish());
    }
}

impl Replay {
    async fn take(&mut self, step: Step, world: &World) {
        match step {
            Step::Accept { scheduled, max_attempts, key } => self.accept(scheduled, max_attempts, key).await,
            Step::RelayPublishes { arrives } => self.relay_publishes(arrives).await,
            Step::RelayEnds(end) => self.relay_ends(end).await,
            Step::RelayChecks => self.relay_checks().await,
            Step::RelayGivesTurns => self.give_turns().await,
            Step::RelayHolds => self.hold().await,
            Step::RelayLooks => self.look().await,
            Step::RelayFreesStrays => self.free_strays().await,
            Step::GiveBack { message } => self.give_back(message).await,
            Step::Report(finding) => self.report(finding).await,
            Step::ClosedByHand => self.close_by_hand().await,
            Step::Duplicate { message } => self.broker.push(self.broker[message].clone()),
            Step::Deliver { worker, messages, answer_lost } => self.deliver(worker, &messages, answer_lost).await,
            Step::Settle { attempt, verdict, retry_at_once, twice } => {
                self.settle(attempt, verdict, retry_at_once, twice).await;
            }
            Step::Crash { worker } => {
                let (lost, kept): (Vec<_>, _) = self.under_way.drain(..).partition(|(by, ..)| *by == worker);
                self.under_way = kept;
                self.broker.extend(lost.into_iter().map(|(.., message)| message));
            }
            // These two are time: nobody but the test may write so.
            Step::LeaseExpires { job } => {
                let expire = "UPDATE webhook_jobs SET lease_until = now() - interval '1 second' WHERE id = $1";
                self.write(expire, self.jobs[job]).await;
            }
            Step::OutboxRowRings { job } => {
                let ring = "UPDATE outbox SET due_at = now() - interval '1 second' WHERE job_id = $1";
                self.write(ring, self.jobs[job]).await;
            }
            Step::Cancel { job } => {
                let cancelled = cancel(&self.ground.services, self.jobs[job]).await.expect("it is answered");
                let expected = world.jobs[job].status == Status::Cancelled;
                assert_eq!(cancelled == Cancellation::Cancelled, expected, "{cancelled:?}");
            }
            Step::BrokerWiped => {
                self.broker.clear();
                due::rewind(&self.ground.other_relay, 1_000, LONG * 2, None).await.expect("rows are made due");
            }
        }
    }

    async fn write(&self, statement: &'static str, job_id: Uuid) {
        let written = sqlx::query(statement).bind(job_id).execute(&self.ground.pool).await.expect("it is written");
        assert_eq!(written.rows_affected(), 1, "{statement}");
    }

    async fn accept(&mut self, scheduled: bool, max_attempts: i32, key: Option<u8>) {
        let job = NewJob {
            deliver_at: scheduled.then(|| outbox::service::clock::now() + LONG),
            max_attempts: Some(max_attempts),
            ordering_key: key.map(|key| key.to_string()),
            ..new_job(DESTINATION)
        };
        let id = job.id;
        let accepted = accept(&self.ground.services, &[job]).await.expect("it is answered");
        assert_eq!(accepted, [Accepted::New(id)]);
        self.jobs.push(id);
    }

    /// The first half of a relay's turn. Its transaction stays open over the steps that follow.
    pub async fn relay_publishes(&mut self, arrives: bool) {
        let Ground { relay, statements, .. } = self.ground;
        relay.batch_execute("BEGIN").await.expect("a transaction begins");
        let claimed = due::claim_due(relay, statements, 1_000, None).await.expect("rows are claimed");
        let rows = due::sift_published(relay, claimed).await.expect("rows are put right");
        let mut rows = line_up(relay, rows).await.expect("rows are left waiting");
        rows.sort_by_key(|row| self.place(row.task.job_id));
        self.turn = rows.iter().map(due::DueRow::id).collect();
        if arrives {
            self.broker.extend(rows.into_iter().map(|row| row.task));
        }
    }

    pub async fn relay_ends(&mut self, end: TurnEnd) {
        let Ground { relay, statements, .. } = self.ground;
        let rows = std::mem::take(&mut self.turn);
        match end {
            TurnEnd::Confirmed => due::mark_published(relay, statements, &rows, LONG).await.expect("rows are marked"),
            TurnEnd::Unconfirmed => due::postpone(relay, &rows, LONG).await.expect("rows are pushed back"),
            TurnEnd::Killed => {}
        }
        let last = if end == TurnEnd::Killed { "ROLLBACK" } else { "COMMIT" };
        relay.batch_execute(last).await.expect("a transaction ends");
    }

    /// As the worker's consumer does it.
    pub async fn deliver(&mut self, worker: usize, places: &[usize], answer_lost: bool) {
        let messages: Vec<Task> = places.iter().map(|place| self.broker[*place].clone()).collect();
        places.iter().rev().for_each(|place| drop(self.broker.remove(*place)));
        self.claims += 1;
        let (pool, name) = (&self.ground.services, format!("{worker}#{}", self.claims));
        let mut claimed = claim(pool, &messages, &name, LEASE).await.expect("jobs are claimed");
        if answer_lost {
            let known: Vec<Uuid> = claimed.iter().map(|job| job.job_id).collect();
            claimed = recover_claim(pool, &messages, &name, LEASE).await.expect("jobs are found again");
            assert_eq!(claimed.len(), known.len());
            assert!(claimed.iter().all(|job| known.contains(&job.job_id)), "not what was claimed: {claimed:?}");
        }
        let mut refused = Vec::new();
        for message in messages {
            let asked = |job: &Claimed| (job.job_id, job.attempt) == (message.job_id, message.attempt + 1);
            match claimed.iter().position(asked) {
                Some(place) => self.under_way.push((worker, claimed.swap_remove(place), message)),
                None => refused.push(message),
            }
        }
        assert!(claimed.is_empty(), "claimed for a message of another attempt: {claimed:?}");
        self.refuse(&refused).await;
    }

    pub async fn relay_checks(&self) {
        due::make_due_again(&self.ground.other_relay, 0, 1_000).await.expect("rows are looked at");
    }

    pub async fn refuse(&self, refused: &[Task]) {
        let pool = &self.ground.services;
        let job_ids: Vec<Uuid> = refused.iter().map(|message| message.job_id).collect();
        let jobs = look_up(pool, &job_ids).await.expect("jobs are looked up");
        let (lost, others): (Vec<UnclaimedJob>, Vec<UnclaimedJob>) = jobs.into_iter().partition(|it| it.lease_expired);
        let is_held = |message: &Task, it: &UnclaimedJob| {
            it.status == Status::Processing || (it.status, it.attempt) == (Status::Pending, message.attempt)
        };
        let is_to_check = |message: &&Task| others.iter().any(|it| it.job_id == message.job_id && is_held(message, it));
        check_again(pool, refused.iter().filter(is_to_check)).await.expect("rows are listed");
        for job in lost {
            let settled = settle(pool, &[settlements::of_lost(&job)]).await.expect("it is answered");
            assert!(settled.iter().all(|it| it.outbox_row_found), "the outbox row is gone");
            assert_eq!(settled.len(), 1, "nobody else could have taken it over");
        }
    }

    pub async fn settle(&mut self, place: usize, verdict: Verdict, retry_at_once: bool, twice: bool) {
        let (worker, job, _) = self.under_way.remove(place);
        let settlement = settlements::of_attempt(worker, &job, verdict, retry_at_once);
        let settled = settle(&self.ground.services, std::slice::from_ref(&settlement)).await.expect("it is answered");
        assert!(settled.iter().all(|it| it.outbox_row_found), "the outbox row is gone");
        if twice {
            let again = settle(&self.ground.services, &[settlement]).await.expect("it is answered");
            assert_eq!(again, [], "an attempt was settled twice");
        }
    }

    /// The place of a job in the model.
    pub fn place(&self, job_id: Uuid) -> usize {
        self.jobs.iter().position(|id| *id == job_id).expect("only accepted jobs have rows")
    }
}
