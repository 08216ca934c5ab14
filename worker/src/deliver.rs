//! One attempt, from its claim to its record.

use std::time::Duration;

use bytes::Bytes;
use outbox::broker::task::Task;
use outbox::destination::Destination;
use outbox::destination::limit::{Slots, reserve_slots};
use outbox::destination::pause::pause_url;
use outbox::job::claim::{Claimed, recover_claim};
use outbox::job::settle::Settlement;
use outbox::job::states::Status;
use outbox::job::unclaimed::check_again;
use outbox::kill_point;
use outbox::service::clock;
use outbox::service::telemetry::Raised;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use crate::claimer::Claim;
use crate::intake::{Answered, Finding, Progress, SLOT_LASTS};
use crate::outcome;
use crate::patience::patiently;
use crate::queue::{Received, ack, release};
use crate::response::Exchange;
use crate::send_error::SendError;
use crate::settler::Recorded;
use crate::trace;
use crate::worker::Worker;

/// A pause that cannot be written in this time is left to the next answer that asks for it.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A request that would leave later than this after its claim looks for its slot again. A worker that is merely busy is
/// not this late.
const LATE: Duration = Duration::from_secs(1);

/// How long it looks for one, in its worker's slot. Limits are of one a second at least, so this many have had theirs.
const LONGEST_LATE: Duration = Duration::from_mins(5);

/// How soon to ask again for a slot that is further ahead than they are given out.
const SLOT_SPACING: Duration = Duration::from_millis(250);

/// Delivers a claimed job once, records what happened, and acks its task when Postgres no longer needs it.
/// Without that it is handed out again.
pub(crate) async fn deliver(worker: &Worker, mut claim: Claim, received: Received) {
    let _under_way = Raised::by(metrics::gauge!("outhook_worker_deliveries"), 1.0);
    trace::claimed(worker, &claim, &received.task);
    kill_point!("worker.before_post");
    let Some((exchange, duration)) = exchange(worker, &mut claim, &received.task).await else {
        return leave(worker, received).await;
    };
    kill_point!("worker.after_post");
    let since_acceptance = (claim.job.started_at - claim.job.created_at) + claim.asked.elapsed();
    let job = claim.job;
    // Before the next request may go.
    pause(worker, &job, &exchange).await;
    let settlement = settlement(worker, &job, &exchange, duration);
    let finding = outcome::finding(&exchange, worker.config.delivery.timeout(), &worker.config.responses);
    free_destination(worker, &received, finding);
    let (status, error) = (settlement.status, settlement.error.clone());
    let span = trace::settle(worker, &job, &received.task);
    let (recorded, fate) = record(worker, settlement, &received).await;
    let outcome = match &recorded {
        Some(Recorded::Written) => status.as_str(),
        Some(other) => other.as_str(),
        None => "not_recorded",
    };
    if let Some(span) = span {
        span.recorded(outcome);
    }
    log(&job, &exchange, duration, &error, outcome);
    if outcome == Status::Success.as_str() {
        metrics::histogram!("outhook_worker_delivery_seconds").record(since_acceptance.as_seconds_f64().max(0.0));
    }
    match fate {
        // After the commit, or when there is nothing of ours to commit.
        Fate::Done => {
            kill_point!("worker.before_ack");
            ack(&received.delivery).await;
            kill_point!("worker.after_ack");
        }
        Fate::Again => release(received.delivery).await,
        Fate::Acked | Fate::Kept => {}
    }
}

/// What becomes of an attempt's task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Postgres no longer needs it.
    Done,
    /// It was acked before: the list of rows to look at again stood in for it.
    Acked,
    /// It is handed out again.
    Again,
    /// It comes again when the connection ends.
    Kept,
}

/// The job, when its request may leave, under a lease that outlasts it. A worker that stood still since its claim would post
/// under one that ends before the answer comes, beside whoever takes over, and above a limit that was set meanwhile or whose
/// slot is over. So it starts its lease anew, or finds that it has lost the job, and takes another slot.
async fn still_ours(worker: &Worker, claim: &mut Claim, task: &Task) -> Option<()> {
    let lease = worker.config.delivery.lease();
    let late_since = Instant::now();
    let mut slot = (claim.answered.elapsed() < LATE).then_some(late_since);
    while late_since.elapsed() < LONGEST_LATE {
        // While it waits for a slot, in time: one that is used after a renewal would be used late.
        let lasts = if slot.is_some() { lease.margin } else { lease.margin / 2 };
        if claim.asked.elapsed() >= lasts {
            warn!(job_id = %claim.job.job_id, attempt = claim.job.attempt, "late for a request: renewing the lease first");
            claim.asked = Instant::now();
            let tasks = std::slice::from_ref(task);
            let renewed = patiently(&worker.abort, || recover_claim(&worker.pool, tasks, &claim.name, lease));
            claim.job = renewed.await?.pop().filter(|job| job.attempt == claim.job.attempt)?;
        } else if slot.is_some_and(|slot| slot.elapsed() <= SLOT_LASTS) {
            return Some(());
        } else {
            let slots = patiently(&worker.abort, || reserve_slot(worker, &task.destination)).await?;
            if slots.spacing.is_zero() && slots.count > 0 {
                return Some(());
            }
            let at = Instant::now() + if slots.count > 0 { slots.first_in } else { SLOT_SPACING };
            sleep_until(at).await;
            slot = (slots.count > 0).then_some(at);
        }
    }
    None
}

