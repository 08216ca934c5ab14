//! Every secret can stand in a file, as mounted secrets do, and white space at the end of one does not count, wherever it
//! stands.

use std::path::Path;

use harness::signing::{stack, v1_key, verifies};
use harness::stack::Environment;
use harness::{PATIENCE, Stack};

const SECRETS: [(&str, &str); 6] = [
    ("DATABASE_URL", "DATABASE_URL_FILE"),
    ("RABBITMQ_URL", "RABBITMQ_URL_FILE"),
    ("HMAC_SECRET", "HMAC_SECRET_FILE"),
    ("API_TOKEN", "API_TOKEN_FILE"),
    ("SECRETS_KEY", "SECRETS_KEY_FILE"),
    ("WEBHOOK_SIGNING_SECRET", "WEBHOOK_SIGNING_SECRET_FILE"),
];

/// Puts every secret into a file of its own. What is empty counts as not set, as compose files have it.
fn into_files(directory: &Path, mut environment: Environment) -> Environment {
    for (variable, file) in SECRETS {
        let path = directory.join(variable);
        let secret = environment.insert(variable, String::new()).expect("it is set");
        std::fs::write(&path, format!("{secret}\r\n")).expect("there is room for a file");
        environment.insert(file, path.into_os_string().into_string().expect("the path is text"));
    }
    environment
}

/// Puts a space and a newline behind every secret.
fn with_white_space(mut environment: Environment) -> Environment {
    for (variable, file) in SECRETS {
        environment.get_mut(variable).expect("it is set").push_str(" \n");
        environment.insert(file, String::new());
    }
    environment
}

/// Insists that all who share a secret with a service agree with it: callers, the owner of the token, the receiver, and the
/// api and the worker on what is sealed.
async fn assert_secrets_are_understood(default: &str, stack: Stack) {
    let own = v1_key();
    for (key, webhook) in [(default, stack.webhook("")), (&own, stack.webhook("").signing_secret(&own))] {
        let job_id = stack.client.post_webhook(&webhook).await.job_id;
        stack.wait_until_drained(PATIENCE).await;
        assert_eq!(stack.client.job(job_id).await["status"], "success");
        assert!(verifies(key, &stack.deliveries(job_id)[0]));
    }
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_secrets_may_stand_in_files() {
    let (directory, default) = (tempfile::tempdir().expect("there is room for temporary files"), v1_key());
    let path = directory.path().to_owned();
    let builder = stack().env("WEBHOOK_SIGNING_SECRET", &default);
    assert_secrets_are_understood(&default, builder.rewrite(move |it| into_files(&path, it)).start().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn white_space_behind_a_secret_does_not_count() {
    let default = v1_key();
    let builder = stack().env("WEBHOOK_SIGNING_SECRET", &default);
    assert_secrets_are_understood(&default, builder.rewrite(with_white_space).start().await).await;
}
