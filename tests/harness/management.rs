//! RabbitMQ's management API: what an administrator may do to a running broker.

use serde_json::{Value, json};

use crate::client::{http_client, send};
use crate::servers::Servers;

/// The default virtual host, as it stands in paths.
const VIRTUAL_HOST: &str = "%2f";

/// An administrator of the broker.
pub struct Management {
    http: reqwest::Client,
    url: String,
}

/// A user of the broker that belongs to one test, so that its rights may be taken away.
pub struct User {
    name: String,
}

/// A user's rights: the names, as regular expressions, of what it may configure, write to and read from.
#[derive(Clone, Debug, Default)]
pub struct Rights {
    /// To declare and delete.
    pub configure: Vec<String>,
    /// To publish to, and to bind a queue to something.
    pub write: Vec<String>,
    /// To consume, and to bind something to an exchange.
    pub read: Vec<String>,
}

impl Management {
    /// The administrator of these servers' broker.
    #[must_use]
    pub fn of(servers: &Servers) -> Self {
        Self { http: http_client(), url: servers.management_url.clone() }
    }

    /// Makes the broker refuse what is published to a queue that is this long.
    pub async fn limit_queue(&self, queue: &str, messages: u32) {
        self.set_policy(queue, &json!({ "max-length": messages, "overflow": "reject-publish" })).await;
    }

    /// Gives a queue a policy, in place of the one that it had.
    pub async fn set_policy(&self, queue: &str, definition: &Value) {
        let policy = json!({ "pattern": format!("^{queue}$"), "apply-to": "queues", "definition": definition });
        self.put(&policy_of(queue), &policy).await;
    }

    /// Takes the queue's policy away.
    pub async fn lift_limit(&self, queue: &str) {
        self.send(self.http.delete(format!("{}{}", self.url, policy_of(queue)))).await;
    }

    /// A user with all rights, whose name and password are the same.
    pub async fn create_user(&self, name: &str) -> User {
        self.put(&format!("/api/users/{name}"), &json!({ "password": name, "tags": "" })).await;
        let user = User { name: name.to_owned() };
        self.let_configure(&user, true).await;
        user
    }

    /// A user who may look at everything and do nothing, whose name and password are the same.
    pub async fn create_monitor(&self, name: &str) {
        self.put(&format!("/api/users/{name}"), &json!({ "password": name, "tags": "monitoring" })).await;
        self.grant(&User { name: name.to_owned() }, &Rights::default()).await;
    }

    /// Gives or takes the right to declare queues and exchanges.
    pub async fn let_configure(&self, user: &User, allowed: bool) {
        let any = || vec![".*".to_owned()];
        let configure = if allowed { any() } else { Vec::new() };
        self.grant(user, &Rights { configure, write: any(), read: any() }).await;
    }

    /// Gives a user these rights in place of those it had.
    pub async fn grant(&self, user: &User, rights: &Rights) {
        let pattern = |names: &[String]| format!("^({})$", names.join("|"));
        let rights = json!({
            "configure": pattern(&rights.configure), "write": pattern(&rights.write), "read": pattern(&rights.read),
        });
        self.put(&format!("/api/permissions/{VIRTUAL_HOST}/{}", user.name), &rights).await;
    }

    /// The rights of a user that `scripts/rabbitmq-users` made.
    pub async fn rights_of(&self, user: &str) -> Rights {
        let path = format!("{}/api/permissions/{VIRTUAL_HOST}/{user}", self.url);
        let rights = send(self.http.get(path)).await.expect("the management API answers").json();
        let names = |kind: &str| -> Vec<String> {
            let pattern = rights[kind].as_str().unwrap_or_else(|| panic!("no {kind} in {rights}"));
            let names = pattern.trim_start_matches('^').trim_end_matches('$').trim_matches(['(', ')']);
            names.split('|').filter(|name| !name.is_empty()).map(ToOwned::to_owned).collect()
        };
        Rights { configure: names("configure"), write: names("write"), read: names("read") }
    }

    async fn put(&self, path: &str, content: &Value) {
        let request = self.http.put(format!("{}{path}", self.url)).header("content-type", "application/json");
        self.send(request.body(content.to_string())).await;
    }

    async fn send(&self, request: reqwest::RequestBuilder) {
        let response = send(request).await.expect("the management API answers");
        assert!((200..300).contains(&response.status), "{}: {}", response.status, response.body);
    }
}

impl User {
    /// The address of the broker for this user instead of the one it names.
    #[must_use]
    pub fn url(&self, url: &str) -> String {
        let (_, host) = url.split_once('@').expect("the servers' URL names a user");
        format!("amqp://{0}:{0}@{host}", self.name)
    }
}

fn policy_of(queue: &str) -> String {
    format!("/api/policies/{VIRTUAL_HOST}/{queue}")
}
