//! Writes settlements in batches, and does not rest until each is written or refused by the database. What somebody
//! holds is written by itself as soon as it is free, and keeps nobody else from being written.

use std::time::Duration;

use outbox::job::settle::{Settled, SettledFree, Settlement, settle, settle_free};
use outbox::job::states::Status;
use outbox::service::batch::{BatchError, Batcher, Limits};
use outbox::service::database::{Failure, Pool, is_of_one_row};
use outbox::service::notify::Notifier;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;
use tracing::{error, warn};

/// Settlements in one transaction, and transactions at once.
const BATCH: usize = 500;
const CONCURRENT: usize = 2;

/// Between the starts of two such transactions. The receiver has its webhook, so nobody waits for them, and
/// larger batches cost Postgres less a job.
const SPACING: Duration = Duration::from_millis(10);

/// Settlements that may wait for somebody to let go of their rows; further ones keep their slots meanwhile.
const HELD: usize = 10_000;

/// Between two tries of what somebody holds: soon, for a lease runs.
const HELD_WAIT: Duration = Duration::from_millis(100);

/// What became of a settlement.
#[derive(Debug)]
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
    /// Somebody holds its rows, or the database is away: nothing was written, as far as is known. It is to be handed
    /// over again ([`Settler::place`]).
    Held(Box<Settlement>),
}

impl Recorded {
    /// One word for logs.
    pub(crate) const fn as_str(&self) -> &'static str {
        match self {
            Self::Written => "written",
            Self::LeaseLost => "lease_lost",
            Self::Unclear => "unclear",
            Self::Rejected => "not_recorded",
            Self::Held(_) => "held",
        }
    }
}

pub(crate) struct Settler {
    batcher: Batcher<Settlement, Recorded>,
    held: mpsc::Sender<Waiting>,
}

impl Settler {
    pub(crate) fn start(pool: Pool, notifier: Notifier, waiting: usize) -> Self {
        let limits = Limits { waiting, batch: BATCH, concurrent: CONCURRENT, spacing: SPACING };
        let (held, receiver) = mpsc::channel(HELD);
        tokio::spawn(settle_held(pool.clone(), notifier.clone(), receiver));
        let batcher = Batcher::start(limits, move |settlements: Vec<Settlement>| {
            let (pool, notifier) = (pool.clone(), notifier.clone());
            async move {
                let makes_due = settlements.iter().any(makes_due);
                let recorded = settle_all(&pool, settlements).await;
                if makes_due {
                    notifier.wake_relays();
                }
                recorded
            }
        });
        Self { batcher, held }
    }

    /// Records a settlement; returns after its commit, or when it is known that it must wait.
    pub(crate) async fn record(&self, settlement: Settlement) -> Result<Recorded, BatchError> {
        let is_waited_for = settlement.ordered && settlement.status != Status::Pending;
        self.batcher.submit(settlement, is_waited_for).await
    }

    /// A place among the settlements that wait for somebody to let go; waits for one if there is none.
    pub(crate) async fn place(&self) -> Result<Place<'_>, BatchError> {
        self.held.reserve().await.map(Place).map_err(|_| BatchError::GivenUp)
    }
}

/// A place for a settlement that must wait.
pub(crate) struct Place<'a>(mpsc::Permit<'a, Waiting>);

impl Place<'_> {
    /// Records the settlement as soon as it can be; returns after its commit.
    pub(crate) async fn record(self, settlement: Settlement) -> Result<Recorded, BatchError> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Waiting { settlement, answer });
        answered.await.map_err(|_| BatchError::GivenUp)
    }
}

/// Whether a relay has something to do after it.
fn makes_due(settlement: &Settlement) -> bool {
    settlement.status == Status::Pending || settlement.ordered
}

async fn settle_all(pool: &Pool, settlements: Vec<Settlement>) -> Vec<Recorded> {
    metrics::histogram!("outhook_worker_settle_batch_size")
        .record(u32::try_from(settlements.len()).unwrap_or(u32::MAX));
    let failure = match settle(pool, &settlements).await {
        Ok(settled) => return settlements.iter().map(|it| recorded(it, &settled, false)).collect(),
        Err(error) => {
            warn!(%error, settlements = settlements.len(), "cannot record attempts together");
            Failure::of(&error)
        }
    };
    // Whether the statement committed may not be known: then what is found written was perhaps written by it.
    let repeated = failure == Failure::Unavailable;
    settle_those_free(pool, settlements, repeated).await
}

