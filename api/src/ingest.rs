//! Group commit: requests that arrive while a commit is under way share the next one.

use std::time::Duration;

use outbox::job::accept::{Accepted, NewJob, accept};
use outbox::kill_point;
use outbox::service::batch::{BatchError, Batcher, Limits};
use outbox::service::database::Failure;
use outbox::service::database::Pool;
use outbox::service::notify::Notifier;
use tracing::{error, warn};

use crate::config::AcceptConfig;
use crate::error::ApiError;

/// Tries of a batch that another transaction was in the way of.
const TRIES: u32 = 3;

/// Jobs of a batch that may wait for somebody's lock in vain before the rest is given up.
const MAX_LOCKED: usize = 2;

/// Bytes of payloads in one statement, so that it ends within its time on any network that is worth it.
const STATEMENT_BYTES: usize = 8 * 1024 * 1024;

type Answer = Result<Accepted, ApiError>;

/// Connections to accept over.
#[derive(Clone)]
pub(crate) struct Pools {
    /// For a batch in one statement.
    pub together: Pool,
    /// For the jobs of a batch that failed, one by one. These wait for locks hardly at all: the batch has
    /// done so already, and what waits behind it must not wait for each of its jobs.
    pub singly: Pool,
}

pub(crate) struct Ingest {
    batcher: Batcher<NewJob, Answer>,
}

impl Ingest {
    /// `waiting` bounds the jobs that wait for their commit.
    pub(crate) fn start(pools: Pools, notifier: Notifier, config: &AcceptConfig, waiting: usize) -> Self {
        let (batch, concurrent) = (config.accept_batch_size.into(), config.accept_concurrency.into());
        // A caller waits for its 202: nothing is held back to make a batch larger.
        let limits = Limits { waiting, batch, concurrent, spacing: Duration::ZERO };
        let batcher = Batcher::start(limits, move |jobs: Vec<NewJob>| {
            let (pools, notifier) = (pools.clone(), notifier.clone());
            async move {
                kill_point!("api.before_commit");
                let answers = accept_all(&pools, &jobs).await;
                kill_point!("api.after_commit");
                // After the commit and outside it: a hint for the relay.
                notifier.wake_relays();
                answers
            }
        });
        Self { batcher }
    }

    /// Stores a job; returns after its commit.
    pub(crate) async fn accept(&self, job: NewJob) -> Answer {
        match self.batcher.try_submit(job).await {
            Ok(answer) => answer,
            Err(BatchError::Full) => Err(ApiError::Overloaded),
            Err(BatchError::GivenUp) => Err(ApiError::Unavailable),
        }
    }
}

/// A batch in statements that stay within their time.
async fn accept_all(pools: &Pools, jobs: &[NewJob]) -> Vec<Answer> {
    metrics::histogram!("outhook_api_accept_batch_size").record(u32::try_from(jobs.len()).unwrap_or(u32::MAX));
    let mut answers = Vec::with_capacity(jobs.len());
    while answers.len() < jobs.len() {
        let jobs = &jobs[answers.len()..];
        answers.extend(accept_statement(pools, &jobs[..within_bytes(jobs)]).await);
    }
    answers
}

/// How many of the jobs, one at least, fit into one statement.
fn within_bytes(jobs: &[NewJob]) -> usize {
    let mut bytes = 0;
    let fits = |job: &&NewJob| {
        bytes += job.payload.len();
        bytes <= STATEMENT_BYTES
    };
    jobs.iter().take_while(fits).count().max(1)
}

async fn accept_statement(pools: &Pools, jobs: &[NewJob]) -> Vec<Answer> {
    match accept_together(&pools.together, jobs).await {
        Ok(accepted) => accepted.into_iter().map(Ok).collect(),
        // Whether it was written is not known, and the next try would wait as long.
        Err(Failure::Unavailable) => unavailable(jobs),
        // A batch of one has waited for its job already.
        Err(Failure::Locked) if jobs.len() == 1 => unavailable(jobs),
        // Nothing was written: one bad row must hurt only itself.
        Err(_) => accept_one_by_one(&pools.singly, jobs).await,
    }
}

fn unavailable(jobs: &[NewJob]) -> Vec<Answer> {
    vec![Err(ApiError::Unavailable); jobs.len()]
}

async fn accept_together(pool: &Pool, jobs: &[NewJob]) -> Result<Vec<Accepted>, Failure> {
    let mut tries = 0;
    loop {
        let error = match accept(pool, jobs).await {
            Ok(accepted) => return Ok(accepted),
            Err(error) => error,
        };
        let failure = Failure::of(&error);
        warn!(%error, ?failure, jobs = jobs.len(), "a batch was not committed");
        tries += 1;
        if failure != Failure::Conflict || tries == TRIES {
            return Err(failure);
        }
    }
}

async fn accept_one_by_one(pool: &Pool, jobs: &[NewJob]) -> Vec<Answer> {
    let mut answers = Vec::with_capacity(jobs.len());
    let mut locked = 0;
    for (position, job) in jobs.iter().enumerate() {
        match accept_together(pool, std::slice::from_ref(job)).await {
            Ok(accepted) => answers.extend(accepted.into_iter().map(Ok)),
            Err(Failure::Rejected) => {
                error!(job_id = %job.id, "the database refuses what the api let through");
                answers.push(Err(ApiError::InvalidField("the database refuses one of the fields".to_owned())));
            }
            Err(Failure::Locked) if locked < MAX_LOCKED => {
                locked += 1;
                answers.push(Err(ApiError::Unavailable));
            }
            Err(Failure::Conflict) => answers.push(Err(ApiError::Unavailable)),
            // Postgres went away, or all is locked: the others must not wait for that one after the other.
            Err(Failure::Unavailable | Failure::Locked) => {
                answers.extend(unavailable(&jobs[position..]));
                break;
            }
        }
    }
    answers
}
