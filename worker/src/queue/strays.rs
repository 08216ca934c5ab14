//! Tasks of another installation of Outhook that uses the same broker and the same names. They are left to its workers;
//! dropped, they would be lost to it.

use std::time::Duration;

use lapin::message::Delivery;
use tokio::time::{Instant, sleep};
use tracing::warn;
use uuid::Uuid;

use super::{Received, release};

/// For so long a stray is kept before it is given back: it may come here again at once.
const KEPT: Duration = Duration::from_secs(1);

/// Between two warnings.
const WARNING_SPACING: Duration = Duration::from_secs(10);

pub(crate) struct Strays {
    /// Which one this is.
    installation: Uuid,
    next_warning: Instant,
}

impl Strays {
    pub(crate) fn new(installation: Uuid) -> Self {
        Self { installation, next_warning: Instant::now() }
    }

    /// Lets through what is of this installation, and gives back the rest. What names none is taken as ours: its claim finds out.
    pub(crate) fn keep_ours(&mut self, received: Received) -> Option<Received> {
        if received.task.installation.is_none_or(|it| it == self.installation) {
            return Some(received);
        }
        metrics::counter!("outhook_worker_strays_total").increment(1);
        if self.next_warning <= Instant::now() {
            self.next_warning = Instant::now() + WARNING_SPACING;
            warn!(
                "a message is of another installation of Outhook, which uses the same queue: give one of them names of its \
                 own (RABBITMQ_EXCHANGE, RABBITMQ_QUEUE) or a virtual host of its own"
            );
        }
        // Bounded by what the broker hands out ahead. Should the worker end first, they go back with its connection.
        tokio::spawn(give_back(received.delivery));
        None
    }
}

async fn give_back(delivery: Delivery) {
    sleep(KEPT).await;
    release(delivery).await;
}
