//! Writes settlements in batches, and does not rest until each is written or refused by the database.

use std::time::Duration;

use outbox::backoff::Backoff;
use outbox::batch::{BatchError, Batcher, Limits};
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

/// What became of a settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recorded {
    /// It is committed.
    Written,
    /// The attempt had lost its lease: nothing was written.
    LeaseLost,
    /// The database refuses its content: nothing was written. The lease ends, and the attempt is recorded
    /// as unknown.
    Rejected,
}

pub(crate) struct Settler {
    batcher: Batcher<Settlement, Recorded>,
}

impl Settler {
    pub(crate) fn start(pool: PgPool, notifier: Notifier, waiting: usize) -> Self {
        let limits = Limits { waiting, batch: BATCH, concurrent: CONCURRENT };
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
    if let Ok(recorded) = settle_patiently(pool, settlements).await {
        return recorded;
    }
    // One that the database refuses must not take the others with it.
    let mut recorded = Vec::with_capacity(settlements.len());
    for settlement in settlements {
        let one = settle_patiently(pool, std::slice::from_ref(settlement)).await;
        recorded.extend(one.unwrap_or_else(|rejected| {
            error!(job_id = %settlement.job_id, error = %rejected, "an attempt cannot be recorded");
            vec![Recorded::Rejected]
        }));
    }
    recorded
}

/// Settles a batch, waiting for a database that is away. Safe to repeat: what an earlier try committed
/// is refused by the fence.
///
/// An error means that the database refuses the content of at least one.
async fn settle_patiently(pool: &PgPool, settlements: &[Settlement]) -> Result<Vec<Recorded>, sqlx::Error> {
    let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
    let mut repeated = false;
    loop {
        match settle(pool, settlements).await {
            Ok(settled) => return Ok(settlements.iter().map(|it| recorded(it, &settled, repeated)).collect()),
            Err(rejected) if Failure::of(&rejected) == Failure::Rejected => return Err(rejected),
            Err(error) => warn!(%error, settlements = settlements.len(), "cannot record attempts; trying again"),
        }
        repeated = true;
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
        // An earlier try may have committed without our hearing of it.
        None if repeated => Recorded::Written,
        None => Recorded::LeaseLost,
    }
}
