//! Natural batching: what arrives while a batch is under way forms the next one.
//!
//! Nothing waits for a batch to fill. Idle, a batch is one item and costs no added latency; under load,
//! batches grow to what one round trip takes, and a commit is shared by all in it. Where a little latency
//! is cheaper than many small statements, [`Limits::spacing`] makes them larger still.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

/// Bounds of a [`Batcher`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Items that may wait for their batch.
    pub waiting: usize,
    /// Items in one batch.
    pub batch: usize,
    /// Batches under way at once.
    pub concurrent: usize,
    /// Least time between the starts of two batches, unless they are full. The first after a pause of this
    /// length starts at once.
    pub spacing: Duration,
}

/// Gathers items into batches and gives each sender its own answer.
#[derive(Debug)]
pub struct Batcher<Item, Answer> {
    sender: mpsc::Sender<Entry<Item, Answer>>,
}

#[derive(Debug)]
struct Entry<Item, Answer> {
    item: Item,
    answer: oneshot::Sender<Answer>,
    /// Somebody waits for it: its batch starts at once.
    is_urgent: bool,
}

/// Where the items wait, and the pace at which they are taken.
struct Waiting<Item, Answer> {
    receiver: mpsc::Receiver<Entry<Item, Answer>>,
    pace: Pace,
}

/// Keeps the starts of batches apart.
#[derive(Debug)]
pub struct Pace {
    spacing: Duration,
    next: Instant,
}

impl Pace {
    /// The first batch may start at once.
    #[must_use]
    pub fn new(spacing: Duration) -> Self {
        Self { spacing, next: Instant::now() }
    }

    /// Until when a batch that is not full should gather more: the past, after a pause.
    #[must_use]
    pub const fn next(&self) -> Instant {
        self.next
    }

    /// A batch starts now.
    pub fn start(&mut self) {
        self.next = Instant::now() + self.spacing;
    }
}

/// Why an item got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The item was not taken: [`Limits::waiting`] others wait already.
    #[error("too many requests wait already")]
    Full,
    /// The batch ended without an answer: the process is going down.
    #[error("the batch was given up")]
    GivenUp,
}

impl<Item, Answer> Clone for Batcher<Item, Answer> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone() }
    }
}

impl<Item, Answer> Batcher<Item, Answer>
where
    Item: Send + 'static,
    Answer: Send + 'static,
{
    /// Starts the tasks that run batches. They end when the last clone of the batcher is dropped.
    ///
    /// `run` answers its items in their order.
    pub fn start<Run, Running>(limits: Limits, run: Run) -> Self
    where
        Run: Fn(Vec<Item>) -> Running + Clone + Send + 'static,
        Running: Future<Output = Vec<Answer>> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(limits.waiting);
        let waiting = Arc::new(Mutex::new(Waiting { receiver, pace: Pace::new(limits.spacing) }));
        for _ in 0..limits.concurrent {
            tokio::spawn(run_batches(Arc::clone(&waiting), limits.batch, run.clone()));
        }
        Self { sender }
    }

    /// Hands the item to the next batch, or refuses it at once if too many wait.
    pub async fn try_submit(&self, item: Item) -> Result<Answer, BatchError> {
        let (answer, answered) = oneshot::channel();
        self.sender.try_send(Entry { item, answer, is_urgent: false }).map_err(|_| BatchError::Full)?;
        answered.await.map_err(|_| BatchError::GivenUp)
    }

    /// Hands the item to the next batch; waits for room if too many wait. With an urgent item the batch starts at
    /// once, whatever its [`Limits::spacing`].
    pub async fn submit(&self, item: Item, is_urgent: bool) -> Result<Answer, BatchError> {
        let (answer, answered) = oneshot::channel();
        let sent = self.sender.send(Entry { item, answer, is_urgent }).await;
        sent.map_err(|_| BatchError::GivenUp)?;
        answered.await.map_err(|_| BatchError::GivenUp)
    }
}

