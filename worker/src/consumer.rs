//! Takes messages from the queue, claims their jobs in batches, and settles each message's fate.
//!
//! The one ack rule: a message is acked when Postgres no longer needs it, that is, after its attempt is
//! recorded or when its claim is refused. Garbage is dead-lettered. Everything else stays unacked and is
//! handed out again when the connection ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer};
use outbox::backoff::Backoff;
use outbox::batch::Pace;
use outbox::claim::{self, Claimed};
use outbox::destination;
use outbox::kill_point;
use outbox::message::Message;
use outbox::topology::{BrokerError, is_internal_error, within};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::Worker;
use crate::answers::{ack, reject, release_all};
use crate::deliver::deliver;
use crate::intake::{self, Held, Intake, Progress};
use crate::refused::refuse;

const CONSUMER_TAG: &str = "outhook-worker";

/// What the broker is asked for last, when everything else has been answered.
const CONSUMER: &str = "the consumer";

/// Claims in one statement.
const CLAIM_BATCH: usize = 200;

/// Between the starts of two claims, while there is room in the batch: larger batches cost Postgres less a job.
/// A message after a pause of this length waits for nothing.
const CLAIM_SPACING: Duration = Duration::from_millis(5);

/// How soon to look again at what waits for a slot.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The worker was asked to stop. The channel is still up, for the acks of what is under way: dropped,
/// it would close.
pub(crate) struct Stopped {
    pub connection: Connection,
    pub channel: Channel,
}

/// Why consuming ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConsumeError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("RabbitMQ: {0}")]
    Client(#[from] lapin::Error),
    /// The stream of deliveries ended: the queue was deleted, or the channel closed.
    #[error("RabbitMQ ended the consumer")]
    Ended,
}

impl ConsumeError {
    /// Whether the broker, which answers everything else, cannot work with its own queue. On RabbitMQ 3.10 a
    /// quorum queue that was declared a moment before the broker was killed may come back without a process
    /// or without a leader: it confirms nothing, and answers a consumer with 541 or not at all, for ever.
    pub(crate) fn is_of_a_broken_queue(&self) -> bool {
        match self {
            Self::Broker(BrokerError::Client(error)) | Self::Client(error) => is_internal_error(error),
            Self::Broker(BrokerError::Timeout(what)) => *what == CONSUMER,
            Self::Ended => false,
        }
    }
}

pub(crate) type Received = intake::Received<Delivery>;

/// What a consumer leaves to the next one when its connection is lost: the deliveries under way go on.
pub(crate) struct Desk {
    pub intake: Intake<Delivery>,
    /// What becomes of the deliveries: there is room for both words on each slot.
    pub progress: mpsc::Receiver<Progress>,
}

/// Consumes until `stop`, or until the connection is lost.
pub(crate) async fn consume(
    worker: &Arc<Worker>,
    desk: &mut Desk,
    stop: &CancellationToken,
    backoff: &mut Backoff,
) -> Result<Stopped, ConsumeError> {
    let Some(opened) = until(stop, open(worker)).await else { return Err(ConsumeError::Ended) };
    let (connection, channel, mut consumer) = opened?;
    backoff.reset();
    // Messages of the connection before; they come again.
    desk.intake.clear();
    info!(worker = worker.name, "ready: consuming");
    let mut pace = Pace::new(CLAIM_SPACING);
    while let Some(gathered) = until(stop, gather(worker, desk, &mut consumer, pace.next())).await {
        gathered?;
        hold(worker, &mut desk.intake, stop).await;
        let batch = desk.intake.start(CLAIM_BATCH);
        if !batch.is_empty() {
            pace.start();
            process(worker, &mut desk.intake, batch, stop).await;
        }
    }
    release_rest(&channel, consumer, desk.intake.clear()).await;
    Ok(Stopped { connection, channel })
}

