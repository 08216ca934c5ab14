//! Names that change their answer: every request is judged on the addresses that it is connected to.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::Parser;
use outbox::service::clock;
use outbox::signing::sealed::SecretsConfig;
use outbox::target::TargetError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::tests::job;
use super::*;

const ALLOWED: Ipv4Addr = Ipv4Addr::LOCALHOST;
const DENIED: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

#[derive(Parser)]
struct Process {
    #[command(flatten)]
    delivery: DeliveryConfig,
    #[command(flatten)]
    targets: TargetPolicy,
}

/// Answers with the next of its lists at every question, and with the last one from then on.
struct Rebinding {
    answers: Vec<Vec<Ipv4Addr>>,
    questions: Arc<AtomicUsize>,
}

impl Lookup for Rebinding {
    async fn lookup(&self, _: &str) -> io::Result<Vec<IpAddr>> {
        let question = self.questions.fetch_add(1, Ordering::SeqCst).min(self.answers.len() - 1);
        Ok(self.answers[question].iter().map(|&address| address.into()).collect())
    }
}

/// A server on the allowed address and one on the denied, on the same port.
struct Ground {
    port: u16,
    allowed: Arc<AtomicUsize>,
    denied: Arc<AtomicUsize>,
    questions: Arc<AtomicUsize>,
}

impl Ground {
    async fn new(connection: &'static str) -> Self {
        let (allowed, denied) = loop {
            let allowed = TcpListener::bind((ALLOWED, 0)).await.expect("loopback has free ports");
            let port = allowed.local_addr().expect("it is bound").port();
            // Somebody else may have that port there.
            if let Ok(denied) = TcpListener::bind((DENIED, port)).await {
                break (allowed, denied);
            }
        };
        Self {
            port: allowed.local_addr().expect("it is bound").port(),
            allowed: serve(allowed, connection),
            denied: serve(denied, connection),
            questions: Arc::default(),
        }
    }

    fn sender(&self, answers: Vec<Vec<Ipv4Addr>>) -> Sender {
        // Fails when it was done before, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let arguments = ["process", "--allow-networks", "127.0.0.0/8", "--deny-networks", "127.0.0.2/32"];
        let Process { delivery, targets } = Process::try_parse_from(arguments).expect("the options are right");
        let lookup = Rebinding { answers, questions: Arc::clone(&self.questions) };
        let unsigned = Keyring::new(SecretsConfig::default(), None);
        Sender::with_lookup(&delivery, targets, &EgressConfig::default(), unsigned, lookup)
            .expect("a client can be built")
    }

    async fn post(&self, sender: &Sender) -> Result<u16, SendError> {
        let job = Claimed { client_url: format!("http://rebinding.example:{}/", self.port), ..job() };
        sender.post(&job, bytes::Bytes::new(), "", clock::now()).await.map(|answer| answer.status)
    }

    /// Connections to the allowed address, to the denied one, and questions to the resolver.
    fn counts(&self) -> [usize; 3] {
        [&self.allowed, &self.denied, &self.questions].map(|count| count.load(Ordering::SeqCst))
    }
}

/// Answers every request with 200 and the given Connection header; counts the connections.
fn serve(listener: TcpListener, connection: &'static str) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(answer_all(stream, connection));
        }
    });
    count
}

async fn answer_all(mut stream: TcpStream, connection: &'static str) {
    // The requests here are short, and come in one piece each.
    while stream.read(&mut [0; 4_096]).await.is_ok_and(|length| length > 0) {
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: {connection}\r\n\r\n");
        if stream.write_all(answer.as_bytes()).await.is_err() || connection == "close" {
            return;
        }
    }
}

const REFUSED: Result<u16, SendError> = Err(SendError::Addresses(TargetError::DeniedNetwork));

#[tokio::test]
async fn a_name_that_is_rebound_to_a_denied_address_is_refused_from_then_on() {
    let ground = Ground::new("close").await;
    let sender = ground.sender(vec![vec![ALLOWED], vec![DENIED]]);
    assert_eq!(ground.post(&sender).await, Ok(200));
    assert_eq!(ground.counts(), [1, 0, 1], "the one answer that was judged is the one that was connected to");
    assert_eq!(ground.post(&sender).await, REFUSED);
    assert_eq!(ground.counts(), [1, 0, 2]);
}

#[tokio::test]
async fn a_name_with_a_denied_address_is_tried_at_the_others_only() {
    let ground = Ground::new("close").await;
    let sender = ground.sender(vec![vec![ALLOWED, DENIED], vec![DENIED], vec![DENIED, ALLOWED]]);
    assert_eq!(ground.post(&sender).await, Ok(200));
    assert_eq!(ground.post(&sender).await, REFUSED);
    assert_eq!(ground.post(&sender).await, Ok(200), "what it answered before is not held against it");
    assert_eq!(ground.counts(), [2, 0, 3]);
}

#[tokio::test]
async fn a_kept_connection_stays_with_the_address_that_was_judged() {
    let ground = Ground::new("keep-alive").await;
    let sender = ground.sender(vec![vec![ALLOWED], vec![DENIED]]);
    assert_eq!(ground.post(&sender).await, Ok(200));
    assert_eq!(ground.post(&sender).await, Ok(200));
    assert_eq!(ground.counts(), [1, 0, 1]);
}

/// The last line: should a connection ever be made past the guard, its other end is judged all the same.
#[tokio::test]
async fn an_answer_from_a_denied_address_is_none() {
    let ground = Ground::new("close").await;
    let past_the_guard = Client::builder().no_proxy().resolve("rebinding.example", (DENIED, ground.port).into());
    let mut sender = ground.sender(vec![vec![ALLOWED]]);
    sender.client = past_the_guard.build().expect("a client can be built");
    assert_eq!(ground.post(&sender).await, Err(SendError::Target(TargetError::DeniedNetwork)));
    assert_eq!(ground.counts(), [0, 1, 0], "it was connected to");
}
