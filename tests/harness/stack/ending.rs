//! How a test with a stack ends: when all is quiet, with every invariant checked.

use std::time::Duration;

use crate::Stack;
use crate::invariants::{self, Evidence};
use crate::wait::{PATIENCE, wait_until};

impl Stack {
    /// Waits until every job is finished.
    pub async fn wait_until_drained(&self, timeout: Duration) {
        wait_until("every job to be finished", timeout, async || self.unfinished().await == 0).await;
    }

    /// Cancels what is not finished, until nothing is under way any more: the end of a test that has seen enough.
    pub async fn cancel_the_rest(&self) {
        let cancel = "SELECT count(outhook.cancel(id))
            FROM (SELECT id FROM webhook_jobs WHERE status = 'pending' LIMIT 1000) AS jobs";
        wait_until("the rest to be cancelled", PATIENCE, async || {
            // Who is in the way of services, as so many at once may be, gives up and tries again.
            let _: Result<i64, _> = sqlx::query_scalar(cancel).fetch_one(self.pool()).await;
            self.unfinished().await == 0
        })
        .await;
    }

    /// The end of a good test: waits for quiet, checks every invariant, stops all in order and tidies up.
    pub async fn finish(self) {
        self.finish_with_dead_letters(0).await;
    }

    /// The same for a test whose webhooks went to servers of its own: what those answered is the test's to check.
    pub async fn finish_unheard(mut self) {
        self.heard = false;
        self.finish().await;
    }

    /// The same for a test that put so many unreadable messages into the queue.
    pub async fn finish_with_dead_letters(mut self, dead: u32) {
        self.wait_until_drained(PATIENCE).await;
        wait_until("the queue to be empty", PATIENCE, async || self.broker.ready().await == 0).await;
        self.assert_invariants().await;
        for process in self.apis.iter_mut().chain(&mut self.relays).chain(&mut self.workers) {
            process.terminate().await;
        }
        // With the workers gone, what they held without an ack is back in the queue.
        assert_eq!(self.broker.ready().await, 0, "I12: messages are left in the queue");
        assert_eq!(self.broker.dead().await, dead, "I12: dead letters");
        self.broker.delete().await;
        self.database.drop().await;
    }

    /// The end of a test that leaves a backlog on purpose: nothing is waited for, and nothing checked.
    pub async fn abandon(mut self) {
        for process in self.apis.iter_mut().chain(&mut self.relays).chain(&mut self.workers) {
            process.kill().await;
        }
        self.broker.delete().await;
        self.database.drop().await;
    }

    /// Checks every invariant; all jobs must be finished.
    pub async fn assert_invariants(&self) {
        let (accepted, received) = (self.client.accepted(), self.receiver.received());
        let max_retries = self.common["MAX_RETRIES"].parse().expect("MAX_RETRIES is a number");
        let evidence = Evidence { accepted: &accepted, received: &received, max_retries };
        if self.heard {
            invariants::assert_hold(self.pool(), evidence).await;
        } else {
            invariants::assert_hold_unheard(self.pool(), evidence).await;
        }
    }
}
