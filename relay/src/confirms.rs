//! What the broker says of a batch's tasks. Pure.

use std::collections::HashSet;

use lapin::Confirmation;
use outbox::due::DueRow;

/// What the broker said of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Confirm {
    /// It is on disk, in the queue.
    Confirmed,
    /// It is not: refused, or no queue took it.
    Refused,
    /// It was not confirmed: it may be there or not.
    Unknown,
}

/// What came of a batch: the confirms in the order of its rows, and what that says of the publisher.
pub(crate) struct Judgement {
    pub confirms: Vec<Confirm>,
    /// Whether another publisher may do better.
    pub spent: bool,
    /// Whether a task came back because no queue took it.
    pub unroutable: bool,
}

/// Matches confirmations with rows. A returned task rides on any confirm of the batch, so returns are
/// matched by message id.
pub(crate) fn judge(rows: &[DueRow], confirmations: Vec<Option<Confirmation>>) -> Judgement {
    let mut confirms = vec![Confirm::Unknown; rows.len()];
    let mut returned = HashSet::new();
    for (confirm, confirmation) in confirms.iter_mut().zip(confirmations) {
        *confirm = match &confirmation {
            Some(Confirmation::Ack(_)) => Confirm::Confirmed,
            Some(Confirmation::Nack(_)) => Confirm::Refused,
            // NotRequested: the channel is not in confirm mode, so nothing is known.
            Some(Confirmation::NotRequested) | None => Confirm::Unknown,
        };
        let message = confirmation.and_then(Confirmation::take_message);
        returned.extend(message.and_then(|message| message.delivery.properties.message_id().clone()));
    }
    for (row, confirm) in rows.iter().zip(&mut confirms) {
        if returned.iter().any(|id| id.as_str() == row.message_id.to_string()) {
            *confirm = Confirm::Refused;
        }
    }
    // A return means that the queue or the binding is gone: before the next publisher they are declared. And a channel that
    // a full queue has once refused may never hear that there is room again: if the limit is lifted before
    // the queue is drained, RabbitMQ 3.10 tells only new channels.
    let all_refused = !rows.is_empty() && !confirms.contains(&Confirm::Confirmed);
    let unroutable = !returned.is_empty();
    let spent = unroutable || confirms.contains(&Confirm::Unknown) || all_refused;
    Judgement { confirms, spent, unroutable }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use outbox::broker::task::Task;
    use uuid::Uuid;

    use super::*;

    fn row(id: u128) -> DueRow {
        let task = Task::new(Uuid::from_u128(id), 0, 1, None);
        DueRow {
            message_id: Uuid::from_u128(id),
            was_published: false,
            has_no_turn: false,
            is_held_back: false,
            due_at: SystemTime::UNIX_EPOCH,
            task,
        }
    }

    #[test]
    fn only_an_ack_is_a_confirm() {
        let rows = [row(1), row(2), row(3), row(4)];
        let confirmations =
            vec![Some(Confirmation::Ack(None)), Some(Confirmation::Nack(None)), Some(Confirmation::NotRequested), None];
        let Judgement { confirms, spent, unroutable } = judge(&rows, confirmations);
        assert!(!unroutable);
        assert_eq!(confirms, [Confirm::Confirmed, Confirm::Refused, Confirm::Unknown, Confirm::Unknown]);
        assert!(spent);
    }

    #[test]
    fn a_missing_confirmation_is_unknown() {
        let Judgement { confirms, spent, .. } = judge(&[row(1), row(2)], vec![Some(Confirmation::Ack(None))]);
        assert_eq!(confirms, [Confirm::Confirmed, Confirm::Unknown]);
        assert!(spent);
    }

    #[test]
    fn a_publisher_goes_on_while_the_queue_takes_some() {
        let some = vec![Some(Confirmation::Ack(None)), Some(Confirmation::Nack(None))];
        assert!(!judge(&[row(1), row(2)], some).spent);
        assert!(judge(&[row(1)], vec![Some(Confirmation::Nack(None))]).spent, "all were refused");
        assert!(!judge(&[], Vec::new()).spent, "nothing was published: every row that rang was put right");
    }
}
