//! Whether webhooks can be accepted now, for any number of probes at once.

use std::time::Duration;

use outbox::job::accept::{Obstacle, find_obstacle};
use outbox::service::batch::{Batcher, Limits};
use outbox::service::database::Pool;

/// Between two questions to Postgres; who asks meanwhile shares the next one's answer.
const SPACING: Duration = Duration::from_millis(100);

type Answer = Result<(), Obstacle>;

pub(crate) struct Readiness {
    batcher: Batcher<(), Answer>,
}

impl Readiness {
    /// Asks over the connections that webhooks are accepted over, since another one may fare better. One of them at
    /// most is busy with that: nobody needs a secret to ask. `waiting` bounds those who wait for an answer.
    pub(crate) fn start(pool: Pool, waiting: usize) -> Self {
        let limits = Limits { waiting, batch: waiting, concurrent: 1, spacing: SPACING };
        let batcher = Batcher::start(limits, move |asking: Vec<()>| {
            let pool = pool.clone();
            async move { vec![find_obstacle(&pool).await; asking.len()] }
        });
        Self { batcher }
    }

    /// The obstacle, if there is one.
    pub(crate) async fn ask(&self) -> Answer {
        self.batcher.try_submit(()).await.unwrap_or(Err(Obstacle::Unanswered))
    }
}
