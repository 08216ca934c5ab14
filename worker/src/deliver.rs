//! One attempt, from its claim to its record.

use std::time::{Duration, Instant};

use outbox::claim::Claimed;
use outbox::clock;
use outbox::job::Status;
use outbox::kill_point;
use outbox::message::Message;
use outbox::settle::Settlement;
use tracing::info;

use crate::Worker;
use crate::intake::{Answered, Progress};
use crate::outcome::{self, Exchange};
use crate::sender::SendError;
use crate::settler::Recorded;

/// Delivers a claimed job once and records what happened. Returns whether its message is done with:
/// `false` leaves it to RabbitMQ, to be handed out again.
pub(crate) async fn deliver(worker: &Worker, job: Claimed, message: Message) -> bool {
    kill_point!("worker.before_post");
    let (exchange, duration) = exchange(worker, &job, message.traceparent.as_deref()).await;
    kill_point!("worker.after_post");
    let settlement = settlement(worker, &job, &exchange, duration);
    say_how_it_fared(worker, message, &exchange);
    let (status, error) = (settlement.status, settlement.error.clone());
    let recorded = worker.settler.record(settlement).await;
    log(&job, &exchange, duration, status, &error, recorded.ok());
    // After the commit, or when there is nothing of ours to commit.
    recorded.is_ok()
}

/// Guards the target, signs and posts.
async fn exchange(worker: &Worker, job: &Claimed, traceparent: Option<&str>) -> (Exchange, Duration) {
    let started = Instant::now();
    let exchange = tokio::select! {
        // The database's clock, as for the lease: a receiver refuses what a worker with a wrong one has signed.
        exchange = worker.sender.post(job, traceparent, job.started_at) => exchange,
        () = worker.abort.cancelled() => Err(SendError::Stopped),
    };
    (exchange, started.elapsed())
}

/// Tells whoever gives out the slots that the destination is free for the next request.
fn say_how_it_fared(worker: &Worker, message: Message, exchange: &Exchange) {
    let longest_pause = worker.config.retry.retry_after_max();
    let finding = outcome::finding(exchange, longest_pause, &worker.config.answers, clock::now());
    let answered = Answered { destination: message.destination.into(), released: message.released, finding };
    // There is room; nobody listens any more when the worker stops.
    let _ = worker.progress.try_send(Progress::Answered(answered));
}

fn settlement(worker: &Worker, job: &Claimed, exchange: &Exchange, duration: Duration) -> Settlement {
    let policy = outcome::Policy { retry: &worker.config.retry, answers: &worker.config.answers };
    outcome::settlement(job, &worker.name, exchange, duration, policy, clock::now(), rand::random())
}

/// The one line an attempt, with neither payload nor URL, and its metrics.
fn log(
    job: &Claimed,
    exchange: &Exchange,
    duration: Duration,
    status: Status,
    error: &str,
    recorded: Option<Recorded>,
) {
    let outcome = match recorded {
        Some(Recorded::Written) => status.as_str(),
        Some(Recorded::LeaseLost) => "lease_lost",
        Some(Recorded::Unclear) => "unclear",
        Some(Recorded::Rejected) | None => "not_recorded",
    };
    info!(
        job_id = %job.job_id,
        attempt = job.attempt,
        http_status = exchange.as_ref().ok().map(|answer| answer.status),
        duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        error,
        outcome,
        "attempt"
    );
    metrics::counter!("outhook_worker_attempts_total", "outcome" => outcome).increment(1);
    metrics::histogram!("outhook_worker_request_seconds").record(duration);
}
