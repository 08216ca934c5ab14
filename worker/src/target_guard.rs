//! Resolves names for the HTTP client, and fails closed: a name with one address that may not be
//! delivered to is refused as a whole.
//!
//! A check of its own before the request would leave a gap, for the name may answer otherwise a moment
//! later. Here the addresses that are checked are the ones that are connected to. Literal addresses never
//! reach a resolver; [`TargetPolicy::check_url`] judges those.

use std::net::SocketAddr;

use outbox::target::TargetPolicy;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Addresses of one name that are looked at; more are a mistake or an attack.
const MAX_ADDRESSES: usize = 64;

#[derive(Clone, Debug)]
pub(crate) struct GuardedResolver {
    policy: TargetPolicy,
}

impl GuardedResolver {
    pub(crate) const fn new(policy: TargetPolicy) -> Self {
        Self { policy }
    }
}

/// The name does not resolve.
#[derive(Debug, thiserror::Error)]
#[error("the host name does not resolve")]
pub(crate) struct NotResolved;

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = self.policy.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await.map_err(|_| NotResolved)?;
            let addresses: Vec<SocketAddr> = found.take(MAX_ADDRESSES).collect();
            if addresses.is_empty() {
                return Err(NotResolved.into());
            }
            for address in &addresses {
                policy.check_address(address.ip())?;
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn resolve(allowed: &str, name: &str) -> Result<usize, String> {
        let policy = TargetPolicy::allowing(allowed.parse().into_iter().collect());
        let name = name.parse().expect("a name");
        GuardedResolver::new(policy).resolve(name).await.map(Iterator::count).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_name_of_a_private_address_is_refused() {
        let error = resolve("", "localhost").await.expect_err("it is private");
        assert!(error.contains("ALLOW_NETWORKS"), "{error}");
    }

    #[tokio::test]
    async fn a_name_with_one_allowed_and_one_other_address_is_refused() {
        // The resolver takes a literal as a name of one address.
        assert!(resolve("10.0.0.0/8", "127.0.0.1").await.is_err());
        assert_eq!(resolve("127.0.0.0/8", "127.0.0.1").await, Ok(1));
    }
}
