//! How many nodes of RabbitMQ's cluster have the queue, and what to do if they are too few. AMQP does not tell, the
//! management API does, where there is one and the relay may ask it.
//!
//! A quorum queue keeps the members that it was declared with. One that was declared while its cluster formed has one or
//! two of three, and stands still when they do. That is said and not mended: to add members takes an administrator, which
//! no service is (docs/high-availability.md).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use outbox::broker::topology::BrokerConfig;
use reqwest::{Client, StatusCode};
use rustls::{ClientConfig, RootCertStore};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use url::Url;

/// Between two looks.
const SPACING: Duration = Duration::from_secs(30);

/// A node that others wait for is waited for by their management APIs as well.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest answer that is read: a node is a line of it.
const LONGEST_ANSWER: usize = 256 * 1_024;

/// So many survive the loss of one. Larger clusters need not have every queue on each of their nodes.
const ENOUGH: usize = 3;

/// Where RabbitMQ's management API is.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "RabbitMQ")]
pub(crate) struct MembersConfig {
    /// Address of RabbitMQ's management API, as in `http://user:password@host:15672`, by which the relay sees whether
    /// enough nodes of the cluster have the queue. Its user needs the tag monitoring and the virtual host.
    #[arg(long, env, hide_env_values = true, value_parser = management_url)]
    rabbitmq_management_url: Option<SecretString>,
}

fn management_url(text: &str) -> Result<SecretString, String> {
    let is_one = Url::parse(text).is_ok_and(|url| {
        ["http", "https"].contains(&url.scheme()) && url.has_host() && url.query().is_none() && url.fragment().is_none()
    });
    if is_one { Ok(text.into()) } else { Err("it is not a URL like http://user:password@host:15672".to_owned()) }
}

/// The queue as the API describes it, as far as is of interest.
#[derive(Deserialize)]
struct Queue {
    #[serde(default)]
    members: BTreeSet<String>,
}

/// A node of the cluster, whether it runs or not.
#[derive(Deserialize)]
struct Node {
    name: String,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    /// There is nothing to be said.
    Enough,
    /// The queue is on too few nodes, and these do not have it.
    TooFew(BTreeSet<String>),
    /// It could not be asked.
    Unknown(String),
}

/// Why the API cannot be asked.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("{}", outbox::service::env::with_causes(.0))]
    Request(reqwest::Error),
    #[error("it refuses its user: see name and password, and that it has the tag monitoring and the virtual host")]
    Refused,
    #[error("it answers with status {0}")]
    Status(StatusCode),
    #[error("its answer is too long")]
    TooLong,
    #[error("its answer cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

impl From<reqwest::Error> for AskError {
    fn from(error: reqwest::Error) -> Self {
        Self::Request(error.without_url())
    }
}

/// Looks every so often until `stop`, and says what has changed.
pub(crate) async fn watch(config: MembersConfig, broker: BrokerConfig, stop: CancellationToken) {
    let Some(url) = config.rabbitmq_management_url else { return };
    let mut said = Found::Enough;
    while !stop.is_cancelled() {
        let Some(found) = stop.run_until_cancelled(look(&url, &broker)).await else { return };
        let found = found.unwrap_or_else(|error| Found::Unknown(error.to_string()));
        if found != said {
            say(&found);
            said = found;
        }
        stop.run_until_cancelled(sleep(SPACING)).await;
    }
}

async fn look(url: &SecretString, broker: &BrokerConfig) -> Result<Found, AskError> {
    let tls = if url.expose_secret().starts_with("https:") { broker.tls()? } else { trusting_nobody()? };
    let client = Client::builder().no_proxy().timeout(ANSWER_TIMEOUT).tls_backend_preconfigured(tls).build()?;
    let nodes: Vec<Node> = ask(&client, path(url, &["nodes"], "name")).await?.unwrap_or_default();
    let queue = path(url, &["queues", broker.virtual_host(), broker.queue()], "members");
    // A queue that is not there, or has no leader, has no members to count.
    let members = ask(&client, queue).await?.map_or_else(BTreeSet::new, |queue: Queue| queue.members);
    set_gauges(members.len(), nodes.len());
    Ok(judge(&members, &nodes.into_iter().map(|node| node.name).collect()))
}

/// For http, where the client wants one all the same.
fn trusting_nobody() -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

/// `/api/…` with one column of what it shows.
fn path(url: &SecretString, segments: &[&str], column: &str) -> Url {
    let mut url: Url = url.expose_secret().parse().expect("it was parsed when it was read");
    url.path_segments_mut().expect("http has a path").pop_if_empty().push("api").extend(segments);
    url.query_pairs_mut().append_pair("columns", column);
    url
}

/// What is there, or `None` if it is not.
async fn ask<Answer: DeserializeOwned>(client: &Client, url: Url) -> Result<Option<Answer>, AskError> {
    let mut response = client.get(url).send().await?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => return Ok(None),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(AskError::Refused),
        status => return Err(AskError::Status(status)),
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > LONGEST_ANSWER {
            return Err(AskError::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(serde_json::from_slice(&body)?))
}

fn judge(members: &BTreeSet<String>, nodes: &BTreeSet<String>) -> Found {
    if members.is_empty() || members.len() >= nodes.len().min(ENOUGH) {
        Found::Enough
    } else {
        Found::TooFew(nodes - members)
    }
}

fn set_gauges(members: usize, nodes: usize) {
    let number = |count| u32::try_from(count).unwrap_or(u32::MAX);
    metrics::gauge!("outhook_relay_queue_members").set(number(members));
    metrics::gauge!("outhook_relay_broker_nodes").set(number(nodes));
}

fn say(found: &Found) {
    match found {
        Found::Enough => info!("enough nodes of RabbitMQ's cluster have the queue"),
        Found::TooFew(without) => {
            let without: Vec<&str> = without.iter().map(String::as_str).collect();
            warn!(
                without = without.join(" "),
                "too few nodes of RabbitMQ's cluster have the queue, which stands still when they do: run `rabbitmq-queues \
                 grow NODE all --queue-pattern …` for one or more of those without it (docs/high-availability.md)"
            );
        }
        Found::Unknown(error) => {
            set_gauges(0, 0);
            warn!(error, "cannot ask RabbitMQ's management API which nodes have the queue");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn three_members_or_all_nodes_are_enough() {
        let few = |members: &[&str], nodes: &[&str]| judge(&names(members), &names(nodes));
        assert_eq!(few(&["a"], &["a"]), Found::Enough);
        assert_eq!(few(&["a"], &["a", "b", "c"]), Found::TooFew(names(&["b", "c"])));
        assert_eq!(few(&["a", "c"], &["a", "b", "c"]), Found::TooFew(names(&["b"])));
        assert_eq!(few(&["a", "b", "c"], &["a", "b", "c", "d", "e"]), Found::Enough);
        assert_eq!(few(&[], &["a", "b", "c"]), Found::Enough, "nothing is known of the queue");
    }

    #[test]
    fn a_virtual_host_is_one_part_of_the_path() {
        let url = path(&"http://u:p@host:15672/prefix/".into(), &["queues", "/", "a b"], "members");
        assert_eq!(url.as_str(), "http://u:p@host:15672/prefix/api/queues/%2F/a%20b?columns=members");
    }

    #[test]
    fn what_is_no_management_url_is_refused() {
        for right in ["http://host:15672", "https://u:p@host/prefix"] {
            assert!(management_url(right).is_ok(), "{right}");
        }
        for wrong in ["host:15672", "amqp://host", "http://", "http://host/?a=b"] {
            assert!(management_url(wrong).is_err(), "{wrong}");
        }
    }
}
