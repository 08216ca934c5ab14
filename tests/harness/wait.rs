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
pub async fn wait_for<T>(what: &str, timeout: Duration, value: impl AsyncFnMut() -> Option<T>) -> T {
    let value = look_for(timeout, value).await;
    value.unwrap_or_else(|| panic!("waited in vain for {what} ({timeout:?})"))
}

/// The value, or `None` if there is none in time.
pub async fn look_for<T>(timeout: Duration, mut value: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + timeout;
    loop {
        let found = value().await;
        if found.is_some() || Instant::now() >= deadline {
            return found;
        }
        tokio::time::sleep(PERIOD).await;
    }
}
