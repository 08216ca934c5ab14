//! Publishing with confirms: one connection and one channel, used by one lane.
//!
//! Two tasks that publish on one channel get each other's confirms, so a publisher is never shared. It
//! does not recover: whoever sees it fail drops it and connects another.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Connection, Event, PublisherConfirm};
use outbox::broker::topology::{BROKER_TIMEOUT, BrokerConfig, BrokerError, within};
use outbox::due::DueRow;
use outbox::kill_point;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::warn;

use crate::confirms::{Confirm, judge};
use crate::flow::Flow;
use crate::queue_length::QueueLength;
use crate::trace;

/// Persistent, as AMQP writes it: the task outlives the broker.
const PERSISTENT: u8 = 2;

pub(crate) struct Publisher {
    connection: Connection,
    channel: Channel,
    /// The queue's length is asked by a channel of its own: one whose tasks wait for a leader confirms nothing else.
    looks: Channel,
    broker: BrokerConfig,
    /// Tasks that may still be published before the queue's length is asked again.
    room: u32,
    /// When it was asked last.
    asked: Instant,
    queue: QueueLength,
    flow: Flow,
    /// Whether a task came back or stayed without an answer, or all were refused: another connection may
    /// do better.
    spent: bool,
    /// Whether a task came back because no queue took it.
    unroutable: bool,
    /// Tasks without an answer, and since when these are waited for. The channel publishes nothing before it has them.
    late: Option<(FuturesUnordered<PublisherConfirm>, Instant)>,
}

/// The queue's length is asked at least this often, so that a lane with nothing to publish notices a
/// queue that was deleted with the tasks in it.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// Where a cluster's node confirms and does not confirm, the queue has no leader for now, and this channel hears of the next
/// one within 6 to 12 s. A new channel of RabbitMQ 3.10 would ask the old one, until Erlang has given up its node: for this
/// time at the most.
const LEADER_PATIENCE: Duration = Duration::from_secs(90);

/// Between two looks whether there is an answer at last.
const LATE_SPACING: Duration = Duration::from_secs(1);

