//! Takes messages from the queue, claims their jobs in batches, and settles each message's fate.
//!
//! The one ack rule: a message is acked when Postgres no longer needs it, that is, after its attempt is
//! recorded or when its claim is refused. Garbage is dead-lettered. Everything else stays unacked and is
//! handed out again when the connection ends.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lapin::message::Delivery;
use outbox::backoff::Backoff;
use outbox::batch::Pace;
use outbox::claim::{self, Claimed};
use outbox::database::is_of_one_row;
use outbox::destination::report::reserve_slots;
use outbox::kill_point;
use outbox::message::Message;
use outbox::missing::still_held;
use outbox::telemetry::Server;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::Worker;
use crate::answers::reject;
use crate::deliver::{Claim, deliver};
use crate::give_back::{Reason, give_back};
use crate::intake::{self, Intake, MakesWay, Progress};
use crate::strays::Strays;
use crate::subscription::{ConsumeError, Load, Subscription};

/// Claims in one statement.
const CLAIM_BATCH: usize = 200;

/// Between the starts of two claims, while there is room in the batch: larger batches cost Postgres less a job.
/// A message after a pause of this length waits for nothing.
const CLAIM_SPACING: Duration = Duration::from_millis(5);

/// How soon to look again at what waits for a slot, and how often at the most.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
const LOOK_SPACING: Duration = Duration::from_millis(2);

/// What has waited here for so long is said to be here, and how often: well within [`outbox::missing::LOST_AFTER`].
const WORD_AFTER: Duration = Duration::from_secs(1);
const WORD_SPACING: Duration = Duration::from_secs(2);

pub(crate) type Received = intake::Received<Delivery>;

/// What a consumer leaves to the next one when its connection is lost: the deliveries under way go on.
pub(crate) struct Desk {
    pub intake: Intake<Delivery>,
    /// What came while the intake had no room.
    ahead: VecDeque<Received>,
    /// When to say next what waits here.
    next_word: Instant,
    /// What becomes of the deliveries.
    progress: mpsc::UnboundedReceiver<Progress>,
    strays: Strays,
}

impl Desk {
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
    desk: &mut Desk,
    stop: &CancellationToken,
    backoff: &mut Backoff,
) -> Result<Subscription, ConsumeError> {
    let Some(opened) = until(stop, Subscription::open(worker)).await else { return Err(ConsumeError::Ended) };
    let mut subscription = opened?;
    backoff.reset();
    // Messages of the connection before; they come again.
    drop(desk.clear());
    worker.readiness.reached(Server::RabbitMq);
    info!(worker = worker.name, "ready: consuming");
    let mut pace = Pace::new(CLAIM_SPACING);
    while let Some(gathered) = until(stop, gather(worker, desk, &mut subscription, pace.next())).await {
        gathered?;
        make_way(worker, &mut desk.intake, stop);
        desk.fill();
        say_what_waits(worker, desk);
        let batch = desk.intake.start(CLAIM_BATCH, Instant::now());
        reserve(worker, &mut desk.intake);
        metrics::gauge!("outhook_worker_waiting_messages")
            .set(u32::try_from(desk.intake.waiting()).unwrap_or(u32::MAX));
        if !batch.is_empty() {
            pace.start();
            process(worker, &mut desk.intake, batch, stop).await;
        }
    }
    subscription.release_rest(desk.clear().map(|it| it.delivery)).await;
    Ok(subscription)
}

/// What comes first: the value, or `None` for the stop.
async fn until<T>(stop: &CancellationToken, value: impl Future<Output = T>) -> Option<T> {
    stop.run_until_cancelled(value).await
}

/// Takes in what happens first, a message or the end of a delivery, and whatever else is at hand or comes
/// `until` then, as far as it can be started: what is claimed is under way at once, and no lease runs out in
/// a queue.
async fn gather(
    worker: &Worker,
    desk: &mut Desk,
    subscription: &mut Subscription,
    until: Instant,
) -> Result<(), ConsumeError> {
    // What waits already is looked at again soon, for it may wait for too long.
    let now = Instant::now();
    let look_again = (desk.intake.waiting() > 0).then(|| {
        let slot = desk.intake.next_slot().map(|slot| slot.max(now + LOOK_SPACING));
        slot.unwrap_or(now + LOOK_INTERVAL).min(now + LOOK_INTERVAL)
    });
    take_one(worker, desk, subscription, look_again).await?;
    while desk.intake.startable() < CLAIM_BATCH && take_one(worker, desk, subscription, Some(until)).await? {}
    Ok(())
}

