//! Watches from outside whether all moves that can: what stands still for five seconds has a reason, or is a fault.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::{self, Display};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::excuses::{Excuse, Excuses};
use crate::gate::Gate;

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(500);

/// What could move must have moved by then.
pub const STILL: Duration = Duration::from_secs(5);

/// For so long one and the same row may be found held by somebody: whoever vanishes with it is thrown out by then.
const HELD: Duration = Duration::from_secs(20);

/// Only a receiver that is well owes anything.
const FIRST_HELD: &str = "the first that is held for it";
const SOMEBODY: &str = "somebody holds it";

const LOOK: &str = include_str!("watch.sql");

/// What stood still without a reason.
#[derive(Clone, Debug)]
pub struct Standstill {
    /// What it waited for, as far as it can be told.
    pub reason: String,
    /// Which.
    pub place: String,
    pub waited: Duration,
    /// Its rows when it was found.
    pub rows: String,
    /// What was broken last, and how long before.
    pub after: String,
}

impl Display for Standstill {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reason, place, waited, rows, after } = self;
        write!(formatter, "STOOD STILL for {:.1} s: {reason}: {place}\n    after: {after}", waited.as_secs_f32())?;
        rows.lines().try_for_each(|row| write!(formatter, "\n    {}", row.trim()))
    }
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub looks: usize,
    /// Looks at which nothing was broken, nor had been for five seconds: only these can find anything.
    pub quiet_looks: usize,
    /// Reasons for which something did not move for five seconds, how many did so, and the longest.
    pub reasons: BTreeMap<String, (usize, Duration)>,
    pub standstills: Vec<Standstill>,
}

/// One thing that has not moved since it was first seen.
struct Still {
    since: Instant,
    /// Since when nothing excuses it.
    unexcused_since: Instant,
    /// Since when it was found held at every look.
    held_since: Option<Instant>,
    counted_for: HashSet<String>,
    is_reported: bool,
}

struct Line {
    outbox_id: Option<i64>,
    job_id: Option<Uuid>,
    destination: String,
    reason: String,
    is_reason: bool,
    place: String,
}

impl Line {
    fn from_row(row: &PgRow) -> Self {
        Self {
            outbox_id: row.get("outbox_id"),
            job_id: row.get("job_id"),
            destination: row.get("destination"),
            reason: row.get("reason"),
            is_reason: row.get("is_reason"),
            place: row.get("place"),
        }
    }
}

/// Watches until it is stopped.
pub struct Watch {
    watching: JoinHandle<Seen>,
    stop: CancellationToken,
}

struct Watcher {
    pool: PgPool,
    gates: Vec<Arc<Gate>>,
    excuses: Excuses,
    still: HashMap<(String, String), Still>,
    looked: Instant,
    seen: Seen,
}

impl Watch {
    pub fn start(pool: &PgPool, gates: Vec<Arc<Gate>>, excuses: &Excuses) -> Self {
        let stop = CancellationToken::new();
        let (pool, excuses) = (pool.clone(), excuses.clone());
        let (still, looked, seen) = (HashMap::new(), Instant::now(), Seen::default());
        let watcher = Watcher { pool, gates, excuses, still, looked, seen };
        Self { watching: tokio::spawn(watcher.watch(stop.clone())), stop }
    }

    pub async fn stop(self) -> Seen {
        self.stop.cancel();
        self.watching.await.expect("the watcher does not panic")
    }
}

impl Watcher {
    async fn watch(mut self, stop: CancellationToken) -> Seen {
        while stop.run_until_cancelled(sleep(PERIOD)).await.is_some() {
            // Postgres may be away, which is an excuse.
            let _ = self.look().await;
        }
        self.seen
    }

    async fn look(&mut self) -> Result<(), sqlx::Error> {
        let began = self.excuses.current();
        let rows = sqlx::query(LOOK).fetch_all(&self.pool).await?;
        let lines: Vec<Line> = rows.iter().map(Line::from_row).collect();
        let excuse = self.excuses.current();
        // What broke while it looked is as good as broken before.
        let excuse =
            Excuse { is_active: excuse.is_active || began.is_active, brief: excuse.brief.or(began.brief), ..excuse };
        let now = Instant::now();
        self.seen.looks += 1;
        self.seen.quiet_looks += usize::from(!excuse.is_active && now - excuse.ended > STILL);
        self.note(&lines, &excuse, now);
        self.ask_for_locks(&lines, now).await?;
        self.judge(&lines, &excuse, now).await
    }

    /// Brings what is known up to date.
    fn note(&mut self, lines: &[Line], excuse: &Excuse, now: Instant) {
        let stopped = if excuse.brief.is_some() { now - self.looked } else { Duration::ZERO };
        self.looked = now;
        let present: HashSet<(String, String)> = lines.iter().map(key_of).collect();
        self.still.retain(|key, _| present.contains(key));
        for line in lines {
            let still = self.still.entry(key_of(line)).or_insert_with(|| Still {
                since: now,
                unexcused_since: now,
                held_since: None,
                counted_for: HashSet::new(),
                is_reported: false,
            });
            let excused_until = if excuse.is_active { now } else { excuse.ended };
            still.unexcused_since = (still.unexcused_since + stopped).min(now).max(excused_until);
            if line.reason == FIRST_HELD {
                let gate = self.gates.iter().find(|gate| gate.destination() == line.destination);
                let well_since = gate.map_or(still.since, |gate| gate.well_since().unwrap_or(now));
                still.unexcused_since = still.unexcused_since.max(well_since);
            }
        }
    }

