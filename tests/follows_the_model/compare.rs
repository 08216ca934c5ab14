//! Whether the database is where the model is, and what every case ends with.

use std::collections::BTreeSet;

use harness::invariants::{Evidence, check};
use outbox::destination::breaker::{Finding, State};
use outbox::job::states::{Status, Verdict};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::model::TurnEnd;
use super::replay::Replay;
use super::state::{Attempt, JOBS, Job, OutboxRow, Sickness, Task, Waits, World};

/// The invariants that need no receiver's log, which nobody has here.
const CHECKED: [&str; 10] = ["I2: ", "I3: ", "I4: ", "I6: ", "I7: ", "I8: ", "I13: ", "I18: ", "P1: ", "P2: "];

/// Those of them that hold at any moment, in one statement, since it is asked after every step.
const AT_ANY_MOMENT: &str = "
    SELECT 'I2: job ' || id || ' is ' || status || ' with so many outbox rows: ' || outbox_rows
    FROM webhook_jobs, LATERAL (SELECT count(*) AS outbox_rows FROM outbox WHERE job_id = webhook_jobs.id) AS counted
    WHERE outbox_rows <> (status IN ('pending', 'processing'))::integer
    UNION ALL
    SELECT 'I2: outbox row ' || id || ' has no job' FROM outbox WHERE job_id NOT IN (SELECT id FROM webhook_jobs)
    UNION ALL
    SELECT 'I6: job ' || job_id || ' left the final state ' || old_status
    FROM harness.transitions WHERE old_status IN ('success', 'failed', 'cancelled')
    UNION ALL
    SELECT 'I6: job ' || id || ' at attempt ' || attempt || ' has the records ' || numbers::text
    FROM webhook_jobs, LATERAL (SELECT coalesce(array_agg(record.attempt ORDER BY record.attempt), '{}') AS numbers
                                FROM webhook_attempts AS record WHERE job_id = id) AS recorded
    WHERE numbers <> ARRAY(SELECT generate_series(1, attempt - (status = 'processing')::integer))
    UNION ALL
    SELECT 'I7: job ' || id || ' is ' || status || ' with so many successful attempts: ' || successes
    FROM webhook_jobs, LATERAL (SELECT count(*) AS successes FROM webhook_attempts
                                WHERE job_id = id AND outcome = 'success') AS counted
    WHERE successes <> (status = 'success')::integer
    UNION ALL
    SELECT 'I8: job ' || job_id || ' went from attempt ' || old_attempt || ' to ' || new_attempt || ' as it became ' || new_status
    FROM harness.transitions WHERE new_attempt - old_attempt <> (new_status = 'processing')::integer
    UNION ALL
    SELECT 'I13: so many rows of key ' || ordering_key || ' have the turn: ' || count(*)
    FROM outbox WHERE turn GROUP BY destination, ordering_key HAVING count(*) > 1
    UNION ALL
    SELECT 'I13: row ' || id || ' has begun without its turn'
    FROM outbox WHERE ordering_key IS NOT NULL AND NOT turn AND (attempt > 0 OR published_at IS NOT NULL)
    UNION ALL
    SELECT 'I13: job ' || later.id || ' began before ' || earlier.id || ' of its key had ended'
    FROM webhook_jobs AS later JOIN webhook_jobs AS earlier ON earlier.ordering_key = later.ordering_key
    WHERE earlier.outbox_id < later.outbox_id AND later.attempt > 0 AND earlier.status IN ('pending', 'processing')
      -- A scheduled one takes its place when its time comes.
      AND earlier.deliver_at = earlier.created_at";

/// Nothing is left undone after so many rounds of a relay and a worker that work: of each key, one ends in each but the
/// first, in which what was scheduled takes its place.
const ROUNDS: usize = 4 + JOBS;

impl Replay {
    /// Compares everything that the model knows, and asks for the invariants.
    pub async fn compare(&self, world: &World) {
        assert_eq!(self.rows().await, world.jobs.iter().map(visible).collect::<Vec<_>>(), "the rows (left), the model");
        let broker: Vec<Task> = self.broker.iter().map(|message| self.in_model(message)).collect();
        assert_eq!(broker, world.broker, "what was published (left), the model");
        let under_way = self.under_way.iter().map(|(worker, job, message)| Attempt {
            worker: *worker,
            job: self.place(job.job_id),
            number: job.attempt,
            message: self.in_model(message),
        });
        assert_eq!(under_way.collect::<Vec<_>>(), world.under_way, "what was claimed (left), the model");
        assert_eq!(self.checks().await, world.checks, "what is to be looked at again (left), the model");
        let (lines, sickness) = self.waited_for().await;
        assert_eq!(lines, world.lines, "keys whose next turn is to be given (left), the model");
        assert_eq!(sickness, world.sickness, "how the destination is (left), the model");
        let violations = sqlx::query_scalar(AT_ANY_MOMENT).fetch_all(&self.ground.pool).await;
        let violations: Vec<String> = violations.expect("the invariants can be asked for");
        assert!(violations.is_empty(), "{}", violations.join("\n"));
    }

    fn in_model(&self, message: &outbox::broker::task::Task) -> Task {
        Task { job: self.place(message.job_id), attempt: message.attempt }
    }

