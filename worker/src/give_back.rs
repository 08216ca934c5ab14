//! Tasks that are not attempted now: duplicates, stale ones, the traces of lost workers, and those that make way for
//! others. All of it goes on beside the consumer's loop, and waits for nobody's locks: what somebody holds is put on a
//! list, and a relay makes it due again as soon as it is free.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use outbox::broker::task::Task;
use outbox::destination::hold::hold_published;
use outbox::job::states::Status;
use outbox::job::unclaimed::{self, UnclaimedJob};
use outbox::kill_point;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::patience::patiently;
use crate::queue::{Received, ack, release, release_all};
use crate::take_over::take_over;
use crate::worker::Worker;

/// For so long a task is put off for which there was no slot; up to twice as long, so that not all come at once.
const CROWDED_WAIT: Duration = Duration::from_secs(1);

/// The same where requests are under way and none is answered.
const HANGING_WAIT: Duration = Duration::from_secs(4);

/// The same where somebody has to mend a job first.
const UNREADABLE_WAIT: Duration = Duration::from_secs(30);

/// Before tasks are handed out again whose outbox rows cannot be read either.
const RELEASE_WAIT: Duration = Duration::from_secs(1);

/// Why a task is not attempted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Its job was not free.
    NotClaimed,
    /// Postgres cannot read its job.
    Unreadable,
    /// Its destination is sick.
    Sick,
    /// There was no slot for it.
    Crowded,
    /// There was no slot for it, and its destination answers none of those that are under way.
    Hangs,
}

/// Gives tasks back. Returns at once; the tasks are acked when Postgres no longer needs them.
pub(crate) fn give_back(worker: &Arc<Worker>, received: Vec<Received>, reason: Reason, stop: &CancellationToken) {
    if received.is_empty() {
        return;
    }
    let (worker, stop) = (Arc::clone(worker), stop.clone());
    worker.deliveries.clone().spawn(async move {
        // One at a time: what waits here is bounded by what the broker hands out ahead.
        let _turn = worker.giving_back.acquire().await.expect("the semaphore is never closed");
        let mut parts = vec![(received, reason)];
        while let Some((received, reason)) = parts.pop() {
            let done = match reason {
                Reason::NotClaimed => look_after(&worker, received, &stop).await,
                Reason::Unreadable => put_off_unread(&worker, received, &stop).await,
                Reason::Sick => hold(&worker, received, &stop).await,
                Reason::Crowded => put_off(&worker, received, CROWDED_WAIT, &stop).await,
                Reason::Hangs => put_off(&worker, received, HANGING_WAIT, &stop).await,
            };
            let Err(mut left) = done else { continue };
            if stop.is_cancelled() || reason == Reason::Unreadable {
                // They may come back at once.
                stop.run_until_cancelled(sleep(RELEASE_WAIT)).await;
                release_all(left.into_iter().map(|it| it.delivery)).await;
            } else if left.len() == 1 {
                parts.push((left, Reason::Unreadable));
            } else {
                // By halves, until what cannot be read is alone.
                let half = left.split_off(left.len() / 2);
                parts.extend([(left, reason), (half, reason)]);
            }
        }
    });
}

/// What is left when the worker stops in the middle, or when Postgres cannot read the job of one.
type Done = Result<(), Vec<Received>>;

/// Puts tasks off whose jobs Postgres cannot read.
async fn put_off_unread(worker: &Worker, received: Vec<Received>, stop: &CancellationToken) -> Done {
    let tasks: Vec<Task> = received.iter().map(|it| it.task.clone()).collect();
    let postponed = patiently(stop, || unclaimed::postpone_unread(&worker.pool, &tasks, UNREADABLE_WAIT)).await;
    if postponed.is_none() {
        return Err(received);
    }
    ack_all(&received).await;
    Ok(())
}

/// Holds tasks of destinations that are sick.
async fn hold(worker: &Arc<Worker>, received: Vec<Received>, stop: &CancellationToken) -> Done {
    metrics::counter!("outhook_worker_held_total").increment(received.len() as u64);
    let tasks: Vec<Task> = received.iter().map(|it| it.task.clone()).collect();
    let Some(rows) = patiently(stop, || hold_published(&worker.pool, &tasks)).await else { return Err(received) };
    kill_point!("worker.after_hold");
    ack_or_look_after(worker, received, &rows, stop).await
}

/// Puts tasks off for which there was no slot.
async fn put_off(worker: &Arc<Worker>, received: Vec<Received>, wait: Duration, stop: &CancellationToken) -> Done {
    metrics::counter!("outhook_worker_put_off_total").increment(received.len() as u64);
    let waits = received.iter().map(|it| (&it.task, wait.mul_f64(rand::random_range(1.0..2.0))));
    let waits: Vec<(&Task, Duration)> = waits.collect();
    let Some(rows) = patiently(stop, || unclaimed::postpone(&worker.pool, &waits)).await else {
        drop(waits);
        return Err(received);
    };
    ack_or_look_after(worker, received, &rows, stop).await
}

/// Acks what was changed; the others are duplicates, or of lost workers, or held: nobody else would look after these.
async fn ack_or_look_after(
    worker: &Arc<Worker>,
    received: Vec<Received>,
    rows: &[i64],
    stop: &CancellationToken,
) -> Done {
    let (changed, others): (Vec<_>, Vec<_>) = received.into_iter().partition(|it| rows.contains(&it.task.outbox_id));
    ack_all(&changed).await;
    if others.is_empty() { Ok(()) } else { look_after(worker, others, stop).await }
}

async fn ack_all(received: &[Received]) {
    join_all(received.iter().map(|it| ack(&it.delivery))).await;
}