/// Takes in one thing. Returns whether there was one in time.
async fn take_one(
    worker: &Worker,
    desk: &mut Desk,
    subscription: &mut Subscription,
    until: Option<Instant>,
) -> Result<bool, ConsumeError> {
    let next_look = subscription.next_look();
    tokio::select! {
        // What is at hand is taken also when the time is over.
        biased;
        Some(progress) = desk.progress.recv() => {
            if let Some(found) = desk.intake.note(progress, Instant::now()) {
                worker.reporter.report(found);
            }
        }
        delivery = subscription.next() => desk.take_in(delivery?).await,
        () = sleep_until(next_look) => {
            for delivery in subscription.look(worker, load(worker, &desk.intake)).await? {
                desk.take_in(delivery).await;
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

/// Decodes a message; one that cannot be read is dead-lettered.
async fn read(delivery: Delivery) -> Option<Received> {
    match Message::decode(&delivery.data) {
        Ok(message) => Some(Received::new(message, delivery)),
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
fn say_what_waits(worker: &Arc<Worker>, desk: &mut Desk) {
    let now = Instant::now();
    if desk.intake.waiting() == 0 || desk.next_word > now {
        return;
    }
    desk.next_word = now + WORD_SPACING;
    let waiting = desk.intake.waiting_since(now - WORD_AFTER).chain(desk.ahead.iter().map(|it| &it.message));
    let waiting: Vec<Message> = waiting.cloned().collect();
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
    let messages: Vec<Message> = received.iter().map(|it| it.message.clone()).collect();
    kill_point!("worker.before_claim");
    let (claimed, unreadable) = claim_all(worker, &messages, stop).await;
    kill_point!("worker.after_claim");
    worker.readiness.took_turn();
    metrics::histogram!("outhook_worker_claim_batch_size").record(u32::try_from(received.len()).unwrap_or(u32::MAX));
    for claim in claimed {
        // The claim raised the attempt by one; a stale message of the same job is not the one.
        let of_claim =
            |it: &Received| (it.message.job_id, it.message.attempt + 1) == (claim.job.job_id, claim.job.attempt);
        let position = received.iter().position(of_claim).expect("only what was asked for is claimed");
        start(worker, claim, received.swap_remove(position));
    }
    for refused in &received {
        intake.give_back(refused, Instant::now());
    }
    let (unreadable, refused) = received.into_iter().partition(|it| unreadable.contains(&it.message.outbox_id));
    give_back(worker, unreadable, Reason::Unreadable, stop);
    give_back(worker, refused, Reason::NotClaimed, stop);
}

/// Claims what is free of the messages' jobs, and does not rest until Postgres has answered for each, or
/// the stop. Also returns the outbox rows of those whose jobs it cannot read.
async fn claim_all(worker: &Worker, messages: &[Message], stop: &CancellationToken) -> (Vec<Claim>, HashSet<i64>) {
    // A name of its own for each batch: what a lost answer claimed is found again by it.
    let name: Arc<str> = format!("{}#{}", worker.name, worker.claims.fetch_add(1, Ordering::Relaxed)).into();
    let lease = worker.config.delivery.lease();
    let claim_of = |asked| {
        let name = Arc::clone(&name);
        move |job| Claim { job, name: Arc::clone(&name), asked, answered: Instant::now() }
    };
    let mut claimed: Vec<Claim> = Vec::new();
    let mut unreadable = HashSet::new();
    let mut rest = messages.to_vec();
    let mut size = rest.len();
    let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
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
        if until(stop, sleep(backoff.next_wait())).await.is_none() {
            break;
        }
        let Some(recovered) = recover_all(worker, messages, &name, stop).await else { break };
        claimed = recovered.into_iter().map(|(job, asked)| claim_of(asked)(job)).collect();
        rest.retain(|message| claimed.iter().all(|it| it.job.job_id != message.job_id));
    }
    (claimed, unreadable)
}

/// What was claimed under this name without our hearing of it, and when that was asked; but for what Postgres cannot read.
/// `None` at the stop.
async fn recover_all(
    worker: &Worker,
    messages: &[Message],
    name: &str,
    stop: &CancellationToken,
) -> Option<Vec<(Claimed, Instant)>> {
    let lease = worker.config.delivery.lease();
    let mut recovered = Vec::new();
    let mut parts = vec![messages];
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

fn start(worker: &Arc<Worker>, claim: Claim, received: Received) {
    let worker = Arc::clone(worker);
    worker.deliveries.clone().spawn(async move { deliver(&worker, claim, received).await });
}

/// Repeats a statement until the database answers. `None` at the stop, and if Postgres cannot read one of the rows.
pub(crate) async fn patiently<T, Statement>(stop: &CancellationToken, statement: impl Fn() -> Statement) -> Option<T>
where
    Statement: Future<Output = Result<T, sqlx::Error>>,
{
    let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
    loop {
        match statement().await {
            Ok(value) => return Some(value),
            Err(error) if is_of_one_row(&error) => return None,
            Err(error) => warn!(%error, "cannot ask the database; trying again"),
        }
        until(stop, sleep(backoff.next_wait())).await?;
    }
}
