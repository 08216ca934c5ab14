//! Messages whose jobs were not free: duplicates, stale ones, and the traces of lost workers.

use std::collections::HashMap;
use std::sync::Arc;

use outbox::claim::{self, Standing};
use outbox::job::Status;
use outbox::kill_point;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use crate::Worker;
use crate::answers::{ack, release_all};
use crate::consumer::{Received, patiently};
use crate::outcome::settlement_of_lost;

/// Answers for messages whose jobs were not free: duplicates and stale ones are dropped, and lost
/// workers are found.
pub(crate) async fn refuse(worker: &Arc<Worker>, refused: Vec<Received>, stop: &CancellationToken) {
    if refused.is_empty() {
        return;
    }
    metrics::counter!("outhook_worker_refused_total").increment(refused.len() as u64);
    let job_ids: Vec<Uuid> = refused.iter().map(|it| it.message.job_id).collect();
    let Some(standings) = patiently(stop, || claim::look_up(&worker.pool, &job_ids)).await else {
        release_all(refused.into_iter().map(|it| it.delivery)).await;
        return;
    };
    // Free after all, so somebody else held the row just then.
    let was_locked = |it: &Standing| {
        it.status == Status::Pending
            && refused.iter().any(|of| (of.message.job_id, of.message.attempt) == (it.job_id, it.attempt))
    };
    let held: Vec<Uuid> = standings
        .iter()
        .filter(|it| (it.status == Status::Processing && !it.lease_expired) || was_locked(it))
        .map(|it| it.job_id)
        .collect();
    if !held.is_empty() {
        kill_point!("worker.before_ring_later");
        if patiently(stop, || claim::ring_later(&worker.pool, &held)).await.is_none() {
            release_all(refused.into_iter().map(|it| it.delivery)).await;
            return;
        }
        kill_point!("worker.after_ring_later");
    }
    // By job: the messages of one that is lost are acked after its settlement, the others now.
    let lost = standings.into_iter().filter(|it| it.lease_expired);
    let mut lost: HashMap<Uuid, Standing> = lost.map(|it| (it.job_id, it)).collect();
    for received in refused {
        let standing = lost.remove(&received.message.job_id);
        let worker = Arc::clone(worker);
        worker.deliveries.clone().spawn(async move {
            let recorded = match standing {
                Some(standing) => take_over(&worker, &standing).await,
                None => true,
            };
            if recorded {
                ack(&received.delivery).await;
            }
        });
    }
}

/// Records the attempt of a lost worker as unknown; its job is due again with that, or at its end.
/// Returns whether that is done.
async fn take_over(worker: &Worker, standing: &Standing) -> bool {
    let settlement = settlement_of_lost(standing, &worker.config.retry);
    kill_point!("worker.before_take_over");
    let recorded = worker.settler.record(settlement).await;
    kill_point!("worker.after_take_over");
    warn!(
        job_id = %standing.job_id,
        attempt = standing.attempt,
        lost_worker = standing.claimed_by,
        ?recorded,
        "took over: the lease ended without a record"
    );
    metrics::counter!("outhook_worker_takeovers_total").increment(1);
    recorded.is_ok()
}