/// What is to be done about a task whose job was not free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Care {
    /// It is of an earlier attempt: it is dropped.
    Drop,
    /// Its job is leased, or held by somebody, or at its end: its row is looked at again, should it be there.
    CheckAgain,
    /// Its URL is paused for so long.
    Pause(Duration),
    /// Its worker is lost.
    TakeOver,
}

fn care_for(task: &Task, job: Option<&UnclaimedJob>) -> Care {
    // Its row, should there be one, is deleted when it is looked at.
    let Some(job) = job else { return Care::CheckAgain };
    match job.status {
        Status::Processing if job.lease_expired => Care::TakeOver,
        Status::Pending if job.attempt != task.attempt => Care::Drop,
        Status::Pending => job.paused_for.map_or(Care::CheckAgain, Care::Pause),
        // Leased; or at its end, and should it not have come there by a settlement, its row is still there.
        Status::Processing | Status::Success | Status::Failed | Status::Cancelled => Care::CheckAgain,
    }
}

/// Looks after tasks whose jobs were not free.
async fn look_after(worker: &Arc<Worker>, received: Vec<Received>, stop: &CancellationToken) -> Done {
    metrics::counter!("outhook_worker_refused_total").increment(received.len() as u64);
    let job_ids: Vec<Uuid> = received.iter().map(|it| it.task.job_id).collect();
    let Some(jobs) = patiently(stop, || unclaimed::look_up(&worker.pool, &job_ids)).await else {
        return Err(received);
    };
    let jobs: HashMap<Uuid, UnclaimedJob> = jobs.into_iter().map(|it| (it.job_id, it)).collect();
    let care = |it: &Received| care_for(&it.task, jobs.get(&it.task.job_id));
    let paused: Vec<(&Task, Duration)> = received
        .iter()
        .filter_map(|it| if let Care::Pause(pause) = care(it) { Some((&it.task, pause)) } else { None })
        .collect();
    let Some(postponed) = postpone_all(worker, &paused, stop).await else {
        drop(paused);
        return Err(received);
    };
    let is_to_check = |it: &Received| {
        matches!(care(it), Care::CheckAgain | Care::Pause(_)) && !postponed.contains(&it.task.outbox_id)
    };
    let to_check: Vec<&Task> = received.iter().filter(|it| is_to_check(it)).map(|it| &it.task).collect();
    if !to_check.is_empty() {
        kill_point!("worker.before_check_again");
        if patiently(stop, || unclaimed::check_again(&worker.pool, to_check.iter().copied())).await.is_none() {
            drop((paused, to_check));
            return Err(received);
        }
        kill_point!("worker.after_check_again");
    }
    drop((paused, to_check));
    take_over_lost(worker, received, jobs, stop).await;
    Ok(())
}

/// Gives back to the outbox what a receiver asked to pause. Returns the rows; the others are held by somebody.
async fn postpone_all(worker: &Worker, paused: &[(&Task, Duration)], stop: &CancellationToken) -> Option<HashSet<i64>> {
    if paused.is_empty() {
        return Some(HashSet::new());
    }
    metrics::counter!("outhook_worker_paused_total").increment(paused.len() as u64);
    let rows = patiently(stop, || unclaimed::postpone(&worker.pool, paused)).await?;
    Some(rows.into_iter().collect())
}

/// Acks all; the tasks of jobs whose workers are lost after those are settled. One task of a job takes it over.
async fn take_over_lost(
    worker: &Arc<Worker>,
    received: Vec<Received>,
    jobs: HashMap<Uuid, UnclaimedJob>,
    stop: &CancellationToken,
) {
    let mut lost: HashMap<Uuid, UnclaimedJob> = jobs.into_iter().filter(|(_, it)| it.lease_expired).collect();
    let (of_lost, others): (Vec<_>, Vec<_>) = received.into_iter().partition(|it| lost.contains_key(&it.task.job_id));
    ack_all(&others).await;
    for received in of_lost {
        let Some(job) = lost.remove(&received.task.job_id) else {
            ack(&received.delivery).await;
            continue;
        };
        let (worker, stop) = (Arc::clone(worker), stop.clone());
        worker.deliveries.clone().spawn(async move {
            if take_over(&worker, &job, &received.task, &stop).await {
                ack(&received.delivery).await;
            } else {
                release(received.delivery).await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use outbox::service::clock;

    use super::*;

    fn job(status: Status, attempt: i32) -> UnclaimedJob {
        UnclaimedJob {
            job_id: Uuid::nil(),
            status,
            attempt,
            retry_count: 0,
            max_attempts: None,
            ordered: false,
            claimed_by: String::new(),
            started_at: clock::now(),
            lease_expired: false,
            paused_for: None,
        }
    }

    #[test]
    fn what_is_not_claimed_is_dropped_at_once_only_if_nobody_needs_it() {
        let task = Task::new(Uuid::nil(), 1, 7, None);
        let pause = Duration::from_secs(3);
        let paused = UnclaimedJob { paused_for: Some(pause), ..job(Status::Pending, 1) };
        let lost = UnclaimedJob { lease_expired: true, ..job(Status::Processing, 2) };
        for (job, care) in [
            (None, Care::CheckAgain),
            (Some(job(Status::Success, 2)), Care::CheckAgain),
            (Some(job(Status::Cancelled, 1)), Care::CheckAgain),
            (Some(job(Status::Pending, 2)), Care::Drop),
            (Some(job(Status::Pending, 1)), Care::CheckAgain),
            (Some(job(Status::Processing, 2)), Care::CheckAgain),
            (Some(paused), Care::Pause(pause)),
            (Some(lost), Care::TakeOver),
        ] {
            assert_eq!(care_for(&task, job.as_ref()), care, "{job:?}");
        }
    }
}
