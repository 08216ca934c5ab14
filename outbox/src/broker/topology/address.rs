//! Where RabbitMQ is: one URL, which may name several hosts.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lapin::uri::{AMQPScheme, AMQPUri, SASLMechanism};
use url::{Host, Url};

/// Seconds between heartbeats, unless the URL says otherwise; two missed ones end a half-open connection.
const HEARTBEAT_SEC: u16 = 5;

/// The longest that a URL may say: what is half-open for longer is in everybody's way.
const LONGEST_HEARTBEAT_SEC: u16 = 60;

const NOT_A_URL: &str = "it is not an amqp or amqps URL like amqp://user:password@host:5672/vhost";

/// What `RABBITMQ_URL` says. Hosts are tried in turn; user, virtual host and parameters are the same for all.
#[derive(Clone)]
pub(super) struct Address {
    hosts: Vec<AMQPUri>,
    /// Connections that were tried, by which the next one knows where to go on.
    tries: Arc<AtomicUsize>,
}

impl fmt::Debug for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.hosts.iter().map(host_and_port)).finish()
    }
}

impl Address {
    /// Reads `amqp://user:password@host:port,host:port/vhost?heartbeat=5`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or(NOT_A_URL)?;
        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (user, hosts) = authority.rfind('@').map_or(("", authority), |at| authority.split_at(at + 1));
        let hosts = hosts.split(',').map(|host| parse_host(&format!("{scheme}://{user}{host}{tail}")));
        Ok(Self { hosts: hosts.collect::<Result<_, _>>()?, tries: Arc::default() })
    }

    /// How many hosts it names.
    pub(super) fn len(&self) -> usize {
        self.hosts.len()
    }

    /// The host to try next. One after the other, also when the last one answered: its node may have lost the others.
    pub(super) fn next(&self) -> &AMQPUri {
        &self.hosts[self.tries.fetch_add(1, Ordering::Relaxed) % self.hosts.len()]
    }

    /// Begins with any host but the first, if there are several.
    pub(super) fn begin_elsewhere(&self) {
        if self.len() > 1 {
            self.tries.store(rand::random_range(1..self.len()), Ordering::Relaxed);
        }
    }

    /// The virtual host.
    pub(super) fn virtual_host(&self) -> &str {
        &self.hosts[0].vhost
    }

    /// Whether TLS is spoken.
    pub(super) fn is_tls(&self) -> bool {
        self.hosts.iter().all(|uri| uri.scheme == AMQPScheme::AMQPS)
    }
}

/// A URL of one host. The client's own parser takes an IPv6 host for none, and none for localhost.
fn parse_host(text: &str) -> Result<AMQPUri, String> {
    let url = Url::parse(text).map_err(|_| NOT_A_URL)?;
    let host = match url.host() {
        Some(Host::Ipv6(address)) => address.to_string(),
        Some(host) => host.to_string(),
        None => return Err(format!("it names no host: {NOT_A_URL}")),
    };
    let heartbeat = parse_parameters(&url)?;
    let mut uri: AMQPUri = text.parse().map_err(|_| NOT_A_URL)?;
    uri.authority.host = host;
    uri.query.heartbeat = Some(heartbeat);
    Ok(uri)
}

/// Refuses parameters that would be ignored. Returns the seconds between heartbeats.
fn parse_parameters(url: &Url) -> Result<u16, String> {
    let mut heartbeat = HEARTBEAT_SEC;
    for (name, value) in url.query_pairs() {
        match &*name {
            "heartbeat" => {
                let seconds = value.parse().ok().filter(|it| (1..=LONGEST_HEARTBEAT_SEC).contains(it));
                heartbeat =
                    seconds.ok_or(format!("its parameter heartbeat must be 1 to {LONGEST_HEARTBEAT_SEC} seconds"))?;
            }
            "auth_mechanism" => {
                value.parse::<SASLMechanism>().map_err(|_| "its parameter auth_mechanism must be plain or external")?;
            }
            "cacertfile" => return Err(instead(&name, "set RABBITMQ_CA_FILE")),
            "certfile" => return Err(instead(&name, "set RABBITMQ_CLIENT_CERT_FILE")),
            "keyfile" => return Err(instead(&name, "set RABBITMQ_CLIENT_KEY_FILE")),
            "verify" => return Err(instead(&name, "amqps always verifies the certificate")),
            // Behind a question mark in a password, it would be a part of that.
            _ if name.contains('@') => {
                return Err("it has a question mark before its host: in a password that is \
                                                   written %3F"
                    .to_owned());
            }
            _ => return Err(instead(&name, "heartbeat and auth_mechanism are")),
        }
    }
    Ok(heartbeat)
}

fn instead(parameter: &str, what_to_do: &str) -> String {
    format!("its parameter {parameter} is not known: {what_to_do}")
}

/// What may be shown of a URL.
pub(super) fn host_and_port(uri: &AMQPUri) -> String {
    let (host, port) = (&uri.authority.host, uri.authority.port);
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(text: &str) -> Vec<String> {
        Address::parse(text).expect("it is right").hosts.iter().map(host_and_port).collect()
    }

    #[test]
    fn a_url_names_one_host_or_several() {
        assert_eq!(hosts("amqp://rabbit"), ["rabbit:5672"]);
        assert_eq!(hosts("amqps://u:p@rabbit/%2f"), ["rabbit:5671"]);
        assert_eq!(hosts("amqp://u:p@[fd00::5]:5673"), ["[fd00::5]:5673"]);
        assert_eq!(hosts("amqp://u:p,@a,10.0.0.1:1,[::1]/v?heartbeat=9"), ["a:5672", "10.0.0.1:1", "[::1]:5672"]);
    }

    #[test]
    fn all_hosts_share_the_rest() {
        let address = Address::parse("amqp://user:p%40ss@a,b:1/v%2fhost?heartbeat=9").expect("it is right");
        for (uri, host) in [(address.next(), "a"), (address.next(), "b"), (address.next(), "a")] {
            assert_eq!((&*uri.authority.host, &*uri.vhost, uri.query.heartbeat), (host, "v/host", Some(9)));
            assert_eq!(uri.authority.userinfo.password, "p@ss");
        }
    }

    #[test]
    fn what_would_be_ignored_is_refused() {
        for (wrong, expected) in [
            ("rabbit", NOT_A_URL),
            ("http://rabbit", NOT_A_URL),
            ("amqp://a,b:port", NOT_A_URL),
            ("amqp:///v", "it names no host"),
            ("amqp://u:p@", NOT_A_URL),
            ("amqp://u:p@a,,b", NOT_A_URL),
            ("amqp://a/v?cacertfile=/x", "its parameter cacertfile is not known: set RABBITMQ_CA_FILE"),
            ("amqp://a/v?verify=verify_none", "its parameter verify is not known"),
            ("amqp://a/v?heartbeat=0", "its parameter heartbeat must be 1 to 60 seconds"),
            ("amqp://u:2024?word@a/v", "it has a question mark before its host"),
            ("amqp://a/v?color=red", "its parameter color is not known: heartbeat and auth_mechanism are"),
        ] {
            let said = Address::parse(wrong).expect_err("it is wrong");
            assert!(said.starts_with(expected), "{wrong}: {said}");
        }
    }

    #[test]
    fn what_is_shown_holds_no_secret() {
        assert_eq!(format!("{:?}", Address::parse("amqp://u:hunter2@a").expect("it is right")), r#"["a:5672"]"#);
    }
}
