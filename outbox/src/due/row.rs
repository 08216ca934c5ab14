//! An outbox row that is due, as the relay sees it.

use std::time::SystemTime;

use tokio_postgres::Row;
use uuid::Uuid;

use crate::broker::task::{LARGE_PAYLOAD, Task};

/// An outbox row that is due.
#[derive(Clone, Debug)]
pub struct DueRow {
    /// Its AMQP `message_id`, the same however often it is published.
    pub message_id: Uuid,
    /// Whether it was recorded as published before.
    pub was_published: bool,
    /// Whether it has an ordering key and must first be given its turn: see [`crate::due::ordering`].
    pub has_no_turn: bool,
    /// Whether its destination is sick, and it was not set free.
    pub is_held_back: bool,
    /// Since when it is due, by the database's clock.
    pub due_at: SystemTime,
    /// The task to publish; holds the row's id.
    pub task: Task,
}

impl DueRow {
    pub(super) fn from_row(row: &Row) -> Self {
        // What cannot be read is not known: one such row must not stop the others.
        let traceparent = row.try_get("traceparent").unwrap_or_default();
        let destination: String = row.try_get("destination").unwrap_or_default();
        let mut task = Task::new(row.get("job_id"), row.get("attempt"), row.get("id"), traceparent)
            .to(destination.into(), row.get("released"));
        task.installation = row.get("installation");
        task.limited = row.get("limited");
        let payload_bytes: i32 = row.get("payload_bytes");
        task.payload_bytes = Some(payload_bytes.unsigned_abs()).filter(|it| *it >= LARGE_PAYLOAD).unwrap_or(0);
        Self {
            message_id: row.get("message_id"),
            was_published: row.get("was_published"),
            has_no_turn: row.get("has_no_turn"),
            is_held_back: row.get("is_held_back"),
            due_at: row.get("due_at"),
            task,
        }
    }

    /// The row's id in `outbox`.
    #[must_use]
    pub const fn id(&self) -> i64 {
        self.task.outbox_id
    }
}
