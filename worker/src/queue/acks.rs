//! What RabbitMQ is told about each task.

use futures_util::future::join_all;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions};
use outbox::broker::topology::within;
use tracing::debug;

/// The task is no longer needed.
pub(crate) async fn ack(delivery: &Delivery) {
    send(delivery.acker.ack(BasicAckOptions::default())).await;
}

/// Gives back a task: it is handed out again.
pub(crate) async fn release(delivery: Delivery) {
    send(delivery.acker.nack(BasicNackOptions { requeue: true, ..BasicNackOptions::default() })).await;
}

pub(crate) async fn release_all(deliveries: impl IntoIterator<Item = Delivery>) {
    join_all(deliveries.into_iter().map(release)).await;
}

/// Sends an ack, or its opposite. One that does not reach the broker means that the task comes again,
/// and its claim is refused. Bounded: on a connection that is blocked or lost, it may never be sent.
async fn send(sent: impl Future<Output = Result<bool, lapin::Error>>) {
    let sent = within("an ack", sent).await;
    if !matches!(sent, Ok(true)) {
        debug!(?sent, "RabbitMQ did not get the ack of a message");
    }
}

/// Dead-letters a task that cannot be read.
pub(crate) async fn reject(delivery: Delivery) {
    send(delivery.acker.reject(BasicRejectOptions { requeue: false })).await;
}
