//! Takes tasks from the queue, claims their jobs in batches, and settles each task's fate.
//!
//! The one ack rule: a task is acked when Postgres no longer needs it, that is, after its attempt is
//! recorded or when its claim is refused. Garbage is dead-lettered. Everything else stays unacked and is
//! handed out again when the connection ends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use lapin::message::Delivery;
use outbox::broker::task::Task;
use outbox::destination::limit::reserve_slots;
use outbox::due::missing::still_held;
use outbox::kill_point;
use outbox::service::backoff::Backoff;
use outbox::service::batch::Pace;
use outbox::service::telemetry::Server;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::claimer::{Claim, claim_all};
use crate::deliver::deliver;
use crate::give_back::{Reason, give_back};
use crate::intake::{Intake, MakesWay, Progress};
use crate::queue::{ConsumeError, Load, Received, Strays, Subscription, reject};
use crate::worker::Worker;

/// Claims in one statement.
const CLAIM_BATCH: usize = 200;

/// Between the starts of two claims, while there is room in the batch: larger batches cost Postgres less a job.
/// A task after a pause of this length waits for nothing.
const CLAIM_SPACING: Duration = Duration::from_millis(5);

/// How soon to look again at what waits for a slot, and how often at the most.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
const LOOK_SPACING: Duration = Duration::from_millis(2);

/// What has waited here for so long is said to be here, and how often: well within [`outbox::due::missing::LOST_AFTER`].
const WORD_AFTER: Duration = Duration::from_secs(1);
const WORD_SPACING: Duration = Duration::from_secs(2);

/// What a consumer leaves to the next one when its connection is lost: the deliveries under way go on.
pub(crate) struct ConsumerState {
    pub intake: Intake<Delivery>,
    /// What came while the intake had no room.
    ahead: VecDeque<Received>,
    /// When to say next what waits here.
    next_word: Instant,
    /// What becomes of the deliveries.
    progress: mpsc::UnboundedReceiver<Progress>,
    strays: Strays,
}

impl ConsumerState {
    pub(crate) fn new(
        intake: Intake<Delivery>,
        progress: mpsc::UnboundedReceiver<Progress>,
        installation: Uuid,
    ) -> Self {
        let (ahead, next_word) = (VecDeque::new(), Instant::now());
        Self { intake, ahead, next_word, progress, strays: Strays::new(installation) }
    }

    async fn take_in(&mut self, delivery: Delivery) {
        let received = read(delivery).await;
        self.ahead.extend(received.and_then(|received| self.strays.keep_ours(received)));
        self.fill();
    }

    /// Takes in as much as there is room for.
    fn fill(&mut self) {
        while self.intake.has_room()
            && let Some(received) = self.ahead.pop_front()
        {
            self.intake.push(received, Instant::now());
        }
    }

    /// Takes out all that waits.
    fn clear(&mut self) -> impl Iterator<Item = Received> {
        self.intake.clear().into_iter().chain(self.ahead.drain(..))
    }
}

/// Consumes until `stop`, or until the connection is lost. At the stop it is still up, for the acks of what is under way.
pub(crate) async fn consume(
    worker: &Arc<Worker>,
    state: &mut ConsumerState,
    stop: &CancellationToken,
    backoff: &mut Backoff,
) -> Result<Subscription, ConsumeError> {
    let Some(opened) = until(stop, Subscription::open(worker)).await else { return Err(ConsumeError::Ended) };
    let mut subscription = opened?;
    backoff.reset();
    // Tasks of the connection before; they come again.
    drop(state.clear());
    worker.readiness.reached(Server::RabbitMq);
    info!(worker = worker.name, "ready: consuming");
    let mut pace = Pace::new(CLAIM_SPACING);
    while let Some(gathered) = until(stop, gather(worker, state, &mut subscription, pace.next())).await {
        gathered?;
        make_way(worker, &mut state.intake, stop);
        state.fill();
        say_what_waits(worker, state);
        let batch = state.intake.start(CLAIM_BATCH, Instant::now());
        reserve(worker, &mut state.intake);
        metrics::gauge!("outhook_worker_waiting_messages")
            .set(u32::try_from(state.intake.waiting()).unwrap_or(u32::MAX));
        if !batch.is_empty() {
            pace.start();
            process(worker, &mut state.intake, batch, stop).await;
        }
    }
    subscription.release_rest(state.clear().map(|it| it.delivery)).await;
    Ok(subscription)
}

/// What comes first: the value, or `None` for the stop.
async fn until<T>(stop: &CancellationToken, value: impl Future<Output = T>) -> Option<T> {
    stop.run_until_cancelled(value).await
}

/// Takes in what happens first, a task or the end of a delivery, and whatever else is at hand or comes
/// `until` then, as far as it can be started: what is claimed is under way at once, and no lease runs out in
/// a queue.
async fn gather(
    worker: &Worker,
    state: &mut ConsumerState,
    subscription: &mut Subscription,
    until: Instant,
) -> Result<(), ConsumeError> {
    // What waits already is looked at again soon, for it may wait for too long.
    let now = Instant::now();
    let look_again = (state.intake.waiting() > 0).then(|| {
        let slot = state.intake.next_slot().map(|slot| slot.max(now + LOOK_SPACING));
        slot.unwrap_or(now + LOOK_INTERVAL).min(now + LOOK_INTERVAL)
    });
    take_one(worker, state, subscription, look_again).await?;
    while state.intake.startable() < CLAIM_BATCH && take_one(worker, state, subscription, Some(until)).await? {}
    Ok(())
}

