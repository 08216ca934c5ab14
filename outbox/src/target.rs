//! Which URLs may be delivered to. Pure: names are resolved elsewhere, and what they resolve to is
//! judged here.
//!
//! Callers choose the URLs, so the private network behind the workers must be out of their reach. Judged
//! when a job is accepted and again before every attempt.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use clap::Args;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use url::{Host, Url};

/// Longest URL, in bytes.
pub const MAX_URL_BYTES: usize = 2_048;

/// Which private networks may be delivered to.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Targets")]
pub struct TargetPolicy {
    /// Networks that may be delivered to although they are not public, as CIDRs separated by commas.
    #[arg(long, env, default_value = "", hide_default_value = true, value_parser = networks)]
    allow_networks: Networks,
}

/// Networks as they are configured.
#[derive(Clone, Debug, Default)]
pub struct Networks(Vec<IpNet>);

fn networks(text: &str) -> Result<Networks, String> {
    let networks = text.split(',').map(str::trim).filter(|network| !network.is_empty());
    let networks: Result<_, _> = networks.map(str::parse).collect();
    networks.map(Networks).map_err(|_| "each must be a network like 10.0.0.0/8 or fd00::/8".to_owned())
}

/// Why a URL may not be delivered to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Longer than [`MAX_URL_BYTES`].
    #[error("the URL is longer than {MAX_URL_BYTES} bytes")]
    TooLong,
    /// The `url` crate drops some control characters silently, so the raw text is checked.
    #[error("the URL contains white space or control characters")]
    ControlCharacter,
    /// Not an absolute URL.
    #[error("the URL is not an absolute http or https URL")]
    NotHttp,
    /// User name or password in the URL.
    #[error("the URL contains user info")]
    UserInfo,
    /// Fragments are not sent: it is a mistake.
    #[error("the URL contains a fragment")]
    Fragment,
    /// Port 0.
    #[error("the URL's port is 0")]
    PortZero,
    /// The address is not public and not in `ALLOW_NETWORKS`.
    #[error("the target is in a network that is not public and not allowed by ALLOW_NETWORKS")]
    PrivateNetwork,
}

impl TargetPolicy {
    /// A policy that allows these networks besides the public ones.
    #[must_use]
    pub const fn allowing(allow_networks: Vec<IpNet>) -> Self {
        Self { allow_networks: Networks(allow_networks) }
    }

    /// Parses a URL and judges all that can be judged without resolving its name.
    ///
    /// # Errors
    /// It may not be delivered to.
    pub fn check_url(&self, text: &str) -> Result<Url, TargetError> {
        if text.len() > MAX_URL_BYTES {
            return Err(TargetError::TooLong);
        }
        if text.contains(|character: char| character.is_control() || character.is_whitespace()) {
            return Err(TargetError::ControlCharacter);
        }
        let url = Url::parse(text).map_err(|_| TargetError::NotHttp)?;
        // `http:/\host` and `http:host` parse as well: only what reads as it is meant is taken.
        let written = text.get(..8).unwrap_or(text).to_ascii_lowercase();
        if !(written.starts_with("http://") || written.starts_with("https://")) {
            return Err(TargetError::NotHttp);
        }
        if !url.username().is_empty() || url.password().is_some() || authority(text).contains('@') {
            return Err(TargetError::UserInfo);
        }
        if url.fragment().is_some() {
            return Err(TargetError::Fragment);
        }
        if url.port() == Some(0) {
            return Err(TargetError::PortZero);
        }
        self.check_host(&url)?;
        Ok(url)
    }

    /// The parser has made an address of every spelling of one: decimal, hexadecimal, full-width, short.
    fn check_host(&self, url: &Url) -> Result<(), TargetError> {
        match url.host() {
            None => Err(TargetError::NotHttp),
            Some(Host::Ipv4(address)) => self.check_address(address.into()),
            Some(Host::Ipv6(address)) => self.check_address(address.into()),
            Some(Host::Domain(name)) => {
                let name = name.trim_end_matches('.');
                // RFC 6761, section 6.3: these names mean loopback whatever a resolver says.
                if name == "localhost" || name.ends_with(".localhost") {
                    self.check_address(Ipv4Addr::LOCALHOST.into())
                } else if name.is_empty() {
                    Err(TargetError::NotHttp)
                } else {
                    Ok(())
                }
            }
        }
    }

    /// Judges one address: of a literal, of a name's answer, or of the peer that was reached.
    ///
    /// # Errors
    /// It may not be delivered to.
    pub fn check_address(&self, address: IpAddr) -> Result<(), TargetError> {
        // An IPv4 address in IPv6 clothes is judged as what it reaches.
        let address = address.to_canonical();
        if is_public(address) || self.allow_networks.0.iter().any(|network| network.contains(&address)) {
            Ok(())
        } else {
            Err(TargetError::PrivateNetwork)
        }
    }
}

