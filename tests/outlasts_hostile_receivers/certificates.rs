//! Receivers that cannot show whose they are, or speak no TLS that the worker does.

use harness::attempts::enqueue;
use harness::certificates::{Authority, Identity};
use harness::{PATIENCE, RawServer, Stack};
use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::recorded::{Expected, SUCCESS, TIMEOUT, assert_recorded, failed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_are_not_the_receivers() {
    let (trusted, other) = (Authority::new(), Authority::new());
    let file = NamedTempFile::new().expect("there is room for temporary files");
    std::fs::write(file.path(), trusted.pem()).expect("there is room for it");
    let stack = Stack::builder()
        .env("HTTP_CLIENT_TIMEOUT_SEC", &TIMEOUT.as_secs().to_string())
        .worker_env("EGRESS_CA_FILE", file.path().to_str().expect("the path is text"))
        .start()
        .await;
    let address = "127.0.0.1";
    let rows: [(&str, Identity, Expected); 8] = [
        ("a good one", trusted.issue(address), SUCCESS),
        ("expired", trusted.issue_expired(address), failed("cannot connect: the certificate has expired")),
        ("early", trusted.issue_early(address), failed("cannot connect: the certificate is not valid yet")),
        ("of another name", trusted.issue("other.example"), failed("the certificate is for another name")),
        ("of no name", trusted.issue_nameless(), failed("the certificate names no host: it needs a subjectAltName")),
        ("of another authority", other.issue(address), failed("the certificate's issuer is not trusted")),
        ("self-signed", Identity::self_signed(address), failed("the certificate is self-signed")),
        ("an authority's", Identity::authoritys_own(address), failed("the certificate is an authority's own")),
    ];
    for (case, identity, expected) in rows {
        let server = identity.serve(None).await;
        let url = server.url().replace("http:", "https:");
        let job_id = enqueue(stack.pool(), &url, "{}").await.expect("it is a URL");
        stack.wait_until_drained(PATIENCE).await;
        assert_recorded(&stack, case, job_id, expected).await;
        assert_eq!(server.requests().len(), usize::from(expected == SUCCESS), "{case}: a request was sent");
    }
    // Neither speaks the other's protocol, or none of its versions and ciphers: the alert says so (RFC 8446, section 6).
    let no_cipher = [21, 3, 3, 0, 2, 2, 40];
    for (case, answer, expected) in [
        ("no TLS", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), failed("the receiver does not speak TLS")),
        ("no cipher", no_cipher.to_vec(), failed("no version or cipher of TLS in common")),
    ] {
        let server = RawServer::start(move |mut connection| {
            let answer = answer.clone();
            async move {
                let _ = connection.stream.read(&mut [0; 4_096]).await?;
                connection.stream.write_all(&answer).await?;
                connection.stream.shutdown().await
            }
        })
        .await;
        let url = server.url().replace("http:", "https:");
        let job_id = enqueue(stack.pool(), &url, "{}").await.expect("it is a URL");
        stack.wait_until_drained(PATIENCE).await;
        assert_recorded(&stack, case, job_id, expected).await;
    }
    stack.finish_unheard().await;
}
