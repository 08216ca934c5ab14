//! Resolves names for the HTTP client: only addresses that may be delivered to are passed on, and a name that has none
//! of those is refused, for now.
//!
//! A check of its own before the request would leave a gap, for the name may answer otherwise a moment
//! later. Here the addresses that are checked are the ones that are connected to. Literal addresses never
//! reach a resolver; [`TargetPolicy::check_url`] judges those.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use outbox::target::{TargetError, TargetPolicy};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Addresses of one name that are tried, one after the other. What is tried shares the time that connecting may take,
/// and a thousand would leave none of them enough.
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
    /// None of its addresses may be delivered to.
    #[error(transparent)]
    Refused(TargetError),
}

impl<L: Lookup> Guard<L> {
    /// The addresses that may be connected to.
    async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, NameError> {
        let (mut allowed, mut refused) = (Vec::new(), None);
        for address in self.lookup.lookup(name).await.map_err(|_| NameError::NotResolved)? {
            match self.policy.check_address(address) {
                Ok(()) => allowed.push(address),
                Err(error) => refused = Some(error),
            }
        }
        if allowed.is_empty() {
            return Err(refused.map_or(NameError::NotResolved, NameError::Refused));
        }
        allowed.truncate(MAX_ADDRESSES);
        Ok(allowed)
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
    async fn addresses_that_are_not_public_are_left_out_wherever_they_stand() {
        for (addresses, public) in [
            (vec!["93.184.216.34", "127.0.0.1"], vec!["93.184.216.34:0"]),
            (vec!["169.254.169.254", "93.184.216.34"], vec!["93.184.216.34:0"]),
            (vec!["2606:2800:220:1::1", "::ffff:10.0.0.1", "fe80::1"], vec!["[2606:2800:220:1::1]:0"]),
            (vec!["93.184.216.34", "64:ff9b::7f00:1", "93.184.216.35"], vec!["93.184.216.34:0", "93.184.216.35:0"]),
        ] {
            let expected: Vec<SocketAddr> = public.iter().map(|it| it.parse().expect("an address")).collect();
            assert_eq!(resolve(Fixed(addresses.clone())).await, Ok(expected), "{addresses:?}");
        }
    }

    #[tokio::test]
    async fn a_name_without_a_public_address_is_refused() {
        for addresses in [vec!["10.0.0.1"], vec!["0.0.0.0"], vec!["::1", "fe80::1", "192.168.0.1"]] {
            let error = resolve(Fixed(addresses.clone())).await.expect_err("all are private");
            assert!(error.contains("ALLOW_NETWORKS"), "{addresses:?}: {error}");
        }
    }

    #[tokio::test]
    async fn of_a_thousand_addresses_few_are_tried() {
        assert_eq!(resolve(Fixed(vec!["93.184.216.34"; 1_000])).await.map(|it| it.len()), Ok(MAX_ADDRESSES));
        let mut addresses = vec!["10.0.0.1"; 1_000];
        addresses[999] = "93.184.216.34";
        assert_eq!(resolve(Fixed(addresses)).await.map(|it| it.len()), Ok(1), "the last one is public");
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
