//! A TCP proxy that breaks connections on demand.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::servers::address_of;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From whoever connected to the proxy.
    ToServer,
    /// Back to it.
    ToClient,
}

/// What the proxy does to all its connections, old and new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Passes everything on.
    Forward,
    /// Passes nothing on and keeps the connections, as a network that drops packets. What was sent
    /// meanwhile goes on its way when the mode changes.
    Stall,
    /// Resets every connection, and new ones as soon as they are there.
    Reset,
    /// Passes so many more bytes on, all connections and both ways together, then resets.
    CutAfter(u64),
    /// Loses what goes this way, for good, and passes the other on.
    Drop(Direction),
}

/// A listening proxy. It ends, with its connections, when it is dropped.
pub struct TcpProxy {
    address: SocketAddr,
    server: watch::Sender<SocketAddr>,
    mode: watch::Sender<Mode>,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    connections: AtomicU64,
    ended: AtomicU64,
    /// Bytes that may still pass before the cut.
    left: AtomicU64,
}

impl TcpProxy {
    /// Listens on a free port of 127.0.0.1 and connects each client to `server`.
    pub async fn start(server: SocketAddr) -> Self {
        Self::listen((Ipv4Addr::LOCALHOST, 0).into(), server).await
    }

    /// The same at the loopback address of IPv6.
    pub async fn start_on_ipv6(server: SocketAddr) -> Self {
        Self::listen((Ipv6Addr::LOCALHOST, 0).into(), server).await
    }

    async fn listen(address: SocketAddr, server: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.expect("loopback has free ports");
        let address = listener.local_addr().expect("a bound socket has an address");
        let server = watch::Sender::new(server);
        let mode = watch::Sender::new(Mode::Forward);
        let shared = Arc::new(Shared::default());
        let accepting = tokio::spawn(accept(listener, server.subscribe(), mode.clone(), Arc::clone(&shared)));
        Self { address, server, mode, shared, accepting }
    }

    /// The proxy for the server of a URL, and the URL that leads through it.
    pub async fn before(url: &str) -> (Self, String) {
        let server = address_of(url);
        let proxy = Self::start(server).await;
        let through = url.replace(&server.to_string(), &proxy.address.to_string());
        (proxy, through)
    }

    /// Where to connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what happens to every connection, at once.
    pub fn set(&self, mode: Mode) {
        if let Mode::CutAfter(bytes) = mode {
            self.shared.left.store(bytes, Ordering::SeqCst);
        }
        self.mode.send_replace(mode);
    }

    /// Connects clients to another server from now on. The connections that there are stay where they are.
    pub fn redirect(&self, server: SocketAddr) {
        self.server.send_replace(server);
    }

    /// Connections taken so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// How many of them have ended, both ways.
    #[must_use]
    pub fn ended_connections(&self) -> u64 {
        self.shared.ended.load(Ordering::SeqCst)
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(
    listener: TcpListener,
    server: watch::Receiver<SocketAddr>,
    mode: watch::Sender<Mode>,
    shared: Arc<Shared>,
) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        shared.connections.fetch_add(1, Ordering::SeqCst);
        while connections.try_join_next().is_some() {}
        let (server, mode, shared) = (*server.borrow(), mode.subscribe(), Arc::clone(&shared));
        connections.spawn(async move {
            connect(client, server, mode, Arc::clone(&shared)).await;
            shared.ended.fetch_add(1, Ordering::SeqCst);
        });
    }
}

async fn connect(client: TcpStream, server: SocketAddr, mode: watch::Receiver<Mode>, shared: Arc<Shared>) {
    if *mode.borrow() == Mode::Reset {
        let _ = client.set_zero_linger();
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else { return };
    let (_, _) = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let there = pump(client_read, server_write, Direction::ToServer, mode.clone(), &shared);
    let back = pump(server_read, client_write, Direction::ToClient, mode, &shared);
    tokio::pin!(there, back);
    // One way that is broken ends both; one that ended in order leaves the other to end by itself.
    tokio::select! {
        ended = &mut there => if ended == Ended::InOrder { back.await; },
        ended = &mut back => if ended == Ended::InOrder { there.await; },
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    InOrder,
    Broken,
}

/// Moves bytes one way until either end is gone or the mode says so. What is broken ends with resets.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    direction: Direction,
    mode: watch::Receiver<Mode>,
    shared: &Shared,
) -> Ended {
    let ended = move_bytes(&mut from, &mut to, direction, mode, shared).await;
    if ended == Ended::Broken {
        let _ = from.as_ref().set_zero_linger();
        let _ = to.as_ref().set_zero_linger();
    }
    ended
}

async fn move_bytes(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    direction: Direction,
    mut mode: watch::Receiver<Mode>,
    shared: &Shared,
) -> Ended {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let now = *mode.borrow_and_update();
        let length = tokio::select! {
            // First, or what came after the change would go by the mode before it.
            biased;
            changed = mode.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return Ended::Broken,
            },
            read = from.read(&mut buffer), if now != Mode::Stall && now != Mode::Reset => match read {
                Ok(0) => {
                    let _ = to.shutdown().await;
                    return Ended::InOrder;
                }
                Ok(length) => length,
                Err(_) => return Ended::Broken,
            },
            () = std::future::ready(()), if now == Mode::Reset => return Ended::Broken,
        };
        let passed = match now {
            Mode::Drop(dropped) if dropped == direction => continue,
            Mode::CutAfter(_) => shared.take(length),
            _ => length,
        };
        if to.write_all(&buffer[..passed]).await.is_err() || passed < length {
            return Ended::Broken;
        }
    }
}

impl Shared {
    /// How many of so many bytes may pass before the cut.
    fn take(&self, wanted: usize) -> usize {
        let wanted = wanted as u64;
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| Some(left.saturating_sub(wanted)));
        let passed = left.unwrap_or_default().min(wanted);
        usize::try_from(passed).expect("it is no more than was wanted")
    }
}