/// Settles what nobody holds. What cannot be settled now is to be handed over again.
async fn settle_those_free(pool: &Pool, settlements: Vec<Settlement>, repeated: bool) -> Vec<Recorded> {
    match settle_free(pool, &settlements).await {
        Ok(SettledFree { settled, held }) => {
            settlements
                .into_iter()
                .map(|it| {
                    if held.contains(&it.job_id) {
                        Recorded::Held(it.into())
                    } else {
                        recorded(&it, &settled, repeated)
                    }
                })
                .collect()
        }
        Err(refused) if settlements.len() == 1 && is_of_one_row(&refused) => {
            error!(job_id = %settlements[0].job_id, error = %refused, "an attempt cannot be recorded");
            vec![Recorded::Rejected]
        }
        // One that the database refuses must not take the others with it.
        Err(refused) if is_of_one_row(&refused) => {
            let mut recorded = Vec::with_capacity(settlements.len());
            for settlement in settlements {
                recorded.extend(Box::pin(settle_those_free(pool, vec![settlement], repeated)).await);
            }
            recorded
        }
        Err(error) => {
            warn!(%error, settlements = settlements.len(), "cannot record attempts; trying again");
            settlements.into_iter().map(|it| Recorded::Held(it.into())).collect()
        }
    }
}

struct Waiting {
    settlement: Settlement,
    answer: oneshot::Sender<Recorded>,
}

/// Settles what had to wait, again and again until it is written or refused. Safe to repeat: what an earlier try
/// committed is refused by the fence.
async fn settle_held(pool: Pool, notifier: Notifier, mut receiver: mpsc::Receiver<Waiting>) {
    let mut waiting = Vec::new();
    while !waiting.is_empty() || receiver.recv_many(&mut waiting, BATCH).await > 0 {
        // No more than there are places: what is taken from the channel makes room in it.
        while waiting.len() < HELD
            && let Ok(more) = receiver.try_recv()
        {
            waiting.push(more);
        }
        let mut rest = Vec::new();
        let mut batches = std::mem::take(&mut waiting).into_iter().peekable();
        while batches.peek().is_some() {
            rest.extend(settle_batch(&pool, &notifier, batches.by_ref().take(BATCH).collect()).await);
        }
        waiting = rest;
        metrics::gauge!("outhook_worker_settlements_held").set(u32::try_from(waiting.len()).unwrap_or(u32::MAX));
        if !waiting.is_empty() {
            sleep(HELD_WAIT).await;
        }
    }
}

/// Returns those that must wait on.
async fn settle_batch(pool: &Pool, notifier: &Notifier, batch: Vec<Waiting>) -> Vec<Waiting> {
    let (settlements, answers): (Vec<_>, Vec<_>) = batch.into_iter().map(|it| (it.settlement, it.answer)).unzip();
    let makes_due = settlements.iter().any(makes_due);
    let recorded = settle_those_free(pool, settlements, true).await;
    if makes_due {
        notifier.wake_relays();
    }
    let mut rest = Vec::new();
    for (recorded, answer) in recorded.into_iter().zip(answers) {
        match recorded {
            Recorded::Held(settlement) => rest.push(Waiting { settlement: *settlement, answer }),
            // Whoever went away does not wait for it; what was done stays done.
            recorded => drop(answer.send(recorded)),
        }
    }
    rest
}

fn recorded(settlement: &Settlement, settled: &[Settled], repeated: bool) -> Recorded {
    let found = settled.iter().find(|it| (it.job_id, it.attempt) == (settlement.job_id, settlement.attempt));
    match found {
        Some(Settled { outbox_row_found: true, .. }) => Recorded::Written,
        Some(_) => {
            error!(job_id = %settlement.job_id, "the job's outbox row is gone: somebody deleted it");
            metrics::counter!("outhook_worker_outbox_rows_missing_total").increment(1);
            Recorded::Written
        }
        // An earlier try may have committed without our hearing of it, or the lease was lost meanwhile.
        None if repeated => Recorded::Unclear,
        None => Recorded::LeaseLost,
    }
}
