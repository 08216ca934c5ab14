//! The variables that a stack's services start with.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use uuid::Uuid;

use crate::broker::Names;
use crate::database::{Database, as_user_of};
use crate::processes::Program;

/// Variables of a service.
pub type Environment = BTreeMap<&'static str, String>;

/// A stack's own secrets.
pub(crate) struct Secrets {
    pub hmac: String,
    pub token: String,
    pub signing: String,
}

impl Secrets {
    pub(crate) fn new() -> Self {
        let random = || Uuid::new_v4().simple().to_string();
        let key = [*Uuid::new_v4().as_bytes(), *Uuid::new_v4().as_bytes()].concat();
        Self { hmac: random(), token: random(), signing: format!("whsec_{}", BASE64_STANDARD.encode(key)) }
    }
}

/// The tests' own user of RabbitMQ, as it stands in URLs.
const ADMINISTRATOR: &str = "//guest:guest@";

/// The same variables with a service's own users in place of the tests' own, who may do anything: so every
/// test proves that the services need no more.
pub(crate) fn with_own_users(mut environment: Environment, program: Program) -> Environment {
    let role = match program {
        Program::Api => "api",
        Program::Relay => "relay",
        Program::Worker => "worker",
        Program::Migrate | Program::Check => return environment,
    };
    for (name, value) in &mut environment {
        match *name {
            "DATABASE_URL" | "DATABASE_DIRECT_URL" => *value = as_user_of(value, role),
            "RABBITMQ_URL" => *value = value.replacen(ADMINISTRATOR, &format!("//outhook_{role}:outhook_{role}@"), 1),
            _ => {}
        }
    }
    environment
}

/// What all services of a stack have in common: its names, quick retries, and time-outs that a test can
/// wait out.
pub(crate) fn common(
    rabbitmq_url: &str,
    database: &Database,
    names: &Names,
    secrets: &Secrets,
    api_port: u16,
) -> Environment {
    let text = |value: &str| value.to_owned();
    Environment::from([
        ("DATABASE_URL", database.url.clone()),
        ("RABBITMQ_URL", text(rabbitmq_url)),
        ("RABBITMQ_EXCHANGE", names.exchange.clone()),
        ("RABBITMQ_QUEUE", names.queue.clone()),
        ("RABBITMQ_ROUTING_KEY", names.routing_key.clone()),
        ("APP_HOST", text("127.0.0.1")),
        ("APP_PORT", api_port.to_string()),
        ("HMAC_SECRET", secrets.hmac.clone()),
        ("API_TOKEN", secrets.token.clone()),
        ("WEBHOOK_SIGNING_SECRET", secrets.signing.clone()),
        ("ALLOW_NETWORKS", text("127.0.0.0/8")),
        ("HTTP_CLIENT_TIMEOUT_SEC", text("5")),
        ("MAX_RETRIES", text("5")),
        ("BACKOFF_BASE_MS", text("50")),
        ("BACKOFF_MAX_SEC", text("1")),
        // What fails on purpose is no sick destination, but where a test is about those.
        ("BREAKER_FAILURES", text("1000000")),
        ("BREAKER_COOLDOWN_SEC", text("1")),
        ("BREAKER_COOLDOWN_MAX_SEC", text("1")),
    ])
}
