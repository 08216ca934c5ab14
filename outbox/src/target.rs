//! Which URLs may be delivered to. Pure: names are resolved elsewhere, and what they resolve to is
//! judged here.
//!
//! Callers choose the URLs, so the private network behind the workers must be out of their reach. Judged
//! when a job is accepted and again before every attempt.

mod networks;
mod public;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr};

use clap::{ArgAction, Args};
use ipnet::IpNet;
use url::{Host, Url};

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
    /// One word for metrics: what to look at when the number of these rises.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::TooLong
            | Self::ControlCharacter
            | Self::NotHttp
            | Self::UserInfo
            | Self::Fragment
            | Self::PortZero => "malformed",
            Self::NotHttps => "https_only",
            Self::PortNotAllowed => "port",
            Self::PrivateNetwork => "private_network",
            Self::DeniedNetwork => "denied_network",
        }
    }
}

/// The destination of a URL: what shares limits and a circuit breaker, as `scheme://host:port` without a
/// default port.
#[must_use]
pub fn destination(url: &Url) -> String {
    url.origin().ascii_serialization()
}

impl TargetPolicy {
    /// A policy that allows these networks besides the public ones.
    #[must_use]
    pub fn allowing(allow_networks: Vec<IpNet>) -> Self {
        Self { allow_networks: Networks::new(allow_networks), ..Self::default() }
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

/// What stands between the slashes and the path.
fn authority(text: &str) -> &str {
    let rest = text.split_once("//").map_or("", |(_, rest)| rest);
    rest.split(['/', '\\', '?', '#']).next().unwrap_or_default()
}