    /// Every job with its outbox row, in the order of acceptance. A second outbox row makes a job stand there twice.
    async fn rows(&self) -> Vec<Job> {
        let rows = sqlx::query(
            "SELECT job.status, job.attempt, job.retry_count, job.max_attempts, job.ordering_key,
                    coalesce(job.lease_until <= now(), false) AS lease_expired,
                    outbox_row.attempt AS outbox_row_attempt, outbox_row.published_at IS NOT NULL AS published, outbox_row.due_at <= now() AS due,
                    outbox_row.waits_for, outbox_row.turn, outbox_row.released
             FROM webhook_jobs AS job FULL JOIN outbox AS outbox_row ON outbox_row.job_id = job.id
             ORDER BY array_position($1, job.id)",
        );
        let rows = rows.bind(&self.jobs).fetch_all(&self.ground.pool).await.expect("the rows can be read");
        rows.iter().map(job).collect()
    }

    async fn checks(&self) -> BTreeSet<(usize, i32)> {
        let statement = "SELECT job.id, outbox_checks.attempt
            FROM outbox_checks JOIN webhook_jobs AS job ON job.outbox_id = outbox_checks.outbox_id";
        let rows: Vec<(Uuid, i32)> =
            sqlx::query_as(statement).fetch_all(&self.ground.pool).await.expect("the list can be read");
        rows.into_iter().map(|(job_id, attempt)| (self.place(job_id), attempt)).collect()
    }

    /// The keys whose next turn is to be given, and how the destination is.
    async fn waited_for(&self) -> (BTreeSet<u8>, Sickness) {
        let statement = "SELECT ARRAY(SELECT DISTINCT ordering_key FROM ordering_checks),
            (SELECT state FROM destinations), (SELECT openings FROM destinations)";
        let row = sqlx::query_as(statement).fetch_one(&self.ground.pool).await;
        let (keys, state, openings): (Vec<String>, Option<String>, Option<i32>) = row.expect("they can be read");
        let state = state.map_or(State::Closed, |it| State::from_text(&it).expect("destinations_state_known"));
        let keys = keys.iter().map(|key| key.parse().expect("the keys are numbers"));
        (keys.collect(), Sickness { state, openings: openings.unwrap_or(0) })
    }

    async fn assert_invariants(&self) {
        let evidence = Evidence { accepted: &[], received: &[], max_retries: 100 };
        let violations = check(&self.ground.pool, evidence).await;
        let is_checked = |invariant: &str| CHECKED.iter().any(|name| invariant.starts_with(name));
        let violations: Vec<_> = violations.into_iter().filter(|it| is_checked(it.sentence)).collect();
        assert!(violations.is_empty(), "{}", violations.iter().map(ToString::to_string).collect::<String>());
    }

    /// Whatever has happened, and although the broker and every worker forget all they had: each job comes
    /// to its end as soon as time goes on, and a relay and a worker do their work.
    pub async fn finish(&mut self) {
        self.relay_ends(TurnEnd::Killed).await;
        self.under_way.clear();
        self.broker.clear();
        for _ in 0..ROUNDS {
            let time_goes_on =
                "UPDATE webhook_jobs SET lease_until = now() - interval '1 second' WHERE lease_until > now();
                                UPDATE outbox SET due_at = now() - interval '1 second' WHERE due_at > now()";
            sqlx::raw_sql(time_goes_on).execute(&self.ground.pool).await.expect("rows are written");
            self.relay_checks().await;
            self.report(Finding::Recovered).await;
            self.look().await;
            self.free_strays().await;
            self.give_turns().await;
            self.relay_publishes(true).await;
            self.relay_ends(TurnEnd::Confirmed).await;
            while !self.broker.is_empty() {
                self.deliver(0, &[0], false).await;
            }
            while !self.under_way.is_empty() {
                self.settle(0, Verdict::Success, true, false).await;
            }
            if self.rows().await.iter().all(|job| job.status.is_final()) {
                break;
            }
        }
        let rows = self.rows().await;
        assert!(rows.iter().all(|job| job.status.is_final()), "a job does not come to its end: {rows:?}");
        self.assert_invariants().await;
    }
}

fn job(row: &PgRow) -> Job {
    let status: &str = row.get("status");
    let key: Option<&str> = row.get("ordering_key");
    Job {
        status: Status::from_text(status).expect("webhook_jobs_status_known"),
        attempt: row.get("attempt"),
        retry_count: row.get("retry_count"),
        max_attempts: row.get("max_attempts"),
        lease_expired: row.get("lease_expired"),
        key: key.map(|key| key.parse().expect("the keys are numbers")),
        outbox_row: row.get::<Option<i32>, _>("outbox_row_attempt").map(|attempt| outbox_row(row, attempt)),
    }
}

fn outbox_row(row: &PgRow, attempt: i32) -> OutboxRow {
    let waits = row.get::<Option<&str>, _>("waits_for").map(|waits| match waits {
        "order" => Waits::Turn,
        "destination" => Waits::Destination,
        other => panic!("a row waits for {other}"),
    });
    let (published, turn, released) = (row.get("published"), row.get("turn"), row.get("released"));
    let due = waits.is_none() && row.get::<bool, _>("due");
    OutboxRow { attempt, published, due, waits, turn, released }
}

/// The model remembers a lease after its end, and what was due while it waits.
fn visible(job: &Job) -> Job {
    let lease_expired = job.lease_expired && job.status == Status::Processing;
    let outbox_row =
        job.outbox_row.map(|outbox_row| OutboxRow { due: outbox_row.due && outbox_row.waits.is_none(), ..outbox_row });
    Job { lease_expired, outbox_row, ..job.clone() }
}
