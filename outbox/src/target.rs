//! Which URLs may be delivered to. Pure: names are resolved elsewhere, and what they resolve to is
//! judged here.
//!
//! Callers choose the URLs, so the private network behind the workers must be out of their reach. Judged
//! when a job is accepted and again before every attempt.

pub mod headers;
mod networks;
mod public;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr};

use clap::{ArgAction, Args};
use ipnet::IpNet;
use url::{Host, Position, Url, form_urlencoded};

use self::networks::{Networks, Ports};

/// Longest URL, in bytes.
pub const MAX_URL_BYTES: usize = 2_048;

/// Which networks, schemes and ports may be delivered to.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Targets")]
pub struct TargetPolicy {
    /// Networks that may be delivered to although they are not public, as CIDRs separated by commas.
    #[arg(long, env, default_value = "", hide_default_value = true, value_parser = Networks::parse)]
    allow_networks: Networks,
    /// Networks that are never delivered to, public or allowed as they may be, as CIDRs separated by commas.
    #[arg(long, env, default_value = "", hide_default_value = true, value_parser = Networks::parse)]
    deny_networks: Networks,
    /// Whether only https URLs are delivered to: true or false.
    #[arg(long, env, default_value_t = false, action = ArgAction::Set)]
    https_only: bool,
    /// Ports that may be delivered to, separated by commas; any when empty.
    #[arg(long, env, default_value = "", hide_default_value = true, value_parser = Ports::parse)]
    allow_ports: Ports,
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
    /// A host that no name server and no HTTP client knows what to do with.
    #[error("the URL's host is neither an address nor a name of letters, digits, - and _")]
    NotAHost,
    /// Would be resolved, so that another path would be posted to.
    #[error("the URL's path has a segment . or .. (or %2e), which is not sent: write the path that it leads to")]
    DotSegment,
    /// Would be sent percent-encoded, or as a slash.
    #[error("the URL must have {encoded} in place of {0} in its path or query", encoded = percent_encoded(*.0))]
    NotEncoded(char),
    /// Plain http, and `HTTPS_ONLY` is set.
    #[error("the URL is not https, and HTTPS_ONLY allows no other")]
    NotHttps,
    /// The port, written or implied, is not in `ALLOW_PORTS`.
    #[error("the URL's port is not one of ALLOW_PORTS")]
    PortNotAllowed,
    /// The address is not public and not in `ALLOW_NETWORKS`.
    #[error("the target is in a network that is not public and not allowed by ALLOW_NETWORKS")]
    PrivateNetwork,
    /// The address is in `DENY_NETWORKS`.
    #[error("the target is in a network that DENY_NETWORKS forbids")]
    DeniedNetwork,
}

impl TargetError {
    /// All that [`Self::reason`] may be.
    pub const REASONS: [&str; 5] = ["malformed", "https_only", "port", "private_network", "denied_network"];

    /// One word for metrics: what to look at when the number of these rises.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::TooLong
            | Self::ControlCharacter
            | Self::NotHttp
            | Self::UserInfo
            | Self::Fragment
            | Self::PortZero
            | Self::NotAHost
            | Self::DotSegment
            | Self::NotEncoded(_) => "malformed",
            Self::NotHttps => "https_only",
            Self::PortNotAllowed => "port",
            Self::PrivateNetwork => "private_network",
            Self::DeniedNetwork => "denied_network",
        }
    }
}

impl TargetPolicy {
    /// A policy that allows these networks besides the public ones.
    #[must_use]
    pub fn allowing(allow_networks: Vec<IpNet>) -> Self {
        Self { allow_networks: Networks::new(allow_networks), ..Self::default() }
    }

    /// Judges a URL that a job is to be accepted for. What is returned is what to store: the very URL that will be posted
    /// to. It differs from the text in what no receiver can see: the spelling of scheme and host, a default port that is
    /// written, and the slash that HTTP puts in the place of an empty path.
    ///
    /// `outhook.canonical_url` is the same for SQL.
    ///
    /// # Errors
    /// It may not be delivered to, or its path or query would not be sent as they are written.
    pub fn accept_url(&self, text: &str) -> Result<Url, TargetError> {
        let url = self.check_url(text)?;
        if url.domain().is_some_and(|name| !is_name(name)) {
            return Err(TargetError::NotAHost);
        }
        check_as_written(text, &url)?;
        if url.as_str().len() > MAX_URL_BYTES {
            return Err(TargetError::TooLong);
        }
        Ok(url)
    }

    /// Parses a URL and judges all that can be judged without resolving its name, but not how it is written: at an attempt,
    /// when [`Self::accept_url`] or its equal in SQL has seen to that, and this process may have another policy.
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
        if !url.username().is_empty() || url.password().is_some() || split_authority(text).0.contains('@') {
            return Err(TargetError::UserInfo);
        }
        if url.fragment().is_some() {
            return Err(TargetError::Fragment);
        }
        if url.port() == Some(0) {
            return Err(TargetError::PortZero);
        }
        if self.https_only && url.scheme() != "https" {
            return Err(TargetError::NotHttps);
        }
        if !url.port_or_known_default().is_some_and(|port| self.allow_ports.allow(port)) {
            return Err(TargetError::PortNotAllowed);
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
        if self.deny_networks.contain(address) {
            Err(TargetError::DeniedNetwork)
        } else if public::is_public(address) || self.allow_networks.contain(address) {
            Ok(())
        } else {
            Err(TargetError::PrivateNetwork)
        }
    }
}

/// Whether path and query are sent as they are written: the parser resolves segments, and encodes or turns characters.
fn check_as_written(text: &str, url: &Url) -> Result<(), TargetError> {
    let (authority, written) = split_authority(text);
    if authority.is_empty() {
        // More than two slashes, which the parser takes for two.
        return Err(TargetError::NotHttp);
    }
    let sent = &url[Position::BeforePath..];
    let is_without_path = written.is_empty() || written.starts_with('?');
    let sent = if is_without_path { &sent[1..] } else { sent };
    if written == sent {
        return Ok(());
    }
    let path = written.split('?').next().unwrap_or_default();
    if path.split(['/', '\\']).any(is_dot_segment) {
        return Err(TargetError::DotSegment);
    }
    let changed = written.chars().zip(sent.chars()).find(|(written, sent)| written != sent);
    Err(changed.map_or(TargetError::NotHttp, |(written, _)| TargetError::NotEncoded(written)))
}

fn is_dot_segment(segment: &str) -> bool {
    matches!(segment.to_ascii_lowercase().replace("%2e", ".").as_str(), "." | "..")
}

/// As the parser leaves it: in lower case, and ASCII.
fn is_name(name: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    name.strip_suffix('.').unwrap_or(name).split('.').all(is_label)
}

fn percent_encoded(character: char) -> String {
    form_urlencoded::byte_serialize(character.encode_utf8(&mut [0; 4]).as_bytes()).collect()
}

/// What stands between the slashes and the path, and what follows.
fn split_authority(text: &str) -> (&str, &str) {
    let rest = text.split_once("//").map_or("", |(_, rest)| rest);
    rest.split_at(rest.find(['/', '\\', '?', '#']).unwrap_or(rest.len()))
}
