//! A server that a test scripts byte by byte: receivers that misbehave, and listeners that must not be reached.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A listening server. It ends, and keeps no connection, when it is dropped.
pub struct RawServer {
    address: SocketAddr,
    seen: Arc<Seen>,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    connections: AtomicU64,
    requests: Mutex<Vec<String>>,
}

/// Sockets that listen, each on another address of this machine: to whoever delivers, as many hosts. Until somebody
/// accepts them, connections are made and what is sent there is never answered.
pub async fn listen_on_hosts(count: usize) -> Vec<TcpListener> {
    let mut listeners = Vec::new();
    for host in 0..count {
        let [.., third, fourth] = (host + 1).to_be_bytes();
        listeners
            .push(TcpListener::bind((Ipv4Addr::new(127, 1, third, fourth), 0)).await.expect("loopback has free ports"));
    }
    listeners
}

/// A URL that leads to whoever listens.
#[must_use]
pub fn url_of(listener: &TcpListener) -> String {
    format!("http://{}/hook", listener.local_addr().expect("a bound socket has an address"))
}

/// A connection to the server, to be treated as the test likes.
pub struct Connection<Stream = TcpStream> {
    /// The connection's bytes.
    pub stream: Stream,
    seen: Arc<Seen>,
}

impl RawServer {
    /// Listens on a free port of 127.0.0.1 and treats every connection like this. An error ends the connection.
    pub async fn start<Serving>(serve: impl Fn(Connection) -> Serving + Send + 'static) -> Self
    where
        Serving: Future<Output = io::Result<()>> + Send + 'static,
    {
        Self::on(TcpListener::bind(("127.0.0.1", 0)).await.expect("loopback has free ports"), serve)
    }

    /// The same on a socket of the test's own.
    pub fn on<Serving>(listener: TcpListener, serve: impl Fn(Connection) -> Serving + Send + 'static) -> Self
    where
        Serving: Future<Output = io::Result<()>> + Send + 'static,
    {
        let address = listener.local_addr().expect("a bound socket has an address");
        let seen = Arc::new(Seen::default());
        let accepted = Arc::clone(&seen);
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                accepted.connections.fetch_add(1, Ordering::SeqCst);
                while connections.try_join_next().is_some() {}
                connections.spawn(serve(Connection { stream, seen: Arc::clone(&accepted) }));
            }
        });
        Self { address, seen, accepting }
    }

    /// Answers every request with these bytes and closes the connection.
    pub async fn answering(answer: impl Into<Vec<u8>>) -> Self {
        let answer: Arc<[u8]> = answer.into().into();
        Self::start(move |mut connection| {
            let answer = Arc::clone(&answer);
            async move {
                connection.request().await?;
                connection.stream.write_all(&answer).await?;
                connection.stream.shutdown().await
            }
        })
        .await
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// A URL that leads to it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    /// Connections taken so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.seen.connections.load(Ordering::SeqCst)
    }

    /// The requests that were read so far, head and body, as text.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        self.seen.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for RawServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl<Stream> Connection<Stream> {
    /// The same connection with another stream around its bytes, such as TLS.
    pub fn with<Other>(self, wrap: impl FnOnce(Stream) -> Other) -> Connection<Other> {
        Connection { stream: wrap(self.stream), seen: self.seen }
    }
}

impl<Stream: AsyncRead + AsyncWrite + Unpin> Connection<Stream> {
    /// Reads one request, head and body, and keeps it.
    pub async fn request(&mut self) -> io::Result<String> {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            bytes.push(self.stream.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        self.stream.read_exact(&mut body).await?;
        bytes.extend(body);
        let request = String::from_utf8_lossy(&bytes).into_owned();
        self.seen.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
        Ok(request)
    }

    /// Writes for as long as the other end takes it.
    pub async fn write_for_ever(&mut self, piece: &[u8]) -> io::Result<()> {
        loop {
            self.stream.write_all(piece).await?;
        }
    }
}
