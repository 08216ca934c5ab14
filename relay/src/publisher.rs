//! Publishing with confirms: one connection and one channel, used by one lane.
//!
//! Two tasks that publish on one channel get each other's confirms, so a publisher is never shared. It
//! does not recover: whoever sees it fail drops it and connects another.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, Connection, Event, PublisherConfirm};
use outbox::due::DueRow;
use outbox::kill_point;
use outbox::topology::{BROKER_TIMEOUT, BrokerConfig, BrokerError, within};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::warn;

use crate::queue_length::QueueLength;
use crate::trace;

/// Persistent, as AMQP writes it: the message outlives the broker.
const PERSISTENT: u8 = 2;

/// What the broker said of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is on disk, in the queue.
    Confirmed,
    /// It is not: refused, or no queue took it.
    Refused,
    /// No answer: it may be there or not.
    Unknown,
}

pub(crate) struct Publisher {
    connection: Connection,
    channel: Channel,
    /// The queue's length is asked by a channel of its own: one whose messages wait for a leader answers nothing else.
    looks: Channel,
    broker: BrokerConfig,
    /// Messages that may still be published before the queue's length is asked again.
    room: u32,
    /// When it was asked last.
    asked: Instant,
    queue: QueueLength,
    flow: Flow,
    /// Whether a message came back or stayed without an answer, or all were refused: another connection may
    /// do better.
    spent: bool,
    /// Whether a message came back because no queue took it.
    unroutable: bool,
    /// Messages without an answer, and since when these are waited for. The channel publishes nothing before it has them.
    late: Option<(FuturesUnordered<PublisherConfirm>, Instant)>,
}

