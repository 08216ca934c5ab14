//! Claims the jobs of tasks, and finds out what became of a claim that was not answered.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use outbox::broker::task::Task;
use outbox::job::claim::{self, Claimed};
use outbox::service::database::is_of_one_row;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::patience::{backoff, patiently};
use crate::worker::Worker;

/// A job of this worker's.
pub(crate) struct Claim {
    pub job: Claimed,
    /// The name that it was claimed under.
    pub name: Arc<str>,
    /// When that was asked for: the lease began after it.
    pub asked: Instant,
    /// When it was answered.
    pub answered: Instant,
}

/// Claims what is free of the tasks' jobs, and does not rest until Postgres has answered for each, or
/// the stop. Also returns the outbox rows of those whose jobs it cannot read.
pub(crate) async fn claim_all(worker: &Worker, tasks: &[Task], stop: &CancellationToken) -> (Vec<Claim>, HashSet<i64>) {
    // A name of its own for each batch: what a lost answer claimed is found again by it.
    let name: Arc<str> = format!("{}#{}", worker.name, worker.claims.fetch_add(1, Ordering::Relaxed)).into();
    let lease = worker.config.delivery.lease();
    let claim_of = |asked| {
        let name = Arc::clone(&name);
        move |job| Claim { job, name: Arc::clone(&name), asked, answered: Instant::now() }
    };
    let mut claimed: Vec<Claim> = Vec::new();
    let mut unreadable = HashSet::new();
    let mut rest = tasks.to_vec();
    let mut size = rest.len();
    let mut backoff = backoff();
    while !rest.is_empty() {
        size = size.min(rest.len());
        let asked = Instant::now();
        match claim::claim(&worker.pool, &rest[..size], &name, lease).await {
            Ok(new) => {
                claimed.extend(new.into_iter().map(claim_of(asked)));
                rest.drain(..size);
                backoff.reset();
                continue;
            }
            Err(error) if is_of_one_row(&error) => {
                if size == 1 {
                    error!(%error, job_id = %rest[0].job_id, "Postgres cannot read a job; it is tried again in a while");
                    unreadable.insert(rest.remove(0).outbox_id);
                    size = rest.len();
                } else {
                    size /= 2;
                }
                continue;
            }
            Err(error) => warn!(%error, jobs = size, "cannot claim; trying again"),
        }
        // Perhaps it was too much for one answer.
        size = (size / 2).max(1);
        if stop.run_until_cancelled(sleep(backoff.next_wait())).await.is_none() {
            break;
        }
        let Some(recovered) = recover_all(worker, tasks, &name, stop).await else { break };
        claimed = recovered.into_iter().map(|(job, asked)| claim_of(asked)(job)).collect();
        rest.retain(|task| claimed.iter().all(|it| it.job.job_id != task.job_id));
    }
    (claimed, unreadable)
}

/// What was claimed under this name without our hearing of it, and when that was asked; but for what Postgres cannot read.
/// `None` at the stop.
async fn recover_all(
    worker: &Worker,
    tasks: &[Task],
    name: &str,
    stop: &CancellationToken,
) -> Option<Vec<(Claimed, Instant)>> {
    let lease = worker.config.delivery.lease();
    let mut recovered = Vec::new();
    let mut parts = vec![tasks];
    while let Some(part) = parts.pop() {
        let asked = Instant::now();
        match patiently(stop, || claim::recover_claim(&worker.pool, part, name, lease)).await {
            Some(jobs) => recovered.extend(jobs.into_iter().map(|job| (job, asked))),
            None if stop.is_cancelled() => return None,
            None if part.len() > 1 => parts.extend(<[_; 2]>::from(part.split_at(part.len() / 2))),
            None => {}
        }
    }
    Some(recovered)
}
