//! Receivers whose shared connection is out of use for now.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use url::Url;

use super::IDLE_TIMEOUT;

/// How long a receiver's requests have connections of their own. The shared one is idle meanwhile, and is closed for that.
const DETOUR: Duration = IDLE_TIMEOUT.saturating_add(Duration::from_secs(1));

/// Over HTTP/2 all requests for a receiver share a connection, and what is wrong with it is wrong for all of them. So the
/// next ones do not take it for a while.
#[derive(Debug, Default)]
pub(super) struct Detours(Mutex<HashMap<String, Instant>>);

impl Detours {
    /// Takes the receiver's shared connection out of use.
    pub(super) fn begin(&self, url: &Url, now: Instant) {
        let mut ends = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Never more than there are attempts within one detour.
        ends.retain(|_, end| *end > now);
        ends.insert(url.origin().ascii_serialization(), now + DETOUR);
    }

    /// Whether the receiver's shared connection is out of use.
    pub(super) fn is_on(&self, url: &Url, now: Instant) -> bool {
        let ends = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Hardly ever is there one, and this is asked for each request.
        !ends.is_empty() && ends.get(&url.origin().ascii_serialization()).is_some_and(|end| *end > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detour_is_of_one_receiver_and_ends() {
        let url = |text: &str| Url::parse(text).expect(text);
        let (detours, now) = (Detours::default(), Instant::now());
        detours.begin(&url("https://example.com/a"), now);
        assert!(detours.is_on(&url("https://example.com/b?c"), now));
        assert!(!detours.is_on(&url("https://example.com:8443/a"), now));
        let later = now + DETOUR;
        assert!(!detours.is_on(&url("https://example.com/a"), later));
        detours.begin(&url("https://example.org"), later);
        assert_eq!(detours.0.lock().expect("nobody has it").len(), 1, "what is over is forgotten");
    }
}
