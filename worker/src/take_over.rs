//! What becomes of the jobs of workers that are lost.

use outbox::broker::task::Task;
use outbox::job::unclaimed::{UnclaimedJob, check_again};
use outbox::kill_point;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::outcome::settlement_of_lost;
use crate::patience::patiently;
use crate::settler::Recorded;
use crate::worker::Worker;

/// Records the attempt of a lost worker as unknown; its job is due again with that, or at its end. Returns whether its
/// task is no longer needed.
pub(crate) async fn take_over(worker: &Worker, job: &UnclaimedJob, task: &Task, stop: &CancellationToken) -> bool {
    let settlement = settlement_of_lost(job, &worker.config.retry);
    kill_point!("worker.before_take_over");
    let recorded = worker.settler.record(settlement).await;
    kill_point!("worker.after_take_over");
    warn!(
        job_id = %job.job_id,
        attempt = job.attempt,
        lost_worker = job.claimed_by,
        recorded = ?recorded.as_ref().map(Recorded::as_str),
        "took over: the lease ended without a record"
    );
    metrics::counter!("outhook_worker_takeovers_total").increment(1);
    match recorded {
        Ok(Recorded::Written) => true,
        // Its holder lives, or somebody holds its rows: whoever looks next finds out.
        Ok(_) => patiently(stop, || check_again(&worker.pool, [task])).await.is_some(),
        Err(_) => false,
    }
}