    /// What somebody holds just now cannot move.
    async fn ask_for_locks(&mut self, lines: &[Line], now: Instant) -> Result<(), sqlx::Error> {
        let old = |line: &&Line| !line.is_reason && now - self.still[&key_of(line)].unexcused_since > STILL / 2;
        let suspects: Vec<&Line> = lines.iter().filter(old).collect();
        if suspects.is_empty() {
            return Ok(());
        }
        let rows: Vec<i64> = suspects.iter().filter_map(|line| line.outbox_id).collect();
        let jobs: Vec<Uuid> = suspects.iter().filter_map(|line| line.job_id).collect();
        let names: Vec<&str> = suspects.iter().map(|line| line.destination.as_str()).collect();
        let mut transaction = self.pool.begin().await?;
        let free = "SELECT id FROM outbox WHERE id = ANY($1) FOR UPDATE SKIP LOCKED";
        let free_rows: HashSet<i64> =
            sqlx::query_scalar(free).bind(&rows).fetch_all(&mut *transaction).await?.into_iter().collect();
        let free = "SELECT id FROM webhook_jobs WHERE id = ANY($1) FOR UPDATE SKIP LOCKED";
        let free_jobs: HashSet<Uuid> =
            sqlx::query_scalar(free).bind(&jobs).fetch_all(&mut *transaction).await?.into_iter().collect();
        let held = "SELECT destination FROM destinations WHERE destination = ANY($1)
            EXCEPT SELECT destination FROM (
                SELECT destination FROM destinations WHERE destination = ANY($1) FOR UPDATE SKIP LOCKED) AS free";
        let held: HashSet<String> =
            sqlx::query_scalar(held).bind(&names).fetch_all(&mut *transaction).await?.into_iter().collect();
        transaction.rollback().await?;
        for line in suspects {
            let is_held = line.outbox_id.is_some_and(|id| !free_rows.contains(&id))
                || line.job_id.is_some_and(|id| !free_jobs.contains(&id))
                || held.contains(&line.destination);
            let still = self.still.get_mut(&key_of(line)).expect("it was noted");
            if !is_held {
                still.held_since = None;
                continue;
            }
            let held_since = *still.held_since.get_or_insert(now);
            if now - held_since < HELD {
                still.unexcused_since = now;
                count(&mut self.seen, still, SOMEBODY, now);
            }
        }
        Ok(())
    }

    async fn judge(&mut self, lines: &[Line], excuse: &Excuse, now: Instant) -> Result<(), sqlx::Error> {
        for line in lines {
            let still = self.still.get_mut(&key_of(line)).expect("it was noted");
            if line.is_reason {
                count(&mut self.seen, still, &line.reason, now);
                continue;
            }
            if now - still.unexcused_since <= STILL {
                let excuse = excuse.is_active.then_some(&excuse.name).or(excuse.brief.as_ref());
                if let Some(excuse) = excuse {
                    count(&mut self.seen, still, excuse, now);
                }
                continue;
            }
            let waited = now - still.unexcused_since;
            if let Some(known) = self.seen.standstills.iter_mut().find(|it| it.place == line.place && still.is_reported)
            {
                known.waited = waited;
                continue;
            }
            still.is_reported = true;
            let after = format!("{}, {:.1} s before", excuse.name, (now - excuse.ended).as_secs_f32());
            let rows = show(&self.pool, line).await?;
            let (reason, place) = (line.reason.clone(), line.place.clone());
            eprintln!("chaos: STANDS STILL: {reason}: {place} (after {after})");
            self.seen.standstills.push(Standstill { reason, place, waited, rows, after });
        }
        Ok(())
    }
}

fn key_of(line: &Line) -> (String, String) {
    (line.reason.clone(), line.place.clone())
}

/// Once for each thing and reason, when it has not moved for five seconds.
fn count(seen: &mut Seen, still: &mut Still, reason: &str, now: Instant) {
    let waited = now - still.since;
    if waited <= STILL {
        return;
    }
    let (things, longest) = seen.reasons.entry(reason.to_owned()).or_default();
    *things += usize::from(still.counted_for.insert(reason.to_owned()));
    *longest = waited.max(*longest);
}

/// All that Postgres knows of it.
async fn show(pool: &PgPool, line: &Line) -> Result<String, sqlx::Error> {
    let statement = "SELECT concat_ws(E'\n        ',
            (SELECT 'outbox ' || row_to_json(outbox_row)::text FROM outbox AS outbox_row WHERE id = $1),
            (SELECT 'job ' || (to_jsonb(job) - 'payload' - 'headers')::text FROM webhook_jobs AS job WHERE id = $2),
            (SELECT 'destination ' || row_to_json(known)::text FROM destinations AS known WHERE destination = $3),
            (SELECT string_agg('attempt ' || row_to_json(record)::text, E'\n        ' ORDER BY attempt)
             FROM webhook_attempts AS record WHERE job_id = $2),
            (SELECT 'in outbox_checks ' || count(*) FROM outbox_checks WHERE outbox_id = $1),
            (SELECT 'lines in ordering_checks ' || count(*) FROM ordering_checks WHERE destination = $3),
            (SELECT 'publications ' || coalesce(string_agg(at::text || ' ' || attempt, ', ' ORDER BY at), 'none')
             FROM harness.publications WHERE outbox_id = $1),
            (SELECT 'withdrawals ' || coalesce(string_agg(at::text || ' ' || attempt, ', ' ORDER BY at), 'none')
             FROM harness.withdrawals WHERE outbox_id = $1),
            'now ' || clock_timestamp())";
    let shown = sqlx::query_scalar(statement).bind(line.outbox_id).bind(line.job_id).bind(&line.destination);
    shown.fetch_one(pool).await
}