/// Takes in one thing. Returns whether there was one in time.
async fn take_one(
    worker: &Worker,
    state: &mut ConsumerState,
    subscription: &mut Subscription,
    until: Option<Instant>,
) -> Result<bool, ConsumeError> {
    let next_look = subscription.next_look();
    tokio::select! {
        // What is at hand is taken also when the time is over.
        biased;
        Some(progress) = state.progress.recv() => {
            if let Some(found) = state.intake.note(progress, Instant::now()) {
                worker.reporter.report(found);
            }
        }
        delivery = subscription.next() => state.take_in(delivery?).await,
        () = sleep_until(next_look) => {
            for delivery in subscription.look(worker, load(worker, &state.intake)).await? {
                state.take_in(delivery).await;
            }
        }
        () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => return Ok(false),
    }
    Ok(true)
}

/// How much of its room the worker has taken. What it is giving back may be all that it was handed.
fn load(worker: &Worker, intake: &Intake<Delivery>) -> Load {
    if intake.waiting() == 0 && worker.deliveries.is_empty() {
        Load::Idle
    } else if intake.waiting() == 0 && intake.has_free_slots() && worker.giving_back.available_permits() > 0 {
        Load::Some
    } else {
        Load::Full
    }
}

/// Decodes a task; one that cannot be read is dead-lettered.
async fn read(delivery: Delivery) -> Option<Received> {
    match Task::decode(&delivery.data) {
        Ok(task) => Some(Received::new(task, delivery)),
        Err(error) => {
            warn!(%error, "poison: a message that cannot be read goes to the dead-letter queue");
            metrics::counter!("outhook_worker_poison_total").increment(1);
            reject(delivery).await;
            None
        }
    }
}

/// Gives back what must make way for others: it waits in Postgres, and costs no attempt.
fn make_way(worker: &Arc<Worker>, intake: &mut Intake<Delivery>, stop: &CancellationToken) {
    if intake.waiting() == 0 {
        return;
    }
    let MakesWay { sick, crowded, hanging, found } = intake.make_way(Instant::now());
    for found in found {
        worker.reporter.report(found);
    }
    give_back(worker, sick, Reason::Sick, stop);
    give_back(worker, crowded, Reason::Crowded, stop);
    give_back(worker, hanging, Reason::Hangs, stop);
}

/// Says of what has waited here for a while that it does, so that the relay does not take it for lost.
fn say_what_waits(worker: &Arc<Worker>, state: &mut ConsumerState) {
    let now = Instant::now();
    if state.intake.waiting() == 0 || state.next_word > now {
        return;
    }
    state.next_word = now + WORD_SPACING;
    let waiting = state.intake.waiting_since(now - WORD_AFTER).chain(state.ahead.iter().map(|it| &it.task));
    let waiting: Vec<Task> = waiting.cloned().collect();
    let Some(turn) = Arc::clone(&worker.saying).try_acquire_owned().ok().filter(|_| !waiting.is_empty()) else {
        return;
    };
    let worker = Arc::clone(worker);
    tokio::spawn(async move {
        // Not while some of it is given back: that steps over rows that it finds locked.
        let _giving_back = worker.giving_back.acquire().await.expect("the semaphore is never closed");
        if let Err(error) = still_held(&worker.pool, &waiting).await {
            warn!(%error, "cannot say what waits here; the relay may publish it again");
        }
        drop(turn);
    });
}

/// Asks for slots of destinations that have a limit; they come as progress does.
fn reserve(worker: &Arc<Worker>, intake: &mut Intake<Delivery>) {
    for (destination, wanted) in intake.wanted_slots(Instant::now()) {
        let worker = Arc::clone(worker);
        tokio::spawn(async move {
            let turn = worker.asking.acquire().await.expect("the semaphore is never closed");
            let reserved = reserve_slots(&worker.pool, &destination, wanted).await;
            drop(turn);
            let slots = reserved.inspect_err(|error| warn!(%error, "cannot reserve slots of a limit")).ok();
            let from = Instant::now();
            let at = slots.map_or_else(Vec::new, |slots| {
                (0..slots.count).map(|number| from + slots.first_in + slots.spacing * number).collect()
            });
            // Nobody listens any more when the worker stops.
            let _ = worker.progress.send(Progress::Slots { destination, at });
        });
    }
}

/// Claims the batch, starts the deliveries, and answers for the rest.
async fn process(
    worker: &Arc<Worker>,
    intake: &mut Intake<Delivery>,
    mut received: Vec<Received>,
    stop: &CancellationToken,
) {
    let tasks: Vec<Task> = received.iter().map(|it| it.task.clone()).collect();
    kill_point!("worker.before_claim");
    let (claimed, unreadable) = claim_all(worker, &tasks, stop).await;
    kill_point!("worker.after_claim");
    worker.readiness.made_progress();
    metrics::histogram!("outhook_worker_claim_batch_size").record(u32::try_from(received.len()).unwrap_or(u32::MAX));
    for claim in claimed {
        // The claim raised the attempt by one; a stale task of the same job is not the one.
        let of_claim = |it: &Received| (it.task.job_id, it.task.attempt + 1) == (claim.job.job_id, claim.job.attempt);
        let position = received.iter().position(of_claim).expect("only what was asked for is claimed");
        start(worker, claim, received.swap_remove(position));
    }
    for refused in &received {
        intake.give_back(refused, Instant::now());
    }
    let (unreadable, refused) = received.into_iter().partition(|it| unreadable.contains(&it.task.outbox_id));
    give_back(worker, unreadable, Reason::Unreadable, stop);
    give_back(worker, refused, Reason::NotClaimed, stop);
}

fn start(worker: &Arc<Worker>, claim: Claim, received: Received) {
    let worker = Arc::clone(worker);
    worker.deliveries.clone().spawn(async move { deliver(&worker, claim, received).await });
}
