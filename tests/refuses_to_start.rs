//! A wrong or missing value is one sentence and exit 2; a schema of another version is one and exit 1. No
//! sentence repeats a value, which may be a secret.

use harness::certificates::Authority;
use harness::database::Database;
use harness::processes::output;
use harness::{Program, Servers};
use outbox::service::database::SCHEMA_VERSION;

type Environment = Vec<(&'static str, &'static str)>;

const SECRET: &str = "hunter2";
const DATABASE: (&str, &str) = ("DATABASE_URL", "postgres://outhook:hunter2@127.0.0.1:1/outhook");
const BROKER: (&str, &str) = ("RABBITMQ_URL", "amqp://guest:hunter2@127.0.0.1:1/%2f");
const AMQPS: (&str, &str) = ("RABBITMQ_URL", "amqps://guest:hunter2@127.0.0.1:1/%2f");
const HMAC: (&str, &str) = ("HMAC_SECRET", "0123456789abcdef");
const TOKEN: (&str, &str) = ("API_TOKEN", "0123456789abcdef");

async fn sentence(program: Program, environment: &[(&str, &str)], status: i32) -> String {
    let output = output(program, environment, &[]).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{said}");
    assert!(!said.contains(SECRET), "a value is repeated: {said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

#[tokio::test]
async fn a_wrong_or_missing_value_is_one_sentence() {
    let api = [DATABASE, HMAC, TOKEN];
    let worker = [DATABASE, BROKER];
    let rows: Vec<(Program, Environment, &str)> = vec![
        (Program::Migrate, vec![], "outhook-migrate: DATABASE_URL is not set; see --help"),
        (Program::Api, vec![DATABASE, TOKEN], "outhook-api: HMAC_SECRET is not set; see --help"),
        (Program::Relay, vec![DATABASE], "outhook-relay: RABBITMQ_URL is not set; see --help"),
        (Program::Worker, vec![BROKER], "outhook-worker: DATABASE_URL is not set; see --help"),
        (
            Program::Api,
            vec![DATABASE, TOKEN, ("HMAC_SECRET", SECRET)],
            "HMAC_SECRET cannot be used: each secret must have",
        ),
        (
            Program::Api,
            vec![DATABASE, HMAC, ("API_TOKEN", SECRET)],
            "API_TOKEN cannot be used: it must have at least 16",
        ),
        (Program::Api, [&api[..], &[("APP_PORT", SECRET)]].concat(), "APP_PORT cannot be used: "),
        (Program::Api, [&api[..], &[("MAX_BODY_BYTES", "1")]].concat(), "MAX_BODY_BYTES cannot be used: 1 is not in"),
        (
            Program::Api,
            [&api[..], &[("UNVERIFIED_BODY_BYTES", "1048575")]].concat(),
            "outhook-api: UNVERIFIED_BODY_BYTES cannot be used: it is less than MAX_BODY_BYTES",
        ),
        (
            Program::Api,
            [&api[..], &[("ALLOW_NETWORKS", SECRET)]].concat(),
            "ALLOW_NETWORKS cannot be used: each must be",
        ),
        (Program::Api, [&api[..], &[("LOG_FORMAT", SECRET)]].concat(), "LOG_FORMAT must be one of: json, text"),
        (
            Program::Worker,
            [&worker[..], &[("WEBHOOK_SIGNING_SECRET", SECRET)]].concat(),
            "a key must start with whsec_",
        ),
        (
            Program::Worker,
            [&worker[..], &[("WORKER_CONCURRENCY", "0")]].concat(),
            "WORKER_CONCURRENCY cannot be used: 0 is",
        ),
        (Program::Api, [&api[..], &[("DENY_NETWORKS", SECRET)]].concat(), "DENY_NETWORKS cannot be used: each must be"),
        (
            Program::Worker,
            [&worker[..], &[("DENY_NETWORKS", "::ffff:10.0.0.0/104")]].concat(),
            "DENY_NETWORKS cannot be used: IPv4 networks must be written as IPv4",
        ),
        (Program::Api, [&api[..], &[("HTTPS_ONLY", SECRET)]].concat(), "HTTPS_ONLY must be one of: true, false"),
        (
            Program::Worker,
            [&worker[..], &[("ALLOW_PORTS", "443-445")]].concat(),
            "ALLOW_PORTS cannot be used: each must be",
        ),
        (Program::Relay, vec![DATABASE, ("RABBITMQ_URL", SECRET)], "RABBITMQ_URL cannot be used: it is not an amqp"),
        (
            Program::Worker,
            vec![DATABASE, ("RABBITMQ_URL", "amqp://guest:hunter2@127.0.0.1:1/%2f?verify=verify_none")],
            "RABBITMQ_URL cannot be used: its parameter verify is not known: amqps always verifies the certificate",
        ),
        (
            Program::Relay,
            vec![DATABASE, ("RABBITMQ_URL", "amqp://guest:hunter2@/%2f")],
            "RABBITMQ_URL cannot be used: it is not an amqp",
        ),
        (Program::Relay, vec![BROKER, ("DATABASE_URL", SECRET)], "DATABASE_URL cannot be used: it is not a URL like"),
    ];
    for (program, environment, expected) in rows {
        let said = sentence(program, &environment, 2).await;
        assert!(said.contains(expected), "{program:?} with {environment:?} says: {said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    }
}

#[tokio::test]
async fn a_wrong_variable_of_traces_is_one_sentence() {
    let rows = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "hunter2:4318", "it is not a URL like http://collector:4318"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://me:hunter2@collector", "it holds a user or a password"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "only http/protobuf is known"),
        ("OTEL_EXPORTER_OTLP_HEADERS", SECRET, "each must be a name and a value, as in a=b,c=d"),
        ("OTEL_RESOURCE_ATTRIBUTES", SECRET, "each must be a name and a value, as in a=b,c=d"),
        ("OTEL_TRACES_SAMPLER", SECRET, "it is none of always_on, always_off, traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "2", "it is not a number from 0 to 1"),
    ];
    for program in [Program::Api, Program::Relay, Program::Worker] {
        for (name, value, expected) in rows {
            let said = sentence(program, &[DATABASE, BROKER, HMAC, TOKEN, (name, value)], 2).await;
            assert!(said.contains(&format!("{name} cannot be used: {expected}")), "{program:?} says: {said}");
            assert_eq!(said.trim_end().lines().count(), 1, "{said}");
        }
    }
}

#[tokio::test]
async fn a_wrong_file_or_proxy_is_one_sentence() {
    let authority = Authority::new();
    let (identity, other) = (authority.issue("outhook.example"), authority.issue("outhook.example"));
    let directory = tempfile::tempdir().expect("there is room for temporary files");
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("there is room for a file");
        path.into_os_string().into_string().expect("the path is text")
    };
    let damaged = "-----BEGIN CERTIFICATE-----\naHVudGVyMg==\n-----END CERTIFICATE-----\n";
    let (certificate, key) = (file("a.pem", &identity.certificate), file("a.key", &identity.key));
    let (damaged, empty, other) = (file("damaged.pem", damaged), file("empty", ""), file("other.key", &other.key));
    let missing = "/nowhere/hunter2.pem";
    let no_certificate = "cannot be used: the file holds no certificates";
    let no_key = "EGRESS_CLIENT_KEY_FILE cannot be used: the file holds no private key";
    let rows: [(&[(&str, &str)], &str); 16] = [
        (&[("EGRESS_CA_FILE", missing)], "EGRESS_CA_FILE cannot be used: the file cannot be read: entity not found"),
        (&[("EGRESS_CA_FILE", &empty)], no_certificate),
        (&[("EGRESS_CA_FILE", &key)], no_certificate),
        (&[("EGRESS_CA_FILE", &damaged)], no_certificate),
        (&[("EGRESS_CLIENT_CERT_FILE", &certificate)], "EGRESS_CLIENT_KEY_FILE is not set; see --help"),
        (&[("EGRESS_CLIENT_KEY_FILE", &key)], "EGRESS_CLIENT_CERT_FILE is not set; see --help"),
        (&[("EGRESS_CLIENT_CERT_FILE", &key), ("EGRESS_CLIENT_KEY_FILE", &key)], no_certificate),
        (&[("EGRESS_CLIENT_CERT_FILE", &certificate), ("EGRESS_CLIENT_KEY_FILE", &certificate)], no_key),
        (
            &[("EGRESS_CLIENT_CERT_FILE", &certificate), ("EGRESS_CLIENT_KEY_FILE", &other)],
            "EGRESS_CLIENT_KEY_FILE cannot be used: it is not the key of the certificate",
        ),
        (&[("EGRESS_CLIENT_CERT_FILE", &damaged), ("EGRESS_CLIENT_KEY_FILE", &key)], "EGRESS_CLIENT_CERT_FILE"),
        (&[("RABBITMQ_CA_FILE", &empty)], "RABBITMQ_CA_FILE cannot be used: the file holds no certificates"),
        (&[("RABBITMQ_CLIENT_CERT_FILE", &certificate)], "RABBITMQ_CLIENT_KEY_FILE is not set; see --help"),
        (&[("RABBITMQ_CA_FILE", &certificate)], "cannot be used: RABBITMQ_URL does not say amqps"),
        (
            &[AMQPS, ("RABBITMQ_CLIENT_CERT_FILE", &certificate), ("RABBITMQ_CLIENT_KEY_FILE", &other)],
            "RABBITMQ_CLIENT_KEY_FILE cannot be used: it is not the key of the certificate",
        ),
        (&[("EGRESS_PROXY", SECRET)], "EGRESS_PROXY cannot be used: it is not a URL like http://proxy:3128"),
        (&[("EGRESS_PROXY", "socks5://hunter2:1")], "EGRESS_PROXY cannot be used: it is not a URL like"),
    ];
    for (variables, expected) in rows {
        let said = sentence(Program::Worker, &[&[DATABASE, BROKER], variables].concat(), 2).await;
        assert!(said.contains(expected), "{variables:?} says: {said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    }
}

#[tokio::test]
async fn a_secret_that_is_given_twice_or_cannot_be_read_is_one_sentence() {
    let directory = tempfile::tempdir().expect("there is room for temporary files");
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("there is room for a file");
        path.into_os_string().into_string().expect("the path is text")
    };
    let (empty, short) = (file("empty", " \n"), file("short", "hunter2\n"));
    let long = file("long", &"hunter2".repeat(10_000));
    let rows: [(&[(&str, &str)], &str); 7] = [
        (
            &[TOKEN, ("API_TOKEN_FILE", &short)],
            "outhook-api: API_TOKEN and API_TOKEN_FILE are both set: only one may be",
        ),
        (
            &[("API_TOKEN_FILE", "/nowhere/hunter2")],
            "API_TOKEN_FILE cannot be used: the file cannot be read: entity not",
        ),
        (&[("API_TOKEN_FILE", "/")], "API_TOKEN_FILE cannot be used: the file cannot be read: is a directory"),
        (&[("API_TOKEN_FILE", &empty)], "API_TOKEN_FILE cannot be used: the file is empty"),
        (&[("API_TOKEN_FILE", &long)], "API_TOKEN_FILE cannot be used: the file has more than 65536 bytes"),
        (&[("API_TOKEN_FILE", &short)], "API_TOKEN cannot be used: it must have at least 16 bytes"),
        (&[("API_TOKEN_FILE", "")], "API_TOKEN is not set; see --help"),
    ];
    for (variables, expected) in rows {
        let said = sentence(Program::Api, &[&[DATABASE, HMAC], variables].concat(), 2).await;
        assert!(said.contains(expected), "{variables:?} says: {said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    }
}

/// Nobody listens there: who waits for nobody says so and ends.
#[tokio::test]
async fn a_postgres_that_is_not_there_is_said_once() {
    for (program, status, name) in [(Program::Migrate, 1, "outhook-migrate"), (Program::Check, 2, "outhook-check")] {
        let said = sentence(program, &[DATABASE], status).await;
        assert_eq!(said, format!("{name}: Postgres: Connection refused (os error 111)\n"));
    }
}

#[tokio::test]
async fn a_schema_of_another_version_is_refused() {
    let database = Database::create(Servers::shared().await).await;
    let url = ("DATABASE_URL", database.url.as_str());
    let services = [
        (Program::Api, vec![url, HMAC, TOKEN, ("APP_HOST", "127.0.0.1"), ("APP_PORT", "0")]),
        (Program::Relay, vec![url, BROKER]),
        (Program::Worker, vec![url, BROKER]),
    ];
    let older = SCHEMA_VERSION - 1;
    let changes = [
        (
            "ALTER TABLE schema_version DROP CONSTRAINT schema_version_positive; UPDATE schema_version SET version = version - 1",
            format!("schema version {older}, this build needs {SCHEMA_VERSION}: run outhook migrate"),
        ),
        (
            "UPDATE schema_version SET version = 99",
            format!("schema version 99, this build knows only {SCHEMA_VERSION}: run a newer build"),
        ),
        ("DROP TABLE schema_version", "no Outhook schema: run outhook migrate".to_owned()),
    ];
    for (change, expected) in changes {
        sqlx::raw_sql(change).execute(&database.pool).await.expect("the change");
        for (program, environment) in &services {
            let said = sentence(*program, environment, 1).await;
            assert!(said.contains(&expected), "{program:?}: {said}");
        }
    }
    // Nor does a migration lead from tables that it does not know.
    let said = sentence(Program::Migrate, &[url], 1).await;
    assert!(said.contains("from before the first version"), "{said}");
    database.drop().await;
}
