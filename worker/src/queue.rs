//! All that is said to RabbitMQ: the place at the queue, the acks of what was taken from it, and whose tasks are in it.

mod acks;
mod strays;
mod subscription;

use lapin::message::Delivery;
use tracing::warn;

use crate::intake;
use crate::worker::Worker;

pub(crate) use self::acks::{ack, reject, release, release_all};
pub(crate) use self::strays::Strays;
pub(crate) use self::subscription::{ConsumeError, Load, Subscription};

/// A task, and what it is acked by.
pub(crate) type Received = intake::Received<Delivery>;

/// Deletes a queue that nobody can consume; the relay makes it anew, and what was in it is due again.
pub(crate) async fn delete_broken_queue(worker: &Worker) {
    match worker.config.broker.delete_queue("outhook-worker").await {
        Ok(()) => warn!("the broker's queue is broken: deleted it, so that the relay declares it anew"),
        Err(error) => warn!(%error, "the broker's queue is broken and cannot be deleted"),
    }
    metrics::counter!("outhook_worker_broken_queues_total").increment(1);
}