/// Asks for the next slot of the destination's limit, if it has one.
async fn reserve_slot(worker: &Worker, destination: &Destination) -> Result<Slots, sqlx::Error> {
    let _turn = worker.asking.acquire().await.expect("the semaphore is never closed");
    reserve_slots(&worker.pool, destination, 1).await
}

/// Leaves a job to whoever has it now, or to the end of its lease. Nothing was sent.
async fn leave(worker: &Worker, received: Received) {
    free_destination(worker, &received, None);
    let is_listed = leave_to_the_list(worker, &received.task).await;
    free_slot(worker);
    if is_listed { ack(&received.delivery).await } else { release(received.delivery).await }
}

/// Guards the target, signs and posts, once. `None` if the job is no longer this worker's to be sent.
async fn exchange(worker: &Worker, claim: &mut Claim, task: &Task) -> Option<(Exchange, Duration)> {
    loop {
        still_ours(worker, claim, task).await?;
        // It may be large: there is one copy of it, which is gone when the request has ended.
        let payload = Bytes::from(std::mem::take(&mut claim.job.payload));
        let started = Instant::now();
        let (job, sender) = (&claim.job, worker.sender());
        let span = trace::request(job, task);
        let traceparent = trace::traceparent(span.as_ref(), task, job);
        let exchange = tokio::select! {
            // The database's clock, as for the lease: a receiver refuses what a worker with a wrong one has signed.
            exchange = sender.post(job, payload.clone(), &traceparent, job.started_at) => exchange,
            () = worker.abort.cancelled() => Err(SendError::Stopped),
        };
        trace::answered(span, &exchange);
        if exchange != Err(SendError::Late) {
            return Some((exchange, started.elapsed()));
        }
        claim.job.payload = String::from_utf8(payload.into()).expect("it was text");
    }
}

/// Lets no job be claimed for this URL for as long as its receiver asks.
async fn pause(worker: &Worker, job: &Claimed, exchange: &Exchange) {
    let longest = worker.config.retry.retry_after_max();
    let Some(pause) = outcome::pause(exchange, longest, &worker.config.responses, clock::now()) else { return };
    let write = async {
        let _turn = worker.asking.acquire().await.expect("the semaphore is never closed");
        pause_url(&worker.pool, &job.client_url, pause).await
    };
    if !matches!(timeout(PAUSE_TIMEOUT, write).await, Ok(Ok(()))) {
        warn!(job_id = %job.job_id, "cannot record that a receiver asks for a pause");
    }
}

/// Tells whoever gives out the slots that the destination is free for the next request, and how it fared.
fn free_destination(worker: &Worker, received: &Received, finding: Option<Finding>) {
    let answered = Answered::new(&received.task, received.ticket, finding);
    // Nobody listens any more when the worker stops.
    let _ = worker.progress.send(Progress::Answered(answered));
}

/// The same of the slot.
fn free_slot(worker: &Worker) {
    let _ = worker.progress.send(Progress::Recorded);
}

/// Records the settlement, and frees the attempt's slot as soon as nothing but somebody's lock is in the way. Returns
/// what became of it, `None` if nothing, and what becomes of its task.
async fn record(worker: &Worker, settlement: Settlement, received: &Received) -> (Option<Recorded>, Fate) {
    let recorded = worker.settler.record(settlement).await.ok();
    match recorded {
        Some(Recorded::Held(settlement)) => {
            // With its slot: a place is the bound of what waits.
            let Ok(place) = worker.settler.place().await else {
                free_slot(worker);
                return (None, Fate::Kept);
            };
            let is_listed = leave_to_the_list(worker, &received.task).await;
            if is_listed {
                ack(&received.delivery).await;
                free_slot(worker);
            }
            let recorded = place.record(*settlement).await.ok();
            if !is_listed {
                free_slot(worker);
            }
            let fate = match recorded {
                _ if is_listed => Fate::Acked,
                Some(_) => Fate::Done,
                None => Fate::Kept,
            };
            (recorded, fate)
        }
        Some(Recorded::Rejected) => {
            // So that it is found when the lease ends, not at the republish interval.
            let is_listed = leave_to_the_list(worker, &received.task).await;
            free_slot(worker);
            (recorded, if is_listed { Fate::Done } else { Fate::Again })
        }
        recorded => {
            free_slot(worker);
            let fate = if recorded.is_some() { Fate::Done } else { Fate::Kept };
            (recorded, fate)
        }
    }
}

/// Whether it is sure that the job's row is looked at when nobody holds it any more, whatever becomes of this worker.
async fn leave_to_the_list(worker: &Worker, task: &Task) -> bool {
    let listed = check_again(&worker.pool, [task]).await;
    listed.inspect_err(|error| warn!(%error, "cannot put a row on the list of those to look at again")).is_ok()
}

fn settlement(worker: &Worker, job: &Claimed, exchange: &Exchange, duration: Duration) -> Settlement {
    let policy = outcome::Policy { retry: &worker.config.retry, responses: &worker.config.responses };
    outcome::settlement(job, &worker.name, exchange, duration, policy, clock::now(), rand::random())
}

/// The one line an attempt, with neither payload nor URL, and its metrics.
fn log(job: &Claimed, exchange: &Exchange, duration: Duration, error: &str, outcome: &'static str) {
    info!(
        job_id = %job.job_id,
        attempt = job.attempt,
        http_status = exchange.as_ref().ok().map(|response| response.status),
        duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        error,
        outcome,
        "attempt"
    );
    metrics::counter!("outhook_worker_attempts_total", "outcome" => outcome).increment(1);
    metrics::histogram!("outhook_worker_request_seconds").record(duration);
}
