//! Deliveries leave by the proxy, with the certificate and trusting whom the configuration names, and by no
//! other way.

use harness::attempts::{attempts, enqueue, status_and_error};
use harness::certificates::{Authority, Identity, bundle};
use harness::client::send;
use harness::forward_proxy::forward_proxy;
use harness::{PATIENCE, RawServer, Stack, StackBuilder, Webhook};
use tempfile::TempDir;

/// A file of this text, and its path.
fn file(directory: &TempDir, name: &str, text: &str) -> String {
    let path = directory.path().join(name);
    std::fs::write(&path, text).expect("there is room for a file");
    path.into_os_string().into_string().expect("the path is text")
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("there is room for temporary files")
}

/// Delivers one webhook of one attempt and returns its job's status and error.
async fn deliver(stack: &Stack, url: &str) -> (String, String) {
    let job_id = enqueue(stack.pool(), url, "{}").await.expect("it is a URL");
    stack.wait_until_drained(PATIENCE).await;
    assert_eq!(attempts(stack.pool(), job_id).await.len(), 1);
    status_and_error(stack.pool(), job_id).await
}

fn https(server: &RawServer) -> String {
    server.url().replace("http:", "https:")
}

/// As `openssl req -x509` makes it, for a server that nobody else vouches for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authoritys_own_certificate_is_trusted_if_exactly_it_is_named() {
    let directory = directory();
    let (named, another) = (Identity::authoritys_own("127.0.0.1"), Identity::authoritys_own("127.0.0.1"));
    let misnamed = Identity::authoritys_own("other.example");
    let roots = file(&directory, "ca.pem", &bundle(&[&named.certificate, &misnamed.certificate]));
    let stack = Stack::builder().worker_env("EGRESS_CA_FILE", &roots).start().await;
    for (identity, status, error) in [
        (&named, "success", ""),
        (&another, "failed", "an authority's own, not a server's"),
        (&misnamed, "failed", "the certificate is for another name"),
    ] {
        let server = identity.serve(None).await;
        let recorded = deliver(&stack, &https(&server)).await;
        assert!(recorded.0 == status && recorded.1.contains(error), "{recorded:?}");
    }
    stack.finish_unheard().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_authority_is_trusted_and_a_client_certificate_shown() {
    let directory = directory();
    let (servers, clients) = (Authority::new(), Authority::new());
    let server = servers.issue("127.0.0.1").serve(Some(&clients)).await;
    let client = clients.issue("outhook.example");
    // A bundle: the authority that counts is not the first one in it.
    let roots = file(&directory, "ca.pem", &bundle(&[Authority::new().pem(), servers.pem()]));
    let (certificate, key) =
        (file(&directory, "client.pem", &client.certificate), file(&directory, "client.key", &client.key));
    let stranger = Identity::self_signed("outhook.example");
    let other = (file(&directory, "other.pem", &stranger.certificate), file(&directory, "other.key", &stranger.key));
    let with = |builder: StackBuilder, (certificate, key): (&str, &str)| {
        builder.worker_env("EGRESS_CLIENT_CERT_FILE", certificate).worker_env("EGRESS_CLIENT_KEY_FILE", key)
    };

    let not_trusted = Stack::builder().named("no_private_authority").start().await;
    let (status, error) = deliver(&not_trusted, &https(&server)).await;
    assert_eq!(
        (status.as_str(), error.as_str()),
        ("failed", "cannot connect: the certificate's issuer is not trusted")
    );
    not_trusted.finish().await;

    let asked = "cannot connect: the receiver asks for a client certificate that it trusts";
    let without = Stack::builder().named("no_client_certificate").worker_env("EGRESS_CA_FILE", &roots).start().await;
    assert_eq!(deliver(&without, &https(&server)).await, ("failed".to_owned(), asked.to_owned()));
    without.finish().await;

    let builder = Stack::builder().named("another_client_certificate").worker_env("EGRESS_CA_FILE", &roots);
    let with_another = with(builder, (&other.0, &other.1)).start().await;
    assert_eq!(deliver(&with_another, &https(&server)).await, ("failed".to_owned(), asked.to_owned()));
    with_another.finish().await;
    assert_eq!(server.requests().len(), 0, "a request was sent to whom it was not meant for");

    let builder = Stack::builder().named("with_client_certificate").worker_env("EGRESS_CA_FILE", &roots);
    let stack = with(builder, (&certificate, &key)).start().await;
    assert_eq!(deliver(&stack, &https(&server)).await, ("success".to_owned(), String::new()));
    assert_eq!(server.requests().len(), 1);
    stack.finish_unheard().await;
}