impl Publisher {
    /// Turns a connection into a publisher.
    pub(crate) async fn open(
        connection: Connection,
        broker: BrokerConfig,
        queue: QueueLength,
    ) -> Result<Self, BrokerError> {
        tokio::spawn(log_blocking(connection.events_listener()));
        let channel = within("a channel", connection.create_channel()).await?;
        within("confirm mode", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        let looks = within("a channel", connection.create_channel()).await?;
        let (asked, flow) = (Instant::now(), Flow::default());
        let (spent, unroutable, late) = (false, false, None);
        Ok(Self { connection, channel, looks, broker, room: 0, asked, queue, flow, spent, unroutable, late })
    }

    /// Whether a task came back because no queue took it: the queue or the binding is gone.
    pub(crate) const fn is_unroutable(&self) -> bool {
        self.unroutable
    }

    /// Whether it can go on, as far as is known. If not, another must be opened.
    pub(crate) fn is_usable(&self) -> bool {
        self.connection.status().connected() && !self.spent
    }

    /// Whether the broker takes nothing from this connection for now. Not even its end would get through:
    /// another connection would be blocked as well, and leave this one behind.
    pub(crate) fn is_blocked(&self) -> bool {
        self.connection.status().connected() && self.connection.status().blocked()
    }

    /// How many tasks the queue takes now, up to `wanted`; 0 also if it would be a few only. It is kept no longer than
    /// `limit`, and than workers empty in a moment: a webhook waits behind all that lie in it.
    ///
    /// The backlog belongs in Postgres: a short queue is quick to drain, to lose and to make anew.
    pub(crate) async fn room(&mut self, wanted: u32, limit: u32) -> Result<u32, BrokerError> {
        let least = wanted.min(limit) / 4;
        if self.room <= least || self.asked.elapsed() >= ASK_INTERVAL {
            let ready = self.broker.ready_messages(&self.looks).await?;
            metrics::gauge!("outhook_relay_queue_ready_messages").set(ready);
            self.flow.saw(ready, self.asked.elapsed());
            self.queue.saw(ready, Instant::now());
            self.room = self.flow.limit().min(limit).saturating_sub(ready);
            self.asked = Instant::now();
        }
        Ok(if self.room < least { 0 } else { self.room.min(wanted) })
    }

    /// Whether everything was answered that was published, or is given up. Waits a moment for it; the error is that the
    /// node confirms nothing at all.
    pub(crate) async fn has_caught_up(&mut self) -> Result<bool, BrokerError> {
        let Some((confirms, since)) = &mut self.late else { return Ok(true) };
        if timeout(LATE_SPACING, confirms.by_ref().for_each(async |_| ())).await.is_ok() {
            self.late = None;
            return Ok(true);
        }
        self.spent |= since.elapsed() >= LEADER_PATIENCE;
        self.broker.ready_messages(&self.looks).await?;
        Ok(false)
    }

    /// Publishes all rows, one after the other without waiting, then awaits every confirm. Never takes
    /// longer than [`BROKER_TIMEOUT`]: a blocked connection gives neither confirm nor error.
    ///
    /// Returns the confirms in the order of the rows.
    pub(crate) async fn publish(&mut self, rows: &mut [DueRow]) -> Vec<Confirm> {
        let spans = trace::begin(rows, &self.broker);
        let count = u32::try_from(rows.len()).unwrap_or(u32::MAX);
        self.room = self.room.saturating_sub(count);
        self.flow.published = self.flow.published.saturating_add(count);
        let deadline = Instant::now() + BROKER_TIMEOUT;
        let mut promised = Vec::with_capacity(rows.len());
        for row in &*rows {
            match timeout_at(deadline, self.publish_one(row)).await {
                Ok(Ok(confirm)) => {
                    promised.push(confirm);
                    kill_point!("relay.between_publishes");
                }
                Ok(Err(error)) => {
                    let error = BrokerError::Client("a message", error);
                    warn!(%error, "publishing failed");
                    break;
                }
                Err(_) => break,
            }
        }
        kill_point!("relay.after_last_publish");
        let confirmations = join_all(promised.iter_mut().map(|confirm| timeout_at(deadline, confirm))).await;
        let are_late: Vec<bool> = confirmations.iter().map(Result::is_err).collect();
        let confirmations = confirmations.into_iter().map(|result| result.ok().and_then(Result::ok)).collect();
        let judgement = judge(rows, confirmations);
        self.unroutable |= judgement.unroutable;
        if self.broker.has_several_hosts() && are_late.contains(&true) {
            let late = promised.into_iter().zip(are_late).filter_map(|(confirm, is_late)| is_late.then_some(confirm));
            self.late = Some((late.collect(), Instant::now()));
        }
        self.spent |= judgement.unroutable || (judgement.spent && self.late.is_none());
        trace::end(spans, &judgement.confirms);
        judgement.confirms
    }

    async fn publish_one(&self, row: &DueRow) -> Result<PublisherConfirm, lapin::Error> {
        // Mandatory: a task that no queue takes comes back instead of vanishing.
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = BasicProperties::default()
            .with_message_id(row.message_id.to_string().into())
            .with_content_type("application/json".into())
            .with_delivery_mode(PERSISTENT);
        let (exchange, routing_key) = (self.broker.exchange().into(), self.broker.routing_key().into());
        self.channel.basic_publish(exchange, routing_key, options, &row.task.encode(), properties).await
    }

    /// Says goodbye to the broker.
    pub(crate) async fn close(self) {
        // It is dropped in any case; the broker would notice by itself.
        let _ = within("the close", self.connection.close(200, "bye".into())).await;
    }
}

/// Says so when the broker blocks the connection: it is short of memory or disk. The gauge counts connections, and one
/// that has ended is not blocked.
async fn log_blocking(mut events: impl futures_util::Stream<Item = Event> + Unpin) {
    let mut is_blocked = false;
    while let Some(event) = events.next().await {
        let was_blocked = is_blocked;
        match event {
            Event::ConnectionBlocked(reason) => {
                is_blocked = true;
                warn!(
                    reason,
                    "degraded: RabbitMQ takes no messages until it has memory and disk again; they stay in Postgres"
                );
            }
            Event::ConnectionUnblocked => {
                is_blocked = false;
                warn!("RabbitMQ takes messages again");
            }
            Event::Error(_) => is_blocked = false,
            _ => {}
        }
        metrics::gauge!("outhook_relay_blocked").increment(f64::from(is_blocked) - f64::from(was_blocked));
    }
    metrics::gauge!("outhook_relay_blocked").decrement(f64::from(is_blocked));
}
