//! The worker's place at the queue: a connection, a channel and its consumer, and whether it still hears anything.
//!
//! RabbitMQ 3.10 and 3.12 tell a consumer nothing when its queue is deleted and is there again within milliseconds, and
//! hand it nothing more: what is published counts as handed to it. Nor does a consumer hear of a queue whose nodes are
//! gone. So one that hears nothing asks for the queue's length, and one that is idle besides takes its place anew.

use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer};
use outbox::broker::topology::{BROKER_TIMEOUT, BrokerError, within};
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::release_all;
use crate::worker::Worker;

const CONSUMER_TAG: &str = "outhook-worker";

/// Between two looks at the queue, while nothing comes.
const LOOK_SPACING: Duration = Duration::from_secs(2);

/// Looks in a row that find tasks, and none comes, until the consumer is taken as deaf: the first may have met them
/// on their way.
const LOOKS: u32 = 2;

/// An idle consumer that has heard nothing for so long takes its place anew: what counts as handed to it is not among
/// the queue's tasks.
const RENEW_AFTER: Duration = Duration::from_secs(10);

/// What was handed to a deaf consumer comes within this time once it is gone.
const ECHO: Duration = Duration::from_secs(1);

/// The end of the connection is waited for no longer.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why consuming ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConsumeError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The broker, which has answered everything before, does not answer a consumer.
    #[error("RabbitMQ did not answer within {} s when it was asked for a consumer", BROKER_TIMEOUT.as_secs())]
    NoConsumer,
    /// The stream of deliveries ended: the queue was deleted, or the channel closed.
    #[error("RabbitMQ ended the consumer: see that a relay runs, which declares the queue")]
    Ended,
    /// The queue has tasks, there is room for them, and none comes.
    #[error("the consumer is deaf: RabbitMQ has {ready} messages ready and hands out none; connecting anew")]
    Deaf { ready: u32 },
}

impl ConsumeError {
    /// Whether the broker, which answers everything else, cannot work with its own queue. On RabbitMQ 3.10 a
    /// quorum queue that was declared a moment before the broker was killed may come back without a process
    /// or without a leader: it confirms nothing, and answers a consumer with 541 or not at all, for ever.
    pub(crate) fn is_of_a_broken_queue(&self) -> bool {
        match self {
            Self::NoConsumer => true,
            Self::Broker(error) => error.is_internal(),
            Self::Ended | Self::Deaf { .. } => false,
        }
    }

    /// Whether the broker did not answer.
    pub(crate) const fn is_timeout(&self) -> bool {
        matches!(self, Self::NoConsumer | Self::Broker(BrokerError::Timeout(_)))
    }
}

/// How much of its room the worker has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// Nothing is under way, and no task is held.
    Idle,
    /// There are free slots.
    Some,
    /// The broker may have reason to hand out nothing.
    Full,
}

pub(crate) struct Subscription {
    connection: Connection,
    channel: Channel,
    consumer: Consumer,
    /// Its looks have a channel of their own: one that fails closes it.
    looks: Channel,
    /// When the last task came, or the consumer began.
    heard: Instant,
    next_look: Instant,
    /// Looks in a row that found tasks.
    unheard: u32,
    /// When the consumer took its place anew, if nothing came since.
    renewed: Option<Instant>,
    /// The channel before, kept for the answers to what came late by it.
    former: Option<Channel>,
}

impl Subscription {
    /// Connects and consumes. The relay makes the queue; until then this is an error, and is tried again.
    pub(crate) async fn open(worker: &Worker) -> Result<Self, ConsumeError> {
        let connection = worker.config.broker.connect("outhook-worker").await?;
        let channel = open_channel(worker, &connection).await?;
        let consumer = consume(worker, &channel).await?;
        let looks = within("a channel", connection.create_channel()).await?;
        let now = Instant::now();
        let next_look = now + LOOK_SPACING;
        Ok(Self {
            connection,
            channel,
            consumer,
            looks,
            heard: now,
            next_look,
            unheard: 0,
            renewed: None,
            former: None,
        })
    }

    /// The next task.
    pub(crate) async fn next(&mut self) -> Result<Delivery, ConsumeError> {
        let delivery = self.consumer.next().await.ok_or(ConsumeError::Ended)?;
        let delivery = delivery.map_err(|error| BrokerError::Client("the next message", error))?;
        self.heard(&delivery, Instant::now());
        Ok(delivery)
    }

    fn heard(&mut self, delivery: &Delivery, now: Instant) {
        let is_echo = self.renewed.take().is_some_and(|renewed| now - renewed < ECHO) && delivery.redelivered;
        if is_echo {
            metrics::counter!("outhook_worker_deaf_total").increment(1);
            warn!(silent_sec = (now - self.heard).as_secs(), "the consumer was deaf: what was handed to it came anew");
        }
        (self.heard, self.next_look, self.unheard) = (now, now + LOOK_SPACING, 0);
    }

