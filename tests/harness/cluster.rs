//! Three RabbitMQ nodes that are one cluster, each with ports and data of its own, to be killed and paused one by one.

use std::time::Duration;

use serde_json::Value;

use crate::Servers;
use crate::client::{http_client, send};
use crate::wait::{PATIENCE, wait_for, wait_until};

/// Nodes of a whole cluster.
const NODES: usize = 3;

/// What a node asks others for is waited for by its management API, for longer than is good for a test.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A cluster, whole or still forming.
pub struct Cluster {
    /// Its nodes, in the order in which they joined.
    pub nodes: Vec<Servers>,
}

/// Where a quorum queue is, by the indices of nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The node of its leader, if it has one.
    pub leader: Option<usize>,
    /// Nodes that have a copy of it.
    pub members: Vec<usize>,
    /// Those of them that run.
    pub online: Vec<usize>,
}

impl Cluster {
    /// Starts a whole one.
    pub async fn start() -> Self {
        let mut cluster = Self::forming().await;
        cluster.form().await;
        cluster
    }

    /// Starts its first node only.
    pub async fn forming() -> Self {
        Self { nodes: vec![Servers::cluster_node(None).await] }
    }

    /// Lets the others join.
    pub async fn form(&mut self) {
        let first = &self.nodes[0];
        let (second, third) = tokio::join!(Servers::cluster_node(Some(first)), Servers::cluster_node(Some(first)));
        self.nodes.extend([second, third]);
        let management = &self.nodes[0].management_url;
        wait_until("the nodes to be one cluster", PATIENCE, async || {
            let nodes = get(&format!("{management}/api/nodes")).await;
            let running = |nodes: &Vec<Value>| nodes.iter().filter(|node| node["running"] == true).count();
            nodes.as_ref().and_then(Value::as_array).map(running) == Some(NODES)
        })
        .await;
    }

    /// The URL of all nodes, for who tries this one first.
    #[must_use]
    pub fn url_from(&self, first: usize) -> String {
        let urls = self.urls_from(first);
        let hosts: Vec<&str> = urls.iter().map(|url| host_of(url)).collect();
        urls[0].replace(hosts[0], &hosts.join(","))
    }

    /// The URL of each node, beginning with this one.
    #[must_use]
    pub fn urls_from(&self, first: usize) -> Vec<String> {
        let order = (first..self.nodes.len()).chain(0..first);
        order.map(|node| self.nodes[node].rabbitmq_url.clone()).collect()
    }

    /// Where a queue is, as this node knows it.
    pub async fn place(&self, queue: &str, asked: usize) -> Option<Place> {
        let found = get(&format!("{}/api/queues/%2f/{queue}", self.nodes[asked].management_url)).await?;
        let index = |name: &Value| self.nodes.iter().position(|node| name == node.rabbitmq_node.as_str());
        let all = |names: &Value| -> Option<Vec<usize>> { Some(names.as_array()?.iter().filter_map(index).collect()) };
        Some(Place {
            leader: index(&found["leader"]),
            members: all(&found["members"])?,
            online: all(&found["online"])?,
        })
    }

    /// Waits until this node knows of a leader and of so many members that run.
    pub async fn wait_for_place(&self, queue: &str, asked: usize, online: usize) -> Place {
        wait_for("a leader and its followers", PATIENCE, async || {
            self.place(queue, asked).await.filter(|it| it.leader.is_some() && it.online.len() == online)
        })
        .await
    }
}

/// Host and port.
fn host_of(url: &str) -> &str {
    url.split(['@', '/']).nth(3).expect("the servers' URL names user and host")
}

/// What the management API answers, if it does.
async fn get(url: &str) -> Option<Value> {
    let answer = send(http_client().get(url).timeout(ANSWER_TIMEOUT)).await.ok()?;
    (answer.status == 200).then(|| answer.json())
}
