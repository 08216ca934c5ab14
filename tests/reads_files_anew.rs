//! SIGHUP: secrets and certificates are read from their files anew, nothing under way is dropped, and what cannot be used
//! leaves the old ones in use. SIGUSR1 and SIGUSR2 mean nothing.

use std::path::PathBuf;

use harness::attempts::{enqueue, status_and_error};
use harness::certificates::Authority;
use harness::client::send;
use harness::signing::{stack, v1_key, verifies};
use harness::tls_broker::TlsBroker;
use harness::{PATIENCE, Process, Program, Servers, Stack, wait_until};
use rustix::process::Signal;
use tempfile::TempDir;

/// A directory whose files change.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("there is room for temporary files"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file and returns its path.
    fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).expect("there is room for a file");
        self.path(name).into_os_string().into_string().expect("the path is text")
    }
}

/// Has it read its files anew, and waits until it says that it has.
async fn reload(process: &Process) {
    hang_up(process, "done").await;
}

async fn hang_up(process: &Process, outcome: &str) {
    let series = format!(r#"outhook_reloads_total{{outcome="{outcome}"}}"#);
    let before = process.series(&series).await;
    process.signal(Signal::HUP);
    wait_until("the files to be read anew", PATIENCE, async || process.series(&series).await > before).await;
}

async fn status_with(stack: &Stack, token: &str) -> u16 {
    let job = stack.client.get(&format!("/webhooks/{}", uuid::Uuid::nil())).bearer_auth(token);
    send(job).await.expect("the api answers").status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_changed_while_the_api_answers() {
    const TOKENS: [&str; 2] = ["the first token of all", "the second token of all"];
    let files = Files::new();
    let file = files.write("token", TOKENS[0]);
    let stack = Stack::builder().env("API_TOKEN", "").env("API_TOKEN_FILE", &file).start().await;
    assert_eq!(status_with(&stack, TOKENS[0]).await, 404);

    files.write("token", &format!("{}\n", TOKENS[1]));
    assert_eq!(status_with(&stack, TOKENS[1]).await, 401, "nobody has asked for it yet");
    reload(&stack.apis[0]).await;
    assert_eq!([status_with(&stack, TOKENS[0]).await, status_with(&stack, TOKENS[1]).await], [401, 404]);

    files.write("token", "short");
    hang_up(&stack.apis[0], "failed").await;
    assert_eq!(status_with(&stack, TOKENS[1]).await, 404);
    let said = "SIGHUP: cannot read secrets and certificates anew; the old ones stay \
                error=\"API_TOKEN cannot be used: it must have at least 16 bytes\"";
    stack.apis[0].says(said).await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signing_key_is_changed_while_the_worker_delivers() {
    let (files, old, new) = (Files::new(), v1_key(), v1_key());
    let file = files.write("key", &old);
    let stack = stack().env("WEBHOOK_SIGNING_SECRET", "");
    let stack = stack.worker_env("WEBHOOK_SIGNING_SECRET_FILE", &file).start().await;
    let under_way = stack.post("{}", "?delay_ms=1500").await.job_id;
    stack.wait_for_deliveries(1).await;

    files.write("key", &new);
    reload(&stack.workers[0]).await;
    let next = stack.post("{}", "").await.job_id;
    stack.wait_until_drained(PATIENCE).await;
    let (before, after) = (stack.deliveries(under_way), stack.deliveries(next));
    assert!(before.len() == 1 && verifies(&old, &before[0]), "what was under way goes on");
    assert!(after.len() == 1 && verifies(&new, &after[0]) && !verifies(&old, &after[0]));
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authorities_and_a_client_certificate_are_changed_while_the_worker_delivers() {
    let (files, servers, clients) = (Files::new(), Authority::new(), Authority::new());
    let server = servers.issue("127.0.0.1").serve(Some(&clients)).await;
    let url = server.url().replace("http:", "https:");
    let write = |authority: &Authority, clients: &Authority| {
        let client = clients.issue("outhook.example");
        [
            ("EGRESS_CA_FILE", files.write("ca.pem", authority.pem())),
            ("EGRESS_CLIENT_CERT_FILE", files.write("client.pem", &client.certificate)),
            ("EGRESS_CLIENT_KEY_FILE", files.write("client.key", &client.key)),
        ]
    };
    let mut builder = Stack::builder();
    for (variable, path) in write(&Authority::new(), &Authority::new()) {
        builder = builder.worker_env(variable, &path);
    }
    let stack = builder.start().await;
    let deliver = async || {
        let job_id = enqueue(stack.pool(), &url, "{}").await.expect("it is a URL");
        stack.wait_until_drained(PATIENCE).await;
        status_and_error(stack.pool(), job_id).await
    };
    let refused = deliver().await;
    assert_eq!(refused.1, "cannot connect: the certificate's issuer is not trusted");

    write(&servers, &clients);
    reload(&stack.workers[0]).await;
    assert_eq!(deliver().await, ("success".to_owned(), String::new()));

    // The key of another certificate: each file is right by itself.
    files.write("client.key", &clients.issue("outhook.example").key);
    hang_up(&stack.workers[0], "failed").await;
    assert_eq!(deliver().await, ("success".to_owned(), String::new()));
    let said = "EGRESS_CLIENT_KEY_FILE cannot be used: it is not the key of the certificate";
    stack.workers[0].says(said).await;
    stack.finish_unheard().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_for_the_broker_are_changed_while_it_is_tried() {
    let broker = TlsBroker::start().await;
    let write = |authority: &Authority| {
        let identity = authority.issue("outhook.example");
        [
            ("RABBITMQ_CA_FILE", broker.file("trusted.pem", authority.pem())),
            ("RABBITMQ_CLIENT_CERT_FILE", broker.file("client.pem", &identity.certificate)),
            ("RABBITMQ_CLIENT_KEY_FILE", broker.file("client.key", &identity.key)),
        ]
    };
    let mut builder = Stack::builder().relays(0).workers(0);
    builder = builder.env("RABBITMQ_URL", &broker.url());
    for (variable, path) in write(&Authority::new()) {
        builder = builder.env(variable, &path);
    }
    let mut stack = builder.start_between(Servers::shared().await, &broker.servers).await;
    for (program, word) in [(Program::Relay, "publishing"), (Program::Worker, "consuming")] {
        stack.spawn(program).await;
        let process = &mut stack.processes(program)[0];
        process.wait_for_word(word).await;
        process.says(&format!("not {word}")).await;
    }
    write(&broker.authority);
    for program in [Program::Relay, Program::Worker] {
        let process = &mut stack.processes(program)[0];
        reload(process).await;
        process.wait_for_word("ready").await;
    }
    stack.post("{}", "").await;
    stack.wait_for_deliveries(1).await;
    stack.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_that_mean_nothing_end_nobody() {
    let mut stack = Stack::start().await;
    stack.post("{}", "?delay_ms=500").await;
    stack.wait_for_deliveries(1).await;
    for process in stack.apis.iter().chain(&stack.relays).chain(&stack.workers) {
        for signal in [Signal::USR1, Signal::USR2, Signal::HUP] {
            process.signal(signal);
        }
    }
    for processes in [&mut stack.apis, &mut stack.relays, &mut stack.workers] {
        processes[0].wait_for_word("SIGHUP").await;
    }
    stack.post("{}", "").await;
    stack.wait_for_deliveries(2).await;
    stack.finish().await;
}
