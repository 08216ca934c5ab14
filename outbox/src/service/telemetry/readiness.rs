//! Whether a process can do its work now, and what is missing if not.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::service::database::{Pool, on_connection};

/// Postgres answers a question that needs no table within this, or it does not answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

const OK: &str = "ok";
const NOT_YET: &str = "has not answered yet";

/// A server that a process needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// The database.
    Postgres,
    /// The broker.
    RabbitMq,
}

/// What a process knows of the servers that it needs, and when it last did its work. Clones share it.
#[derive(Clone)]
pub struct Readiness(Arc<Inner>);

struct Inner {
    stop: CancellationToken,
    /// A process that always takes turns is not ready when the last one is longer ago.
    longest_turn: Option<Duration>,
    /// What to ask, where there is no other way to know.
    pool: OnceLock<Pool>,
    known: Mutex<Known>,
}

#[derive(Clone, Copy)]
struct Known {
    postgres: &'static str,
    rabbitmq: &'static str,
    turn: Option<Instant>,
}

impl Readiness {
    /// Of a process that has reached nothing yet, and is ready no more after `stop`.
    #[must_use]
    pub fn new(stop: CancellationToken, longest_turn: Option<Duration>) -> Self {
        let known = Mutex::new(Known { postgres: NOT_YET, rabbitmq: NOT_YET, turn: None });
        Self(Arc::new(Inner { stop, longest_turn, pool: OnceLock::new(), known }))
    }

    /// Whether Postgres is there is asked by this pool, each time that somebody wants to know.
    pub fn ask_by(&self, pool: Pool) {
        let _ = self.0.pool.set(pool);
    }

    /// The server does what it is asked.
    pub fn reached(&self, server: Server) {
        self.know(server, OK);
    }

    /// It does not; `what` completes the sentence "Postgres …".
    pub fn lost(&self, server: Server, what: &'static str) {
        self.know(server, what);
    }

    /// The process has looked for work, or has done some.
    pub fn made_progress(&self) {
        self.known().turn = Some(Instant::now());
    }

    /// Whether it is ready, and how things stand.
    pub(super) async fn ask(&self) -> (bool, Value) {
        if let Some(pool) = self.0.pool.get() {
            let asked = on_connection(pool, async |connection| sqlx::query("SELECT").execute(connection).await);
            let answered = matches!(timeout(ANSWER_TIMEOUT, asked).await, Ok(Ok(_)));
            self.know(Server::Postgres, if answered { OK } else { "does not answer" });
        }
        let Known { postgres, rabbitmq, turn } = *self.known();
        let since = turn.map(|turn| turn.elapsed());
        let is_late = self.0.longest_turn.is_some_and(|longest| since.is_none_or(|since| since > longest));
        let is_stopping = self.0.stop.is_cancelled();
        let is_ready = postgres == OK && rabbitmq == OK && !is_late && !is_stopping;
        let status = match is_ready {
            true => OK,
            false if is_stopping => "stopping",
            false => "unavailable",
        };
        let seconds = since.map(|since| since.as_secs());
        (is_ready, json!({ "status": status, "postgres": postgres, "rabbitmq": rabbitmq, "last_turn_sec": seconds }))
    }

    fn know(&self, server: Server, what: &'static str) {
        let mut known = self.known();
        match server {
            Server::Postgres => known.postgres = what,
            Server::RabbitMq => known.rabbitmq = what,
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