async fn run_batches<Item, Answer, Run, Running>(waiting: Arc<Mutex<Waiting<Item, Answer>>>, limit: usize, run: Run)
where
    Run: Fn(Vec<Item>) -> Running,
    Running: Future<Output = Vec<Answer>>,
{
    loop {
        // The lock is held while waiting: the next free task takes the next batch.
        let entries = waiting.lock().await.take(limit).await;
        if entries.is_empty() {
            return;
        }
        let (items, senders): (Vec<_>, Vec<_>) = entries.into_iter().map(|entry| (entry.item, entry.answer)).unzip();
        for (sender, answer) in senders.into_iter().zip(run(items).await) {
            // A sender that went away does not wait for its answer; what was done stays done.
            let _ = sender.send(answer);
        }
    }
}

impl<Item, Answer> Waiting<Item, Answer> {
    /// The next batch; empty when nothing more will come.
    async fn take(&mut self, limit: usize) -> Vec<Entry<Item, Answer>> {
        let mut entries = Vec::new();
        self.receiver.recv_many(&mut entries, limit).await;
        while !entries.is_empty() && entries.len() < limit && !entries.iter().any(|entry| entry.is_urgent) {
            let room = limit - entries.len();
            let more = timeout_at(self.pace.next(), self.receiver.recv_many(&mut entries, room)).await;
            if matches!(more, Ok(0) | Err(_)) {
                break;
            }
        }
        self.pace.start();
        entries
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::{Notify, Semaphore};

    use super::*;

    #[tokio::test]
    async fn what_arrives_during_a_batch_forms_the_next() {
        let started = Arc::new(Notify::new());
        let gate = Arc::new(Semaphore::new(0));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let batcher = Batcher::start(Limits { waiting: 10, batch: 4, concurrent: 1, spacing: Duration::ZERO }, {
            let (started, gate, seen) = (Arc::clone(&started), Arc::clone(&gate), Arc::clone(&seen));
            move |items: Vec<u32>| {
                let (started, gate, seen) = (Arc::clone(&started), Arc::clone(&gate), Arc::clone(&seen));
                async move {
                    started.notify_one();
                    gate.acquire().await.expect("the gate is never closed").forget();
                    seen.lock().await.push(items.clone());
                    items.into_iter().map(|item| item * 10).collect()
                }
            }
        });
        let first = tokio::spawn({
            let batcher = batcher.clone();
            async move { batcher.submit(0, false).await }
        });
        started.notified().await;
        // join! polls in order: all six wait before the gate opens.
        let (rest, ()) =
            tokio::join!(futures_util::future::join_all((1..7).map(|item| batcher.submit(item, false))), async {
                gate.add_permits(10);
            });
        assert_eq!(first.await.expect("no panic"), Ok(0));
        assert_eq!(rest, [10, 20, 30, 40, 50, 60].map(Ok));
        assert_eq!(*seen.lock().await, [vec![0], vec![1, 2, 3, 4], vec![5, 6]]);
    }

    #[tokio::test]
    async fn batches_start_apart_unless_one_is_full() {
        let limits = Limits { waiting: 10, batch: 3, concurrent: 2, spacing: Duration::from_hours(1) };
        let batcher = Batcher::start(limits, |items: Vec<u32>| async move { vec![items.len(); items.len()] });
        let submit = |count| {
            let batch = futures_util::future::join_all((0..count).map(|item| batcher.submit(item, false)));
            tokio::time::timeout(Duration::from_secs(2), batch)
        };
        assert_eq!(submit(1).await, Ok(vec![Ok(1)]), "the first starts at once");
        assert_eq!(submit(3).await, Ok(vec![Ok(3); 3]), "and so does a full one");
        assert!(submit(2).await.is_err(), "others wait for more");
        assert_eq!(submit(1).await, Ok(vec![Ok(3)]), "which may make it full");
        assert_eq!(batcher.submit(7, true).await, Ok(1), "an urgent one does not wait");
    }

    #[tokio::test]
    async fn refuses_what_has_no_room() {
        let batcher = Batcher::start(
            Limits { waiting: 1, batch: 1, concurrent: 1, spacing: Duration::ZERO },
            |items: Vec<()>| async move {
                tokio::time::sleep(Duration::from_mins(1)).await;
                items
            },
        );
        let submit = || tokio::time::timeout(Duration::from_millis(100), batcher.try_submit(()));
        assert!(submit().await.is_err(), "the first is under way");
        assert!(submit().await.is_err(), "the second waits");
        assert_eq!(submit().await, Ok(Err(BatchError::Full)));
    }
}