/// The names here resolve nowhere: the proxy is who knows them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forward_proxy_gets_every_request_and_resolves_the_names() {
    let directory = directory();
    let authority = Authority::new();
    let secure = authority.issue("receiver.invalid").serve(None).await;
    let plain = RawServer::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    for (case, url, server, first_line) in [
        ("by_proxy", "http://receiver.invalid/hook?x=1", &plain, "POST http://receiver.invalid/hook?x=1 HTTP/1.1"),
        ("by_tunnel", "https://receiver.invalid/hook", &secure, "CONNECT receiver.invalid:443 HTTP/1.1"),
    ] {
        let proxy = forward_proxy(server.address()).await;
        // The proxy's own address needs no leave, and a name leads to it as well.
        let stack = Stack::builder().named(case)
            .env("ALLOW_NETWORKS", "")
            .worker_env("EGRESS_CA_FILE", &file(&directory, "ca.pem", authority.pem()))
            // That the environment would have these names go another way is ignored.
            .worker_env("NO_PROXY", "*")
            .worker_env("no_proxy", "receiver.invalid,localhost")
            .worker_env("EGRESS_PROXY", &format!("http://user:secret@localhost:{}", proxy.address().port()))
            .start()
            .await;
        assert_eq!(deliver(&stack, url).await, ("success".to_owned(), String::new()), "{case}");
        let requests = proxy.requests();
        assert_eq!(requests.len(), 1, "{case}: {requests:?}");
        assert!(requests[0].starts_with(first_line), "{case}: {requests:?}");
        // "user:secret" in base64.
        let authorization = "proxy-authorization: basic dxnlcjpzzwnyzxq=";
        assert!(requests[0].to_lowercase().contains(authorization), "{case}: {requests:?}");
        assert_eq!(server.requests().len(), 1, "{case}");

        // What a URL itself says is judged all the same.
        for private in ["http://127.0.0.1/", "http://localhost/", "http://[::1]/"] {
            let (status, error) = deliver(&stack, private).await;
            assert!(status == "failed" && error.starts_with("target refused: "), "{case}: {error}");
        }
        assert_eq!(proxy.connections(), 1, "{case}");
        assert!(!stack.workers[0].log().contains("secret@"), "{case}");
        stack.finish_unheard().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_refuses_or_is_away_is_a_failed_attempt_that_says_so() {
    let refusing = RawServer::answering("HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n").await;
    let away = RawServer::answering("").await.address();
    for (case, proxy, url, expected) in [
        ("proxy_refuses", refusing.address(), "http://receiver.invalid/", "HTTP 403"),
        ("proxy_refuses_a_tunnel", refusing.address(), "https://receiver.invalid/", "cannot connect: "),
        ("proxy_away", away, "http://receiver.invalid/", "cannot connect: connection refused"),
    ] {
        let stack = Stack::builder().named(case).worker_env("EGRESS_PROXY", &format!("http://{proxy}")).start().await;
        let (status, error) = deliver(&stack, url).await;
        assert!(status == "failed" && error.contains(expected), "{case}: {error}");
        assert!(!error.contains("127.0.0.1") && !error.contains("invalid/"), "{case}: {error}");
        stack.finish_unheard().await;
    }
}

/// A proxy of the environment would lead past the guard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_of_the_environment_is_ignored() {
    let proxy = RawServer::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let mut builder = Stack::builder();
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        builder = builder.env(name, &proxy.url());
    }
    let stack = builder.start().await;
    stack.post("{}", "").await;
    stack.wait_until_drained(PATIENCE).await;
    assert_eq!(stack.receiver.received().len(), 1);
    // Nor for https, whatever comes of that, nor for a name.
    deliver(&stack, &stack.receiver_url("").replace("http:", "https:")).await;
    deliver(&stack, "http://receiver.invalid/").await;
    let response = send(stack.client.request(Webhook::to("http://10.0.0.1/"))).await.expect("the api answers");
    assert_eq!(response.status, 422);
    assert_eq!(proxy.connections(), 0, "the environment's proxy was used");
    stack.finish().await;
}
