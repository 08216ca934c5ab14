//! Waiting for a condition that nobody announces, such as the state of a row.

use std::time::Duration;

use tokio::time::Instant;

/// Between two looks. Short enough not to matter, long enough to leave the processor to what is waited for.
const PERIOD: Duration = Duration::from_millis(20);

/// Long enough for anything that is going to happen at all, on a slow and busy machine.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Waits until the condition holds.
///
/// `what` completes the sentence "waited in vain for …".
pub async fn wait_until(what: &str, timeout: Duration, mut condition: impl AsyncFnMut() -> bool) {
    wait_for(what, timeout, async || condition().await.then_some(())).await;
}

/// Waits until there is a value, and returns it.
pub async fn wait_for<T>(what: &str, timeout: Duration, mut value: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(value) = value().await {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what} ({timeout:?})");
        tokio::time::sleep(PERIOD).await;
    }
}
