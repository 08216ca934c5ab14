//! What there is in a stack's database, counted.

use crate::Stack;

impl Stack {
    /// The number that a statement counts.
    pub async fn count(&self, statement: &'static str) -> i64 {
        sqlx::query_scalar(statement).fetch_one(self.pool()).await.expect("the statement counts")
    }

    /// Jobs, whatever has become of them.
    pub async fn jobs(&self) -> i64 {
        self.count("SELECT count(*) FROM webhook_jobs").await
    }

    /// Jobs that are not finished.
    pub async fn unfinished(&self) -> i64 {
        self.count("SELECT count(*) FROM webhook_jobs WHERE status IN ('pending', 'processing')").await
    }

    /// Jobs that a worker has claimed and not settled.
    pub async fn under_way(&self) -> i64 {
        self.count("SELECT count(*) FROM webhook_jobs WHERE status = 'processing'").await
    }

    /// Jobs that were delivered.
    pub async fn delivered(&self) -> i64 {
        self.count("SELECT count(*) FROM webhook_jobs WHERE status = 'success'").await
    }

    /// Outbox rows whose messages are known to be with the broker.
    pub async fn published(&self) -> i64 {
        self.count("SELECT count(*) FROM outbox WHERE published_at IS NOT NULL").await
    }

    /// Outbox rows that are to be published, now or later.
    pub async fn unpublished(&self) -> i64 {
        self.count("SELECT count(*) FROM outbox WHERE published_at IS NULL").await
    }

    /// Publications that relays have recorded.
    pub async fn publications(&self) -> i64 {
        self.count("SELECT count(*) FROM harness.publications").await
    }

    /// Attempts that ended without success, as far as is known.
    pub async fn unsuccessful_attempts(&self) -> i64 {
        self.count("SELECT count(*) FROM webhook_attempts WHERE outcome <> 'success'").await
    }

    /// Attempts whose worker was lost before it could say what came of them.
    pub async fn unknown_attempts(&self) -> i64 {
        self.count("SELECT count(*) FROM webhook_attempts WHERE outcome = 'unknown'").await
    }
}
