//! Webhooks in order: some keys, each at destinations of its own, from the api and from SQL.
//!
//! What is known of each is when its caller began and when he knew that it is taken: one that began after another was
//! taken comes after it. Nothing is known of the order of those that overlap.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use harness::client::send;
use harness::{Client, Webhook};
use outbox::service::clock;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// One of so many from the api is scheduled. It takes its place when its time comes, whatever its caller knew.
const SCHEDULED_ONE_OF: u32 = 8;

/// Wait before what got no answer is sent again.
const REPEAT_AFTER: Duration = Duration::from_millis(50);

/// One webhook with a key that was taken.
#[derive(Clone, Debug)]
pub struct Keyed {
    pub job_id: Uuid,
    /// Destination and key.
    pub line: String,
    pub began: Instant,
    pub taken: Instant,
    pub is_scheduled: bool,
}

/// A caller of one key.
pub struct Caller {
    pub key: &'static str,
    /// Its destination, for the record.
    pub destination: String,
    /// What it calls, one at random each time.
    pub urls: Vec<String>,
    /// In a transaction of its own that stays open for a while, and beside others; else one after the other by the api.
    pub from_sql: bool,
}

/// All callers until they are stopped.
pub struct KeyedLoad {
    callers: JoinSet<()>,
    taken: Arc<Mutex<Vec<Keyed>>>,
    stop: CancellationToken,
}

impl KeyedLoad {
    pub fn start(client: &Client, pool: &PgPool, callers: Vec<Caller>, seed: u64) -> Self {
        let (stop, taken) = (CancellationToken::new(), Arc::new(Mutex::new(Vec::new())));
        let mut tasks = JoinSet::new();
        for (number, caller) in callers.into_iter().enumerate() {
            let random = StdRng::seed_from_u64(seed.wrapping_add(number as u64));
            let way = Way { client: client.clone(), pool: pool.clone(), taken: Arc::clone(&taken) };
            tasks.spawn(call(way, caller, number, random, stop.clone()));
        }
        Self { callers: tasks, taken, stop }
    }

    /// Begins no more, waits until all that was begun is taken, and returns it.
    pub async fn stop(self) -> Vec<Keyed> {
        self.stop.cancel();
        self.callers.join_all().await;
        std::mem::take(&mut self.taken.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Way {
    client: Client,
    pool: PgPool,
    taken: Arc<Mutex<Vec<Keyed>>>,
}

async fn call(way: Way, caller: Caller, number: usize, mut random: StdRng, stop: CancellationToken) {
    for count in 0_u64.. {
        let pause = Duration::from_millis(random.random_range(200..800));
        if stop.run_until_cancelled(sleep(pause)).await.is_none() {
            return;
        }
        let url = caller.urls.choose(&mut random).expect("it has some");
        let payload = format!("{{\"caller\": {number}, \"count\": {count}}}");
        let idempotency_key = format!("keyed-{number}-{count}");
        let began = Instant::now();
        let mut is_scheduled = false;
        let job_id = if caller.from_sql {
            let open_for = Duration::from_millis(random.random_range(0..600));
            let job_id = enqueue(&way.pool, url, &payload, &idempotency_key, caller.key, open_for).await;
            way.client.remember(job_id, Some(&payload));
            job_id
        } else {
            is_scheduled = random.random_ratio(1, SCHEDULED_ONE_OF);
            let delay = is_scheduled.then(|| Duration::from_millis(random.random_range(500..3_000)));
            let webhook = Webhook::to(url).payload(&payload).ordering_key(caller.key);
            let webhook = match delay {
                Some(delay) => webhook.deliver_at(clock::now() + delay),
                None => webhook,
            };
            post(&way.client, &webhook, &payload, &idempotency_key).await
        };
        let line = format!("{} {}", caller.destination, caller.key);
        let keyed = Keyed { job_id, line, began, taken: Instant::now(), is_scheduled };
        way.taken.lock().unwrap_or_else(PoisonError::into_inner).push(keyed);
    }
}

/// Until it is known to be taken.
async fn post(client: &Client, webhook: &Webhook, payload: &str, idempotency_key: &str) -> Uuid {
    let body = webhook.body();
    loop {
        match send(client.request(body.clone()).header("Idempotency-Key", idempotency_key)).await {
            Ok(response) if [200, 202].contains(&response.status) => {
                let job_id = response.job_id();
                client.remember(job_id, Some(payload));
                return job_id;
            }
            Ok(response) => assert_eq!(response.status, 503, "{}", response.body),
            // The connection broke: nobody knows whether it was accepted.
            Err(_) => {}
        }
        sleep(REPEAT_AFTER).await;
    }
}

/// The same from SQL.
async fn enqueue(
    pool: &PgPool,
    url: &str,
    payload: &str,
    idempotency_key: &str,
    key: &str,
    open_for: Duration,
) -> Uuid {
    let enqueue = async || -> Result<Uuid, sqlx::Error> {
        let mut transaction = pool.begin().await?;
        let statement = "SELECT outhook.enqueue($1, $2, idempotency_key => $3, ordering_key => $4)";
        let enqueued = sqlx::query_scalar(statement).bind(url).bind(payload).bind(idempotency_key).bind(key);
        let job_id = enqueued.fetch_one(&mut *transaction).await?;
        sleep(open_for).await;
        transaction.commit().await?;
        Ok(job_id)
    };
    loop {
        // The commit's answer may be lost with Postgres: the key tells the next time.
        if let Ok(job_id) = enqueue().await {
            return job_id;
        }
        sleep(REPEAT_AFTER).await;
    }
}
