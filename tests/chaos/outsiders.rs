//! What people outside do all the while: leave cancels open, hold rows and tables, set limits; and a receiver falls sick.
//!
//! None of it lasts longer than some seconds, and none of it is a reason for anything else to stand still.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use outbox::service::clock;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use sqlx::{AssertSqlSafe, PgPool};
use time::OffsetDateTime;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::excuses::Excuses;
use crate::gate::{Gate, SICKNESSES};

/// Whoever cannot have a row at once goes without.
const PATIENCE_OF_OUTSIDERS: &str = "SET LOCAL lock_timeout = '500 ms'";

/// Rows that somebody holds for a while.
const ROWS: [&str; 5] = [
    "SELECT 1 FROM webhook_jobs WHERE status = 'pending' ORDER BY random() LIMIT 20 FOR UPDATE SKIP LOCKED",
    "SELECT 1 FROM webhook_jobs WHERE status = 'processing' ORDER BY random() LIMIT 5 FOR UPDATE SKIP LOCKED",
    "SELECT 1 FROM outbox ORDER BY random() LIMIT 20 FOR UPDATE SKIP LOCKED",
    "SELECT 1 FROM outbox WHERE ordering_key IS NOT NULL ORDER BY random() LIMIT 5 FOR UPDATE SKIP LOCKED",
    "SELECT 1 FROM destinations FOR UPDATE SKIP LOCKED",
];

/// Tables that somebody holds, so that nobody can even read them.
const TABLES: [&str; 4] = ["webhook_jobs", "outbox", "destinations", "ordering_checks"];

/// What they have done.
#[derive(Debug, Default)]
pub struct Deeds {
    /// Jobs whose cancel was committed.
    pub cancelled: Vec<Uuid>,
    /// Jobs whose cancel was on its way to the commit when the database went away.
    pub perhaps_cancelled: Vec<Uuid>,
    pub rolled_back: usize,
    pub rows_held: usize,
    pub tables_held: usize,
    pub limits: Vec<Limit>,
    pub sicknesses: usize,
}

/// A limit from when its commit was known until somebody began to lift it.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub per_second: i32,
    pub from: OffsetDateTime,
    pub until: OffsetDateTime,
}

/// All of them until they are stopped.
pub struct Outsiders {
    tasks: JoinSet<()>,
    deeds: Arc<Mutex<Deeds>>,
    stop: CancellationToken,
}

/// What each of them has.
#[derive(Clone)]
struct Outsider {
    pool: PgPool,
    deeds: Arc<Mutex<Deeds>>,
    stop: CancellationToken,
}

impl Outsiders {
    pub fn start(pool: &PgPool, sick: &Arc<Gate>, limited: &Arc<Gate>, excuses: &Excuses, seed: u64) -> Self {
        let (deeds, stop) = (Arc::<Mutex<Deeds>>::default(), CancellationToken::new());
        let outsider = Outsider { pool: pool.clone(), deeds: Arc::clone(&deeds), stop: stop.clone() };
        let random = |number: u64| StdRng::seed_from_u64(seed.wrapping_mul(31).wrapping_add(number));
        let mut tasks = JoinSet::new();
        for number in 0..3 {
            tasks.spawn(outsider.clone().cancel(random(number)));
        }
        for number in 3..5 {
            tasks.spawn(outsider.clone().hold_rows(random(number)));
        }
        tasks.spawn(outsider.clone().hold_tables(random(5), excuses.clone()));
        tasks.spawn(outsider.clone().limit(random(6), limited.url("")));
        tasks.spawn(outsider.fall_sick(random(7), Arc::clone(sick)));
        Self { tasks, deeds, stop }
    }

