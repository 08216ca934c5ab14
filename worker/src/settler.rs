//! Writes settlements in batches, and does not rest until each is written or refused by the database.

use std::time::Duration;

use futures_util::future::join_all;
use outbox::backoff::Backoff;
use outbox::batch::{BatchError, Batcher, Limits};
use outbox::claim::ring_later;
use outbox::database::Failure;
use outbox::job::Status;
use outbox::notify::Notifier;
use outbox::settle::{Settled, Settlement, settle};
use sqlx::PgPool;
use tokio::time::sleep;
use tracing::{error, warn};

/// Settlements in one transaction, and transactions at once.
const BATCH: usize = 500;
const CONCURRENT: usize = 2;

/// Between the starts of two such transactions. The receiver has its webhook, so nobody waits for them, and
/// larger batches cost Postgres less a job.
const SPACING: Duration = Duration::from_millis(10);

/// What became of a settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recorded {
    /// It is committed.
    Written,
    /// The attempt had lost its lease: nothing was written.
    LeaseLost,
    /// One or the other: the answer to an earlier try was lost.
    Unclear,
    /// The database refuses its content: nothing was written. The lease ends, and the attempt is recorded
    /// as unknown.
    Rejected,
}

pub(crate) struct Settler {
    batcher: Batcher<Settlement, Recorded>,
}

impl Settler {
    pub(crate) fn start(pool: PgPool, notifier: Notifier, waiting: usize) -> Self {
        let limits = Limits { waiting, batch: BATCH, concurrent: CONCURRENT, spacing: SPACING };
        let batcher = Batcher::start(limits, move |settlements: Vec<Settlement>| {
            let (pool, notifier) = (pool.clone(), notifier.clone());
            async move {
                let recorded = settle_all(&pool, &settlements).await;
                if settlements.iter().any(|settlement| settlement.status == Status::Pending) {
                    notifier.wake_relays();
                }
                recorded
            }
        });
        Self { batcher }
    }

    /// Records a settlement; returns after its commit.
    pub(crate) async fn record(&self, settlement: Settlement) -> Result<Recorded, BatchError> {
        self.batcher.submit(settlement).await
    }
}

async fn settle_all(pool: &PgPool, settlements: &[Settlement]) -> Vec<Recorded> {
    metrics::histogram!("outhook_worker_settle_batch_size")
        .record(u32::try_from(settlements.len()).unwrap_or(u32::MAX));
    match settle(pool, settlements).await {
        Ok(settled) => return settlements.iter().map(|it| recorded(it, &settled, false)).collect(),
        Err(error) => warn!(%error, settlements = settlements.len(), "cannot record attempts; trying each by itself"),
    }
    // One that the database refuses, or whose row is locked, must not take the others with it.
    join_all(settlements.iter().map(|settlement| settle_one(pool, settlement))).await
}

async fn settle_one(pool: &PgPool, settlement: &Settlement) -> Recorded {
    match settle_patiently(pool, settlement).await {
        Ok(recorded) => recorded,
        Err(rejected) => {
            error!(job_id = %settlement.job_id, error = %rejected, "an attempt cannot be recorded");
            // So that it is found when the lease ends, not at the republish interval.
            if let Err(error) = ring_later(pool, &[settlement.job_id]).await {
                warn!(%error, "its alarm stays where it is");
            }
            Recorded::Rejected
        }
    }
}

/// Settles one attempt again, waiting for a database that is away. Safe to repeat: what an earlier try
/// committed is refused by the fence.
///
/// An error means that the database refuses its content.
async fn settle_patiently(pool: &PgPool, settlement: &Settlement) -> Result<Recorded, sqlx::Error> {
    let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
    loop {
        match settle(pool, std::slice::from_ref(settlement)).await {
            Ok(settled) => return Ok(recorded(settlement, &settled, true)),
            Err(rejected) if Failure::of(&rejected) == Failure::Rejected => return Err(rejected),
            Err(error) => warn!(job_id = %settlement.job_id, %error, "cannot record an attempt; trying again"),
        }
        sleep(backoff.next_wait()).await;
    }
}

fn recorded(settlement: &Settlement, settled: &[Settled], repeated: bool) -> Recorded {
    let found = settled.iter().find(|it| (it.job_id, it.attempt) == (settlement.job_id, settlement.attempt));
    match found {
        Some(Settled { alarm_found: true, .. }) => Recorded::Written,
        Some(_) => {
            error!(job_id = %settlement.job_id, "the job's outbox row is gone: somebody deleted it");
            metrics::counter!("outhook_worker_alarms_missing_total").increment(1);
            Recorded::Written
        }
        // An earlier try may have committed without our hearing of it, or the lease was lost meanwhile.
        None if repeated => Recorded::Unclear,
        None => Recorded::LeaseLost,
    }
}
