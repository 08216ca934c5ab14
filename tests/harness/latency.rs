//! How long webhooks take to the stack's own receiver, from their acceptance to the record of their success, by the
//! database's clock.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use crate::{PATIENCE, Stack, wait_until};

/// Posts so many webhooks, each as soon as the one before was delivered and this pause is over, so that each
/// finds the pipeline as quiet as the test has left it. Returns how long they took, the quickest first.
pub async fn one_at_a_time(stack: &Stack, count: usize, pause: Duration) -> Vec<Duration> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let id = stack.post("{}", "").await.job_id;
        ids.push(id);
        wait_until("a webhook on its own to be delivered", PATIENCE, async || is_delivered(stack, id).await).await;
        sleep(pause).await;
    }
    taken(stack, &ids).await
}

/// Posts a webhook each `period`, whether those before have arrived or not.
pub async fn steadily(stack: &Stack, count: u32, period: Duration) -> Vec<Uuid> {
    let started = Instant::now();
    let mut ids = Vec::new();
    for number in 0..count {
        sleep_until(started + period * number).await;
        ids.push(stack.post("{}", "").await.job_id);
    }
    ids
}

/// How long these took, the quickest first. What is not delivered yet has taken until now.
pub async fn taken(stack: &Stack, ids: &[Uuid]) -> Vec<Duration> {
    let statement =
        "SELECT extract(epoch FROM CASE WHEN status = 'success' THEN updated_at ELSE now() END - created_at)::float8
        FROM webhook_jobs WHERE id = ANY($1) ORDER BY 1";
    let seconds: Vec<f64> =
        sqlx::query_scalar(statement).bind(ids).fetch_all(stack.pool()).await.expect("the jobs are there");
    assert_eq!(seconds.len(), ids.len());
    seconds.into_iter().map(|it| Duration::from_secs_f64(it.max(0.0))).collect()
}

/// The one in the middle of what is sorted.
#[must_use]
pub fn median(sorted: &[Duration]) -> Duration {
    sorted[sorted.len() / 2]
}

async fn is_delivered(stack: &Stack, id: Uuid) -> bool {
    sqlx::query_scalar("SELECT status = 'success' FROM webhook_jobs WHERE id = $1")
        .bind(id)
        .fetch_one(stack.pool())
        .await
        .expect("the job is there")
}