/// The destination of a URL: its origin, `scheme://host[:port]`, without a port that is the scheme's own.
#[must_use]
pub fn destination(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// What stands between the slashes and the path.
fn authority(text: &str) -> &str {
    let rest = text.split_once("//").map_or("", |(_, rest)| rest);
    rest.split(['/', '\\', '?', '#']).next().unwrap_or_default()
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !NOT_PUBLIC_V4.iter().any(|network| network.contains(&address)),
        IpAddr::V6(address) => {
            GLOBAL_UNICAST_V6.contains(&address) && !NOT_PUBLIC_V6.iter().any(|network| network.contains(&address))
        }
    }
}

const fn v4(a: u8, b: u8, c: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), prefix)
}

const fn v6(a: u16, b: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), prefix)
}

/// IANA IPv4 Special-Purpose Address Registry, with multicast and the reserved block.
static NOT_PUBLIC_V4: LazyLock<[Ipv4Net; 15]> = LazyLock::new(|| {
    [
        v4(0, 0, 0, 8),
        v4(10, 0, 0, 8),
        v4(100, 64, 0, 10),
        v4(127, 0, 0, 8),
        v4(169, 254, 0, 16),
        v4(172, 16, 0, 12),
        v4(192, 0, 0, 24),
        v4(192, 0, 2, 24),
        v4(192, 88, 99, 24),
        v4(192, 168, 0, 16),
        v4(198, 18, 0, 15),
        v4(198, 51, 100, 24),
        v4(203, 0, 113, 24),
        v4(224, 0, 0, 4),
        v4(240, 0, 0, 4),
    ]
});

/// The only IPv6 block that IANA has given out as global unicast.
const GLOBAL_UNICAST_V6: Ipv6Net = v6(0x2000, 0, 3);

/// What is not public within it: protocol assignments (Teredo among them), documentation, 6to4.
const NOT_PUBLIC_V6: [Ipv6Net; 4] = [v6(0x2001, 0, 23), v6(0x2001, 0x0db8, 32), v6(0x2002, 0, 16), v6(0x3fff, 0, 20)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_as_a_list_that_may_be_empty() {
        for (text, count) in [("", 0), ("10.0.0.0/8", 1), ("10.0.0.0/8, fd00::/8,", 2)] {
            assert_eq!(networks(text).expect(text).0.len(), count);
        }
        assert!(networks("10.0.0.0/8,everything").is_err());
    }

    #[test]
    fn public_targets_are_taken() {
        for url in [
            "http://example.com",
            "https://example.com:8443/hook?x=1",
            "HTTPS://EXAMPLE.com/",
            "https://93.184.216.34/",
            "https://[2606:2800:220:1::1]/",
            "https://bücher.example/",
        ] {
            assert!(TargetPolicy::default().check_url(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn malformed_targets_are_refused() {
        let long = format!("http://example.com/{}", "a".repeat(MAX_URL_BYTES));
        for (url, error) in [
            ("", TargetError::NotHttp),
            ("/hook", TargetError::NotHttp),
            ("example.com/hook", TargetError::NotHttp),
            ("http://", TargetError::NotHttp),
            ("ftp://example.com", TargetError::NotHttp),
            ("file:///etc/passwd", TargetError::NotHttp),
            ("http:/\\127.0.0.1", TargetError::NotHttp),
            ("http:example.com", TargetError::NotHttp),
            ("http://example.com:65536", TargetError::NotHttp),
            ("http://example.com:0", TargetError::PortZero),
            ("http://user@example.com", TargetError::UserInfo),
            ("http://user:secret@example.com", TargetError::UserInfo),
            ("http://@example.com", TargetError::UserInfo),
            ("http://x@127.0.0.1", TargetError::UserInfo),
            ("http://example.com/#top", TargetError::Fragment),
            ("http://example.com/a\nb", TargetError::ControlCharacter),
            ("http://exam\tple.com/", TargetError::ControlCharacter),
            (" http://example.com/", TargetError::ControlCharacter),
            (long.as_str(), TargetError::TooLong),
        ] {
            assert_eq!(TargetPolicy::default().check_url(url), Err(error), "{url}");
        }
    }

    #[test]
    fn every_spelling_of_a_private_address_is_refused() {
        for host in [
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "0177.0.0.1",
            "127.1",
            "0",
            "127.0.0.1",
            "127.0.0.1.",
            "１２７.０.０.１",
            "①②⑦.⓪.⓪.①",
            "127。0。0。1",
            "%31%32%37.0.0.1",
            "[::1]",
            "[::]",
            "[::ffff:7f00:1]",
            "[64:ff9b::7f00:1]",
            "[2002:7f00:1::]",
            "[2001::1]",
            "[fe80::1]",
            "[fd00::1]",
            "localhost",
            "LOCALHOST.",
            "a.localhost",
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.168.1.1",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            let checked = TargetPolicy::default().check_url(&format!("http://{host}/"));
            assert_eq!(checked, Err(TargetError::PrivateNetwork), "{host}");
        }
    }

    #[test]
    fn an_allowed_network_is_reached_in_every_spelling_and_no_other() {
        let policy = TargetPolicy::allowing(vec!["127.0.0.0/8".parse().expect("a network")]);
        for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
            assert!(policy.check_url(&format!("http://{host}/")).is_ok(), "{host}");
        }
        assert_eq!(policy.check_url("http://10.0.0.1/"), Err(TargetError::PrivateNetwork));
    }
}