    /// Lets each end what it has begun, lifts limits, and makes the sick well.
    pub async fn stop(self) -> Deeds {
        self.stop.cancel();
        self.tasks.join_all().await;
        std::mem::take(&mut self.deeds.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Outsider {
    fn deeds(&self) -> MutexGuard<'_, Deeds> {
        self.deeds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether it is to go on.
    async fn rest(&self, random: &mut StdRng, milliseconds: std::ops::Range<u64>) -> bool {
        let pause = Duration::from_millis(random.random_range(milliseconds));
        self.stop.run_until_cancelled(sleep(pause)).await.is_some()
    }

    async fn cancel(self, mut random: StdRng) {
        while self.rest(&mut random, 500..2_500).await {
            // Postgres may be away: then there is nothing to cancel.
            let _ = self.cancel_one(&mut random).await;
        }
    }

    /// Cancels a webhook that is not under way, and thinks about it for a while.
    async fn cancel_one(&self, random: &mut StdRng) -> Result<(), sqlx::Error> {
        let (prefers_keys, is_kept) = (random.random_bool(0.5), random.random_bool(0.5));
        let mut transaction = self.pool.begin().await?;
        sqlx::query(PATIENCE_OF_OUTSIDERS).execute(&mut *transaction).await?;
        let any = "SELECT id FROM webhook_jobs WHERE status = 'pending'
            ORDER BY ordering_key IS NOT NULL AND $1 DESC, random() LIMIT 1";
        let job = sqlx::query_scalar(any).bind(prefers_keys).fetch_optional(&mut *transaction).await?;
        let Some(job): Option<Uuid> = job else { return Ok(()) };
        let cancel = sqlx::query_scalar("SELECT outhook.cancel($1)").bind(job);
        let is_cancelled: Option<bool> = cancel.fetch_one(&mut *transaction).await?;
        self.rest(random, 50..4_000).await;
        if !is_kept || is_cancelled != Some(true) {
            self.deeds().rolled_back += 1;
            return transaction.rollback().await;
        }
        let committed = transaction.commit().await;
        let mut deeds = self.deeds();
        let list = if committed.is_ok() { &mut deeds.cancelled } else { &mut deeds.perhaps_cancelled };
        list.push(job);
        committed
    }

    async fn hold_rows(self, mut random: StdRng) {
        while self.rest(&mut random, 500..2_000).await {
            let rows = ROWS.choose(&mut random).expect("there are some");
            if self.hold(rows, &mut random, 100..3_000).await.is_ok() {
                self.deeds().rows_held += 1;
            }
        }
    }

    async fn hold_tables(self, mut random: StdRng, excuses: Excuses) {
        while self.rest(&mut random, 8_000..14_000).await {
            let table = TABLES.choose(&mut random).expect("there are some");
            let name = format!("table {table} locked");
            excuses.begin_brief(&name);
            if self.hold(&format!("LOCK TABLE {table}"), &mut random, 100..2_000).await.is_ok() {
                self.deeds().tables_held += 1;
            }
            excuses.end_brief(&name);
        }
    }

    async fn hold(
        &self,
        statement: &str,
        random: &mut StdRng,
        milliseconds: std::ops::Range<u64>,
    ) -> Result<(), sqlx::Error> {
        let mut transaction = self.pool.begin().await?;
        sqlx::query(PATIENCE_OF_OUTSIDERS).execute(&mut *transaction).await?;
        sqlx::query(AssertSqlSafe(statement.to_owned())).execute(&mut *transaction).await?;
        self.rest(random, milliseconds).await;
        transaction.rollback().await
    }

    async fn limit(self, mut random: StdRng, url: String) {
        while self.rest(&mut random, 2_000..6_000).await {
            let per_second = random.random_range(3..13);
            if self.set_limit(&url, Some(per_second)).await.is_err() {
                // Whether it was set is not known: it is lifted below, and counts for nothing.
                self.lift(&url).await;
                continue;
            }
            let from = clock::now();
            self.rest(&mut random, 4_000..9_000).await;
            self.deeds().limits.push(Limit { per_second, from, until: clock::now() });
            self.lift(&url).await;
        }
    }

    async fn set_limit(&self, url: &str, per_second: Option<i32>) -> Result<(), sqlx::Error> {
        let limit = sqlx::query("SELECT outhook.limit_destination($1, $2)").bind(url).bind(per_second);
        limit.execute(&self.pool).await.map(drop)
    }

    async fn lift(&self, url: &str) {
        while self.set_limit(url, None).await.is_err() {
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn fall_sick(self, mut random: StdRng, gate: Arc<Gate>) {
        while self.rest(&mut random, 4_000..12_000).await {
            gate.set(SICKNESSES.choose(&mut random).copied());
            self.deeds().sicknesses += 1;
            self.rest(&mut random, 2_000..6_000).await;
            gate.set(None);
        }
    }
}
