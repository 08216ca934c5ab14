//! Resolves names for the HTTP client, and fails closed: a name with one address that may not be
//! delivered to is refused as a whole.
//!
//! A check of its own before the request would leave a gap, for the name may answer otherwise a moment
//! later. Here the addresses that are checked are the ones that are connected to. Literal addresses never
//! reach a resolver; [`TargetPolicy::check_url`] judges those.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use outbox::target::{TargetError, TargetPolicy};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Addresses of one name that are tried, one after the other. All are judged, however many there are: one
/// that is left out must not be the one that gives the name away. What is tried shares the time that
/// connecting may take, and a thousand would leave none of them enough.
const MAX_ADDRESSES: usize = 16;

/// What asks for a name's addresses.
pub(crate) trait Lookup: Send + Sync + 'static {
    fn lookup(&self, name: &str) -> impl Future<Output = io::Result<Vec<IpAddr>>> + Send;
}

/// The operating system's resolver.
#[derive(Debug)]
pub(crate) struct SystemLookup;

impl Lookup for SystemLookup {
    async fn lookup(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        Ok(tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect())
    }
}

#[derive(Debug)]
pub(crate) struct GuardedResolver<L = SystemLookup>(Arc<Guard<L>>);

#[derive(Debug)]
struct Guard<L> {
    policy: TargetPolicy,
    lookup: L,
}

impl<L: Lookup> GuardedResolver<L> {
    pub(crate) fn new(policy: TargetPolicy, lookup: L) -> Self {
        Self(Arc::new(Guard { policy, lookup }))
    }
}

/// Why a name leads nowhere.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NameError {
    /// No answer, or an empty one.
    #[error("the host name does not resolve")]
    NotResolved,
    /// One of its addresses may not be delivered to.
    #[error(transparent)]
    Refused(#[from] TargetError),
}

impl<L: Lookup> Guard<L> {
    /// The addresses that may be connected to, none of a name that has another one as well.
    async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, NameError> {
        let mut addresses = self.lookup.lookup(name).await.map_err(|_| NameError::NotResolved)?;
        if addresses.is_empty() {
            return Err(NameError::NotResolved);
        }
        addresses.iter().try_for_each(|&address| self.policy.check_address(address))?;
        addresses.truncate(MAX_ADDRESSES);
        Ok(addresses)
    }
}

impl<L: Lookup> Resolve for GuardedResolver<L> {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = Arc::clone(&self.0);
        Box::pin(async move {
            let addresses = guard.addresses(name.as_str()).await?;
            // Port 0 stands for the URL's.
            Ok(Box::new(addresses.into_iter().map(|address| SocketAddr::new(address, 0))) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers every name with the same addresses.
    struct Fixed(Vec<&'static str>);

    impl Lookup for Fixed {
        async fn lookup(&self, _: &str) -> io::Result<Vec<IpAddr>> {
            Ok(self.0.iter().map(|address| address.parse().expect("an address")).collect())
        }
    }

    /// As a resolver does for a name that nobody has, and for a server that fails.
    struct Failing;

    impl Lookup for Failing {
        async fn lookup(&self, _: &str) -> io::Result<Vec<IpAddr>> {
            Err(io::Error::other("failed to lookup address information: SERVFAIL"))
        }
    }

    async fn resolve(lookup: impl Lookup) -> Result<Vec<SocketAddr>, String> {
        let resolver = GuardedResolver::new(TargetPolicy::default(), lookup);
        let found = resolver.resolve("receiver.example".parse().expect("a name")).await;
        found.map(Iterator::collect).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn public_addresses_are_passed_on_in_their_order() {
        let resolved = resolve(Fixed(vec!["93.184.216.34", "2606:2800:220:1::1"])).await;
        let expected = ["93.184.216.34:0", "[2606:2800:220:1::1]:0"].map(|it| it.parse().expect("an address"));
        assert_eq!(resolved, Ok(expected.to_vec()));
    }

    #[tokio::test]
    async fn one_address_that_is_not_public_refuses_the_name_wherever_it_stands() {
        for addresses in [
            vec!["10.0.0.1"],
            vec!["93.184.216.34", "127.0.0.1"],
            vec!["169.254.169.254", "93.184.216.34"],
            vec!["2606:2800:220:1::1", "::ffff:10.0.0.1"],
            vec!["93.184.216.34", "64:ff9b::7f00:1", "93.184.216.35"],
        ] {
            let error = resolve(Fixed(addresses.clone())).await.expect_err("one is private");
            assert!(error.contains("ALLOW_NETWORKS"), "{addresses:?}: {error}");
        }
    }

    #[tokio::test]
    async fn a_thousand_addresses_are_all_judged_and_few_are_tried() {
        let mut addresses = vec!["93.184.216.34"; 1_000];
        assert_eq!(resolve(Fixed(addresses.clone())).await.map(|it| it.len()), Ok(MAX_ADDRESSES));
        addresses[999] = "10.0.0.1";
        assert!(resolve(Fixed(addresses)).await.is_err(), "the last one is private");
    }

    #[tokio::test]
    async fn no_answer_and_an_empty_one_say_the_same_and_nothing_of_the_resolvers_words() {
        for error in [resolve(Failing).await, resolve(Fixed(vec![])).await] {
            assert_eq!(error, Err("the host name does not resolve".to_owned()));
        }
    }

    #[tokio::test]
    async fn the_systems_resolver_is_guarded_too() {
        let resolver = GuardedResolver::new(TargetPolicy::default(), SystemLookup);
        let error = resolver.resolve("localhost".parse().expect("a name")).await.err().expect("it is private");
        assert!(error.to_string().contains("ALLOW_NETWORKS"), "{error}");
    }
}
