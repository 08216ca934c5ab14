//! Publishing with confirms: one connection and one channel, used by one lane.
//!
//! Two tasks that publish on one channel get each other's confirms, so a publisher is never shared. It
//! does not recover: whoever sees it fail drops it and connects another.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, Connection, Event};
use outbox::due::DueRow;
use outbox::kill_point;
use outbox::topology::{BROKER_TIMEOUT, BrokerConfig, BrokerError, within};
use tokio::time::{Instant, timeout_at};
use tracing::warn;

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
    broker: BrokerConfig,
    /// Messages that may still be published before the queue's length is asked again.
    room: u32,
    /// When it was asked last.
    asked: Instant,
    /// Whether a message came back or stayed without an answer, or all were refused: another connection may
    /// do better.
    spent: bool,
}

/// The queue's length is asked at least this often, so that a lane with nothing to publish notices a
/// queue that was deleted with the messages in it.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

impl Publisher {
    /// Turns a connection into a publisher. Declares the topology.
    pub(crate) async fn open(connection: Connection, broker: BrokerConfig) -> Result<Self, BrokerError> {
        tokio::spawn(log_blocking(connection.events_listener()));
        let channel = within("a channel", connection.create_channel()).await?;
        broker.declare(&channel).await?;
        within("confirm mode", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(Self { connection, channel, broker, room: 0, asked: Instant::now(), spent: false })
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

    /// How many messages the queue takes before it is longer than `limit`.
    ///
    /// The backlog belongs in Postgres: a short queue is quick to drain, to lose and to make anew.
    pub(crate) async fn room(&mut self, wanted: u32, limit: u32) -> Result<u32, BrokerError> {
        if self.room < wanted || self.asked.elapsed() >= ASK_INTERVAL {
            self.room = limit.saturating_sub(self.broker.ready_messages(&self.channel).await?);
            self.asked = Instant::now();
        }
        Ok(self.room.min(wanted))
    }

    /// Publishes all rows, one after the other without waiting, then awaits every confirm. Never takes
    /// longer than [`BROKER_TIMEOUT`]: a blocked connection gives neither confirm nor error.
    ///
    /// Returns the answers in the order of the rows.
    pub(crate) async fn publish(&mut self, rows: &[DueRow]) -> Vec<Answer> {
        self.room = self.room.saturating_sub(u32::try_from(rows.len()).unwrap_or(u32::MAX));
        let deadline = Instant::now() + BROKER_TIMEOUT;
        let mut confirms = Vec::with_capacity(rows.len());
        for row in rows {
            match timeout_at(deadline, self.publish_one(row)).await {
                Ok(Ok(confirm)) => {
                    confirms.push(confirm);
                    kill_point!("relay.between_publishes");
                }
                Ok(Err(error)) => {
                    warn!(%error, "publishing failed");
                    break;
                }
                Err(_) => break,
            }
        }
        kill_point!("relay.after_last_publish");
        let confirmations = join_all(confirms.into_iter().map(|confirm| timeout_at(deadline, confirm))).await;
        let confirmations = confirmations.into_iter().map(|result| result.ok().and_then(Result::ok)).collect();
        let (answers, spent) = judge(rows, confirmations);
        self.spent |= spent;
        answers
    }

    async fn publish_one(&self, row: &DueRow) -> Result<lapin::PublisherConfirm, lapin::Error> {
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

/// Matches confirmations with rows. A returned message rides on any confirm of the batch, so returns are
/// matched by message id. Also says whether the publisher is spent.
fn judge(rows: &[DueRow], confirmations: Vec<Option<Confirmation>>) -> (Vec<Answer>, bool) {
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
    // A return means that the queue or the binding is gone: a new publisher declares them. And a channel that
    // a full queue has once refused may never hear that there is room again: if the limit is lifted before
    // the queue is drained, RabbitMQ 3.10 tells only new channels.
    let all_refused = !rows.is_empty() && !answers.contains(&Answer::Confirmed);
    let spent = !returned.is_empty() || answers.contains(&Answer::Unknown) || all_refused;
    (answers, spent)
}

/// Says so when the broker blocks the connection: it is short of memory or disk.
async fn log_blocking(mut events: impl futures_util::Stream<Item = Event> + Unpin) {
    while let Some(event) = events.next().await {
        match event {
            Event::ConnectionBlocked(reason) => {
                metrics::gauge!("outhook_relay_blocked").set(1.0);
                warn!(reason, "degraded: RabbitMQ takes no messages; they stay in Postgres");
            }
            Event::ConnectionUnblocked => {
                metrics::gauge!("outhook_relay_blocked").set(0.0);
                warn!("RabbitMQ takes messages again");
            }
            _ => {}
        }
    }
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
            ordering_key: None,
            due_at: SystemTime::UNIX_EPOCH,
            message,
        }
    }

    #[test]
    fn only_an_ack_is_a_confirm() {
        let rows = [row(1), row(2), row(3), row(4)];
        let confirmations =
            vec![Some(Confirmation::Ack(None)), Some(Confirmation::Nack(None)), Some(Confirmation::NotRequested), None];
        let (answers, spent) = judge(&rows, confirmations);
        assert_eq!(answers, [Answer::Confirmed, Answer::Refused, Answer::Unknown, Answer::Unknown]);
        assert!(spent);
    }

    #[test]
    fn a_missing_confirmation_is_unknown() {
        let (answers, spent) = judge(&[row(1), row(2)], vec![Some(Confirmation::Ack(None))]);
        assert_eq!(answers, [Answer::Confirmed, Answer::Unknown]);
        assert!(spent);
    }

    #[test]
    fn a_publisher_goes_on_while_the_queue_takes_some() {
        let some = vec![Some(Confirmation::Ack(None)), Some(Confirmation::Nack(None))];
        assert!(!judge(&[row(1), row(2)], some).1);
        assert!(judge(&[row(1)], vec![Some(Confirmation::Nack(None))]).1, "all were refused");
        assert!(!judge(&[], Vec::new()).1, "nothing was published: every row that rang was put right");
    }
}
