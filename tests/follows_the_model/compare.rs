//! Whether the database is where the model is, and what every case ends with.

use harness::invariants::{Evidence, check};
use outbox::job::{Status, Verdict};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::model::{Alarm, Attempt, Job, Message, TurnEnd, World};
use super::replay::Replay;

/// The invariants that need no receiver's log, which nobody has here.
const CHECKED: [&str; 8] = ["I2: ", "I3: ", "I4: ", "I6: ", "I7: ", "I8: ", "P1: ", "P2: "];

/// Those of them that hold at any moment, in one statement, since it is asked after every step.
const AT_ANY_MOMENT: &str = "
    SELECT 'I2: job ' || id || ' is ' || status || ' with so many outbox rows: ' || alarms
    FROM webhook_jobs, LATERAL (SELECT count(*) AS alarms FROM outbox WHERE job_id = webhook_jobs.id) AS counted
    WHERE alarms <> (status IN ('pending', 'processing'))::integer
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
    FROM harness.transitions WHERE new_attempt - old_attempt <> (new_status = 'processing')::integer";

/// Nothing is left undone after so many rounds of a relay and a worker that work.
const ROUNDS: usize = 4;

impl Replay {
    /// Compares everything that the model knows, and asks for the invariants.
    pub async fn compare(&self, world: &World) {
        assert_eq!(self.rows().await, world.jobs.iter().map(visible).collect::<Vec<_>>(), "the rows (left), the model");
        let broker: Vec<Message> = self.broker.iter().map(|message| self.in_model(message)).collect();
        assert_eq!(broker, world.broker, "what was published (left), the model");
        let under_way = self.under_way.iter().map(|(worker, job, message)| Attempt {
            worker: *worker,
            job: self.place(job.job_id),
            number: job.attempt,
            message: self.in_model(message),
        });
        assert_eq!(under_way.collect::<Vec<_>>(), world.under_way, "what was claimed (left), the model");
        let violations = sqlx::query_scalar(AT_ANY_MOMENT).fetch_all(&self.ground.pool).await;
        let violations: Vec<String> = violations.expect("the invariants can be asked for");
        assert!(violations.is_empty(), "{}", violations.join("\n"));
    }

    fn in_model(&self, message: &outbox::message::Message) -> Message {
        Message { job: self.place(message.job_id), attempt: message.attempt }
    }

    /// Every job with its outbox row, in the order of acceptance. A second outbox row makes a job stand there twice.
    async fn rows(&self) -> Vec<Job> {
        let rows = sqlx::query(
            "SELECT job.status, job.attempt, job.retry_count, job.max_attempts,
                    coalesce(job.lease_until <= now(), false) AS lease_expired,
                    alarm.attempt AS alarm_attempt, alarm.published_at IS NOT NULL AS published, alarm.due_at <= now() AS due
             FROM webhook_jobs AS job FULL JOIN outbox AS alarm ON alarm.job_id = job.id
             ORDER BY array_position($1, job.id)",
        );
        let rows = rows.bind(&self.jobs).fetch_all(&self.ground.pool).await.expect("the rows can be read");
        rows.iter().map(job).collect()
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
            self.relay_publishes(true).await;
            self.relay_ends(TurnEnd::Confirmed).await;
            while !self.broker.is_empty() {
                self.deliver(0, &[0], false).await;
            }
            while !self.under_way.is_empty() {
                self.settle(0, Verdict::Success, true, false).await;
            }
        }
        let rows = self.rows().await;
        assert!(rows.iter().all(|job| job.status.is_final()), "a job does not come to its end: {rows:?}");
        self.assert_invariants().await;
    }
}

fn job(row: &PgRow) -> Job {
    let status: &str = row.get("status");
    let attempt: Option<i32> = row.get("alarm_attempt");
    Job {
        status: Status::from_text(status).expect("webhook_jobs_status_known"),
        attempt: row.get("attempt"),
        retry_count: row.get("retry_count"),
        max_attempts: row.get("max_attempts"),
        lease_expired: row.get("lease_expired"),
        alarm: attempt.map(|attempt| Alarm { attempt, published: row.get("published"), due: row.get("due") }),
    }
}

/// The model remembers a lease after its end.
fn visible(job: &Job) -> Job {
    let lease_expired = job.lease_expired && job.status == Status::Processing;
    Job { lease_expired, ..job.clone() }
}
