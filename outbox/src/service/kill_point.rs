//! Moments at which a test ends the process as a crash would, or lets it stand still.
//!
//! `KILL_AT=<point>:<n>` ends it by SIGKILL when it passes the point for the n-th time; `STOP_AT=<point>:<n>` stops it
//! there by SIGSTOP, until somebody lets it go on. Compiled only with the feature `kill-points`, which no release build
//! has; without it the two macros leave nothing behind.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

struct Plan {
    signal: Signal,
    point: String,
    passages_left: AtomicU64,
}

static PLAN: LazyLock<Option<Plan>> = LazyLock::new(|| {
    let plan = |variable, signal| Some((std::env::var(variable).ok()?, signal));
    let (text, signal) = plan("KILL_AT", Signal::KILL).or_else(|| plan("STOP_AT", Signal::STOP))?;
    let (point, passage) = text.rsplit_once(':').expect("KILL_AT and STOP_AT are <point>:<n>");
    let passages_left = AtomicU64::new(passage.parse().expect("KILL_AT and STOP_AT are <point>:<n>"));
    Some(Plan { signal, point: point.to_owned(), passages_left })
});

/// Ends or stops the process if the plan says so.
pub fn pass(point: &str) {
    let Some(plan) = PLAN.as_ref().filter(|plan| plan.point == point) else { return };
    if plan.passages_left.fetch_sub(1, Ordering::Relaxed) == 1 {
        let _ = kill_process(getpid(), plan.signal);
        // Until the signal has reached this thread.
        std::thread::park_timeout(Duration::from_secs(1));
    }
}

/// Passes the point while the future is under way: what it sends has left, and no answer has come.
pub async fn pass_in<T>(point: &str, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    if let Poll::Ready(output) = poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await {
        return output;
    }
    // A client that writes from a task of its own does it now.
    tokio::task::yield_now().await;
    pass(point);
    future.await
}