    /// When to look next whether there is something to be heard.
    pub(crate) const fn next_look(&self) -> Instant {
        self.next_look
    }

    /// Looks whether there is something to be heard, after a time without. Returns what came meanwhile.
    pub(crate) async fn look(&mut self, worker: &Worker, load: Load) -> Result<Vec<Delivery>, ConsumeError> {
        self.next_look = Instant::now() + LOOK_SPACING;
        let ready = worker.config.broker.ready_messages(&self.looks).await?;
        self.unheard = if ready > 0 && load != Load::Full { self.unheard + 1 } else { 0 };
        if self.unheard >= LOOKS {
            metrics::counter!("outhook_worker_deaf_total").increment(1);
            return Err(ConsumeError::Deaf { ready });
        }
        let silent_since = self.renewed.unwrap_or(self.heard);
        if load == Load::Idle && silent_since.elapsed() >= RENEW_AFTER {
            self.renew(worker).await
        } else {
            Ok(Vec::new())
        }
    }

    /// Takes its place at the queue anew. The channel goes as well, and with it what counts as handed to it; but not before
    /// there is another: where the queue has no leader for now, only who consumed before hears of the next one.
    async fn renew(&mut self, worker: &Worker) -> Result<Vec<Delivery>, ConsumeError> {
        let channel = open_channel(worker, &self.connection).await?;
        let consumer = tokio::select! {
            consumer = consume(worker, &channel) => consumer,
            // It hears: there is nothing to be mended.
            delivery = self.next() => {
                abandon(channel);
                return Ok(vec![delivery?]);
            }
        };
        self.renewed = Some(Instant::now());
        let consumer = match consumer {
            Err(ConsumeError::NoConsumer) => {
                abandon(channel);
                return Ok(Vec::new());
            }
            consumer => consumer?,
        };
        let late = self.cancel().await?;
        let former = std::mem::replace(&mut self.channel, channel);
        self.consumer = consumer;
        if late.is_empty() {
            within("the close", former.close(200, "opened anew".into())).await?;
        } else {
            self.former = Some(former);
        }
        debug!(late = late.len(), "nothing came: consuming anew");
        for delivery in &late {
            self.heard(delivery, Instant::now());
        }
        Ok(late)
    }

    /// Stops the flow of tasks. Returns what came before.
    async fn cancel(&mut self) -> Result<Vec<Delivery>, BrokerError> {
        let cancelled = self.channel.basic_cancel(CONSUMER_TAG.into(), BasicCancelOptions::default());
        within("the cancel", cancelled).await?;
        // Everything that was sent before the answer is at hand.
        Ok(std::iter::from_fn(|| self.consumer.next().now_or_never()??.ok()).collect())
    }

    /// Stops the flow of tasks and gives back those that were handed out ahead, for other workers.
    pub(crate) async fn release_rest(&mut self, waiting: impl Iterator<Item = Delivery>) {
        match self.cancel().await {
            Ok(rest) => release_all(rest.into_iter().chain(waiting)).await,
            Err(error) => {
                debug!(%error, "could not cancel the consumer; its messages come back with the connection's end");
            }
        }
    }

    /// Ends the connection after the last acks; RabbitMQ hands on whatever is left.
    pub(crate) async fn close(self) {
        let closing = async {
            // One after the other: a channel that closes while its connection does is an error to both ends.
            self.channel.close(200, "bye".into()).await?;
            self.connection.close(200, "bye".into()).await
        };
        let closed: Result<Result<(), lapin::Error>, _> = timeout(CLOSE_TIMEOUT, closing).await;
        debug!(?closed, "closed the connection");
    }
}

async fn open_channel(worker: &Worker, connection: &Connection) -> Result<Channel, BrokerError> {
    let channel = within("a channel", connection.create_channel()).await?;
    // Before consuming: without it the whole queue would come at once.
    let prefetch = worker.config.delivery.prefetch();
    within("the prefetch limit", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
    Ok(channel)
}

/// Closes a channel whose consumer nobody waited for: it may begin all the same, and would take tasks that nobody reads.
fn abandon(channel: Channel) {
    tokio::spawn(async move { within("the close", channel.close(200, "not needed".into())).await });
}

async fn consume(worker: &Worker, channel: &Channel) -> Result<Consumer, ConsumeError> {
    let (queue, options) = (worker.config.broker.queue().into(), BasicConsumeOptions::default());
    let consuming = channel.basic_consume(queue, CONSUMER_TAG.into(), options, FieldTable::default());
    match within("the consumer", consuming).await {
        Err(BrokerError::Timeout(_)) => Err(ConsumeError::NoConsumer),
        consuming => Ok(consuming?),
    }
}