/// The queue's length is asked at least this often, so that a lane with nothing to publish notices a
/// queue that was deleted with the messages in it.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// Where a cluster's node answers and does not confirm, the queue has no leader for now, and this channel hears of the next
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

    /// Whether a message came back because no queue took it: the queue or the binding is gone.
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

    /// How many messages the queue takes now, up to `wanted`; 0 also if it would be a few only. It is kept no longer than
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
    /// node answers nothing at all.
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
    /// Returns the answers in the order of the rows.
    pub(crate) async fn publish(&mut self, rows: &mut [DueRow]) -> Vec<Answer> {
        let spans = trace::begin(rows, &self.broker);
        let count = u32::try_from(rows.len()).unwrap_or(u32::MAX);
        self.room = self.room.saturating_sub(count);
        self.flow.published = self.flow.published.saturating_add(count);
        let deadline = Instant::now() + BROKER_TIMEOUT;
        let mut confirms = Vec::with_capacity(rows.len());
        for row in &*rows {
            match timeout_at(deadline, self.publish_one(row)).await {
                Ok(Ok(confirm)) => {
                    confirms.push(confirm);
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
        let confirmations = join_all(confirms.iter_mut().map(|confirm| timeout_at(deadline, confirm))).await;
        let are_late: Vec<bool> = confirmations.iter().map(Result::is_err).collect();
        let confirmations = confirmations.into_iter().map(|result| result.ok().and_then(Result::ok)).collect();
        let judgement = judge(rows, confirmations);
        self.unroutable |= judgement.unroutable;
        if self.broker.has_several_hosts() && are_late.contains(&true) {
            let late = confirms.into_iter().zip(are_late).filter_map(|(confirm, is_late)| is_late.then_some(confirm));
            self.late = Some((late.collect(), Instant::now()));
        }
        self.spent |= judgement.unroutable || (judgement.spent && self.late.is_none());
        trace::end(spans, &judgement.answers);
        judgement.answers
    }

    async fn publish_one(&self, row: &DueRow) -> Result<PublisherConfirm, lapin::Error> {
        // Mandatory: a message that no queue takes comes back instead of vanishing.
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = BasicProperties::default()
            .with_message_id(row.message_id.to_string().into())
            .with_content_type("application/json".into())
            .with_delivery_mode(PERSISTENT);
        let (exchange, routing_key) = (self.broker.exchange().into(), self.broker.routing_key().into());
        self.channel.basic_publish(exchange, routing_key, options, &row.message.encode(), properties).await
    }

    /// Says goodbye to the broker.
    pub(crate) async fn close(self) {
        // It is dropped in any case; the broker would notice by itself.
        let _ = within("the close", self.connection.close(200, "bye".into())).await;
    }
}

/// How fast the workers empty the queue, as far as this relay can see.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    /// Messages that were published since the queue's length was asked last, and what that was.
    published: u32,
    ready: u32,
    /// Messages a second that were taken from the queue.
    rate: f64,
}

impl Flow {
    /// Always allowed: workers that were idle need something to begin with.
    const LEAST: f64 = 256.0;

    /// What lies in the queue is gone in this many seconds.
    const DEPTH_SEC: f64 = 0.25;

    fn saw(&mut self, ready: u32, after: Duration) {
        let taken = f64::from(self.ready) + f64::from(self.published) - f64::from(ready);
        let rate = (taken / after.as_secs_f64().max(0.001)).max(0.0);
        self.rate = f64::midpoint(self.rate, rate);
        (self.ready, self.published) = (ready, 0);
    }

    /// How long the queue may be.
    fn limit(self) -> u32 {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float's cast saturates")]
        let limit = (self.rate * Self::DEPTH_SEC).max(Self::LEAST) as u32;
        limit
    }
}

/// What came of a batch: the answers in the order of its rows, and what that says of the publisher.
struct Judgement {
    answers: Vec<Answer>,
    spent: bool,
    unroutable: bool,
}

/// Matches confirmations with rows. A returned message rides on any confirm of the batch, so returns are
/// matched by message id.
fn judge(rows: &[DueRow], confirmations: Vec<Option<Confirmation>>) -> Judgement {
    let mut answers = vec![Answer::Unknown; rows.len()];
    let mut returned = HashSet::new();
    for (answer, confirmation) in answers.iter_mut().zip(confirmations) {
        *answer = match &confirmation {
            Some(Confirmation::Ack(_)) => Answer::Confirmed,
            Some(Confirmation::Nack(_)) => Answer::Refused,
            // NotRequested: the channel is not in confirm mode, so nothing is known.
            Some(Confirmation::NotRequested) | None => Answer::Unknown,
        };
        let message = confirmation.and_then(Confirmation::take_message);
        returned.extend(message.and_then(|message| message.delivery.properties.message_id().clone()));
    }
    for (row, answer) in rows.iter().zip(&mut answers) {
        if returned.iter().any(|id| id.as_str() == row.message_id.to_string()) {
            *answer = Answer::Refused;
        }
    }
    // A return means that the queue or the binding is gone: before the next publisher they are declared. And a channel that
    // a full queue has once refused may never hear that there is room again: if the limit is lifted before
    // the queue is drained, RabbitMQ 3.10 tells only new channels.
    let all_refused = !rows.is_empty() && !answers.contains(&Answer::Confirmed);
    let unroutable = !returned.is_empty();
    let spent = unroutable || answers.contains(&Answer::Unknown) || all_refused;
    Judgement { answers, spent, unroutable }
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

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use outbox::message::Message;
    use uuid::Uuid;

    use super::*;

    fn row(id: u128) -> DueRow {
        let message = Message::new(Uuid::from_u128(id), 0, 1, None);
        DueRow {
            message_id: Uuid::from_u128(id),
            rings_again: false,
            has_no_turn: false,
            is_held_back: false,
            due_at: SystemTime::UNIX_EPOCH,
            message,
        }
    }

    #[test]
    fn only_an_ack_is_a_confirm() {
        let rows = [row(1), row(2), row(3), row(4)];
        let confirmations =
            vec![Some(Confirmation::Ack(None)), Some(Confirmation::Nack(None)), Some(Confirmation::NotRequested), None];
        let Judgement { answers, spent, unroutable } = judge(&rows, confirmations);
        assert!(!unroutable);
        assert_eq!(answers, [Answer::Confirmed, Answer::Refused, Answer::Unknown, Answer::Unknown]);
        assert!(spent);
    }

    #[test]
    fn a_missing_confirmation_is_unknown() {
        let Judgement { answers, spent, .. } = judge(&[row(1), row(2)], vec![Some(Confirmation::Ack(None))]);
        assert_eq!(answers, [Answer::Confirmed, Answer::Unknown]);
        assert!(spent);
    }

    #[test]
    fn the_queue_is_as_long_as_workers_empty_in_a_moment() {
        let mut flow = Flow::default();
        assert_eq!(flow.limit(), 256);
        for _ in 0..10 {
            flow.published = 800;
            flow.saw(0, Duration::from_millis(100));
        }
        assert!((1_950..=2_000).contains(&flow.limit()), "{}", flow.limit());
        for _ in 0..10 {
            flow.saw(5_000, Duration::from_millis(100));
        }
        assert_eq!(flow.limit(), 256, "nobody takes anything");
    }

    #[test]
    fn a_publisher_goes_on_while_the_queue_takes_some() {
        let some = vec![Some(Confirmation::Ack(None)), Some(Confirmation::Nack(None))];
        assert!(!judge(&[row(1), row(2)], some).spent);
        assert!(judge(&[row(1)], vec![Some(Confirmation::Nack(None))]).spent, "all were refused");
        assert!(!judge(&[], Vec::new()).spent, "nothing was published: every row that rang was put right");
    }
}
