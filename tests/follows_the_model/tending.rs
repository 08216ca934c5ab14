//! What a relay and a worker do for what waits, as it is replayed.

use outbox::destination::breaker::{CoolDown, Finding};
use outbox::destination::{hold, release, store};
use outbox::due::ordering;

use super::replay::{LONG, Replay};

/// That of all jobs.
pub const DESTINATION: &str = "http://127.0.0.1";

/// More than there are.
const MANY: i32 = 1_000;

impl Replay {
    pub async fn give_turns(&self) {
        let (relay, statements) = (&self.ground.other_relay, &self.ground.other_statements);
        ordering::give_turns(relay, statements, 0, MANY).await.expect("turns are given");
    }

    pub async fn hold(&self) {
        hold::hold_due(&self.ground.other_relay, MANY.into(), None).await.expect("rows are held");
    }

    /// A look when its time has come, and what asked to slow down is long ago.
    pub async fn look(&self) {
        let time = "UPDATE destinations SET hold_until = now() - interval '1 second', slowed_at = slowed_at - interval '1 hour'";
        sqlx::query(time).execute(&self.ground.pool).await.expect("it is written");
        release::release(&mut *self.ground.third_relay.lock().await, MANY).await.expect("destinations are looked at");
    }

    pub async fn free_strays(&self) {
        hold::free_strays(&self.ground.other_relay, "").await.expect("strays are set free");
    }

    pub async fn report(&self, finding: Finding) {
        let cool_down = CoolDown { base: LONG, max: LONG };
        let destination = DESTINATION.to_owned().into();
        store::report(&self.ground.services, &destination, finding, "", cool_down).await.expect("it is stored");
    }

    pub async fn close_by_hand(&self) {
        let close = "UPDATE destinations SET state = 'closed'";
        sqlx::query(close).execute(&self.ground.pool).await.expect("it is written");
    }

    pub async fn give_back(&mut self, place: usize) {
        let message = self.broker.remove(place);
        let held = hold::hold_published(&self.ground.services, std::slice::from_ref(&message)).await;
        if held.expect("it is answered").is_empty() {
            self.refuse(&[message]).await;
        }
    }
}