async fn open(worker: &Worker) -> Result<(Connection, Channel, Consumer), ConsumeError> {
    let broker = &worker.config.broker;
    let connection = broker.connect("outhook-worker").await?;
    let channel = within("a channel", connection.create_channel()).await?;
    // Before consuming: without it the whole queue would come at once.
    let prefetch = worker.config.delivery.prefetch();
    within("the prefetch limit", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
    // The relay makes the queue; until then this is an error, and is tried again.
    let consuming = channel.basic_consume(
        broker.queue().into(),
        CONSUMER_TAG.into(),
        BasicConsumeOptions::default(),
        FieldTable::default(),
    );
    let consumer = within(CONSUMER, consuming).await?;
    Ok((connection, channel, consumer))
}

/// What comes first: the value, or `None` for the stop.
async fn until<T>(stop: &CancellationToken, value: impl Future<Output = T>) -> Option<T> {
    stop.run_until_cancelled(value).await
}

/// Takes in what happens first, a message or the end of a delivery, and whatever else is at hand or comes
/// `until` then, as far as it can be started: what is claimed is under way at once, and no lease runs out in
/// a queue.
async fn gather(worker: &Worker, desk: &mut Desk, consumer: &mut Consumer, until: Instant) -> Result<(), ConsumeError> {
    // What waits already is looked at again soon, for it may wait for too long.
    let look_again = (desk.intake.waiting() > 0).then(|| Instant::now() + LOOK_INTERVAL);
    take_one(worker, desk, consumer, look_again).await?;
    while desk.intake.startable() < CLAIM_BATCH && take_one(worker, desk, consumer, Some(until)).await? {}
    Ok(())
}

/// Takes in one thing. Returns whether there was one in time.
async fn take_one(
    worker: &Worker,
    desk: &mut Desk,
    consumer: &mut Consumer,
    until: Option<Instant>,
) -> Result<bool, ConsumeError> {
    let has_room = desk.intake.has_room();
    tokio::select! {
        // What is at hand is taken also when the time is over.
        biased;
        Some(progress) = desk.progress.recv() => {
            if let Some((destination, report)) = desk.intake.note(progress, Instant::now()) {
                worker.reporter.report(destination, report);
            }
        }
        delivery = consumer.next(), if has_room => {
            let delivery = delivery.ok_or(ConsumeError::Ended)??;
            if let Some(received) = read(delivery).await {
                desk.intake.push(received, Instant::now());
            }
        }
        () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => return Ok(false),
    }
    Ok(true)
}

/// Decodes a message; one that cannot be read is dead-lettered.
async fn read(delivery: Delivery) -> Option<Received> {
    match Message::decode(&delivery.data) {
        Ok(message) => Some(Received { message, delivery }),
        Err(error) => {
            warn!(%error, "poison: a message that cannot be read goes to the dead-letter queue");
            metrics::counter!("outhook_worker_poison_total").increment(1);
            reject(delivery).await;
            None
        }
    }
}

/// Holds what must make way for others: it waits in Postgres, and costs no attempt.
async fn hold(worker: &Arc<Worker>, intake: &mut Intake<Delivery>, stop: &CancellationToken) {
    if intake.waiting() == 0 {
        return;
    }
    let Held { messages: held, reports } = intake.hold(Instant::now());
    for (destination, report) in reports {
        worker.reporter.report(destination, report);
    }
    if held.is_empty() {
        return;
    }
    metrics::counter!("outhook_worker_held_total").increment(held.len() as u64);
    let messages: Vec<Message> = held.iter().map(|it| it.message.clone()).collect();
    match destination::hold_published(&worker.pool, &messages).await {
        Ok(rows) => {
            kill_point!("worker.after_hold");
            let (held, others): (Vec<_>, Vec<_>) =
                held.into_iter().partition(|it| rows.contains(&it.message.outbox_id));
            join_all(held.iter().map(|it| ack(&it.delivery))).await;
            // Duplicates, and those that a lost worker had begun: nobody else would look after these.
            refuse(worker, others, stop).await;
        }
        Err(error) => {
            warn!(%error, "cannot hold jobs; RabbitMQ keeps their messages");
            release_all(held.into_iter().map(|it| it.delivery)).await;
        }
    }
}

/// Claims the batch, starts the deliveries, and answers for the rest.
async fn process(
    worker: &Arc<Worker>,
    intake: &mut Intake<Delivery>,
    mut received: Vec<Received>,
    stop: &CancellationToken,
) {
    let messages: Vec<Message> = received.iter().map(|it| it.message.clone()).collect();
    kill_point!("worker.before_claim");
    let claimed = claim_all(worker, &messages, stop).await;
    kill_point!("worker.after_claim");
    metrics::histogram!("outhook_worker_claim_batch_size").record(u32::try_from(received.len()).unwrap_or(u32::MAX));
    for job in claimed {
        // The claim raised the attempt by one; a stale message of the same job is not the one.
        let position =
            received.iter().position(|it| (it.message.job_id, it.message.attempt + 1) == (job.job_id, job.attempt));
        start(worker, job, received.swap_remove(position.expect("only what was asked for is claimed")));
    }
    for refused in &received {
        intake.give_back(&refused.message.destination, Instant::now());
    }
    refuse(worker, received, stop).await;
}

/// Claims what is free of the messages' jobs, and does not rest until Postgres has answered for each, or
/// the stop.
async fn claim_all(worker: &Worker, messages: &[Message], stop: &CancellationToken) -> Vec<Claimed> {
    // A name of its own for each batch: what a lost answer claimed is found again by it.
    let name = format!("{}#{}", worker.name, worker.claims.fetch_add(1, Ordering::Relaxed));
    let lease = worker.config.delivery.lease();
    let mut claimed: Vec<Claimed> = Vec::new();
    let mut rest = messages.to_vec();
    let mut size = rest.len();
    let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
    while !rest.is_empty() {
        size = size.min(rest.len());
        match claim::claim(&worker.pool, &rest[..size], &name, lease).await {
            Ok(new) => {
                claimed.extend(new);
                rest.drain(..size);
                backoff.reset();
                continue;
            }
            Err(error) => warn!(%error, jobs = size, "cannot claim; trying again"),
        }
        // Perhaps it was too much for one answer.
        size = (size / 2).max(1);
        if until(stop, sleep(backoff.next_wait())).await.is_none() {
            break;
        }
        let recover = || claim::recover_claim(&worker.pool, messages, &name, lease);
        let Some(recovered) = patiently(stop, recover).await else { break };
        claimed = recovered;
        rest.retain(|message| claimed.iter().all(|job| job.job_id != message.job_id));
    }
    claimed
}

fn start(worker: &Arc<Worker>, job: Claimed, received: Received) {
    let worker = Arc::clone(worker);
    worker.deliveries.clone().spawn(async move {
        let Received { message, delivery } = received;
        let is_recorded = deliver(&worker, job, message).await;
        // There is room; nobody listens any more when the worker stops.
        let _ = worker.progress.try_send(Progress::Recorded);
        if is_recorded {
            kill_point!("worker.before_ack");
            ack(&delivery).await;
            kill_point!("worker.after_ack");
        }
    });
}

/// Repeats a statement until the database answers, or the stop.
pub(crate) async fn patiently<T, Statement>(stop: &CancellationToken, statement: impl Fn() -> Statement) -> Option<T>
where
    Statement: Future<Output = Result<T, sqlx::Error>>,
{
    let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
    loop {
        match statement().await {
            Ok(value) => return Some(value),
            Err(error) => warn!(%error, "cannot claim; trying again"),
        }
        until(stop, sleep(backoff.next_wait())).await?;
    }
}

/// Stops the flow of messages and gives back those that were handed out ahead, for other workers.
async fn release_rest(channel: &Channel, mut consumer: Consumer, waiting: Vec<Received>) {
    let cancelled = channel.basic_cancel(CONSUMER_TAG.into(), BasicCancelOptions::default());
    if let Err(error) = within("the cancel", cancelled).await {
        debug!(%error, "could not cancel the consumer; its messages come back with the connection's end");
        return;
    }
    // Everything that was sent before the answer is at hand.
    let rest = std::iter::from_fn(|| consumer.next().now_or_never()??.ok());
    release_all(rest.chain(waiting.into_iter().map(|it| it.delivery))).await;
}
