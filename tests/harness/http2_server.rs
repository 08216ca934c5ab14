//! A receiver that speaks HTTP/2 (RFC 9113) frame by frame, so that it can say what a library would not: no more on this
//! connection, not this request, or nothing at all.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;
use tokio_rustls::server::TlsStream;

use crate::certificates::Identity;
use crate::raw_server::RawServer;

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum Reaction {
    /// 200.
    Answer,
    /// 200, after this time. Meanwhile nothing else happens on the connection.
    AnswerAfter(Duration),
    /// `REFUSED_STREAM`: it was not begun with.
    Refuse,
    /// `GOAWAY(NO_ERROR)`: neither this one nor any that come after it on the connection are begun with.
    Goodbye,
    /// Nothing is said on this connection any more, not even to a PING.
    Silence,
    /// This is said, and then the other over and over.
    Flood(Vec<u8>, Vec<u8>),
}

/// Frames, as RFC 9113 numbers them.
const DATA: u8 = 0;
/// The beginning of an answer.
pub const HEADERS: u8 = 1;
/// The end of a stream, without an answer.
pub const RST_STREAM: u8 = 3;
/// What a connection allows.
pub const SETTINGS: u8 = 4;
/// Asks whether the other end is there.
pub const PING: u8 = 6;
const GOAWAY: u8 = 7;
/// More of a header block.
pub const CONTINUATION: u8 = 9;

/// Settings, as RFC 9113 numbers them.
pub const MAX_CONCURRENT_STREAMS: u16 = 3;
/// How much of a request may be sent before more of it is asked for.
pub const INITIAL_WINDOW_SIZE: u16 = 4;

/// Flags; two of them are the same bit.
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
/// The header block ends with this frame.
pub const END_HEADERS: u8 = 4;

const REFUSED_STREAM: u32 = 7;

/// `:status: 200`, which HPACK has a number for.
const STATUS_200: &[u8] = &[0x88];

/// A receiver of HTTP/2, and of HTTP/1.1 for those who do not ask for the other.
pub struct Http2Server {
    server: RawServer,
    answered: Arc<Answered>,
}

#[derive(Default)]
struct Answered {
    http2: AtomicU32,
    http1: AtomicU32,
}

impl Http2Server {
    /// Starts it. `react` gets the number of the connection and of the request on it, both from 1.
    pub async fn start(identity: &Identity, react: impl Fn(u32, u32) -> Reaction + Send + Sync + 'static) -> Self {
        Self::start_with(identity, &[], react).await
    }

    /// The same with settings of its own.
    pub async fn start_with(
        identity: &Identity,
        settings: &[(u16, u32)],
        react: impl Fn(u32, u32) -> Reaction + Send + Sync + 'static,
    ) -> Self {
        let settings =
            settings.iter().flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat());
        let settings: Arc<[u8]> = settings.collect();
        let acceptor = identity.acceptor(None, &["h2", "http/1.1"]);
        let (answered, react, taken) = (Arc::new(Answered::default()), Arc::new(react), AtomicU32::new(0));
        let counts = Arc::clone(&answered);
        let server = RawServer::start(move |connection| {
            let number = taken.fetch_add(1, Ordering::SeqCst) + 1;
            let (acceptor, answered, react) = (acceptor.clone(), Arc::clone(&counts), Arc::clone(&react));
            let settings = Arc::clone(&settings);
            async move {
                connection.stream.set_nodelay(true)?;
                let stream = acceptor.accept(connection.stream).await?;
                serve(stream, &settings, &answered, |request| react(number, request)).await
            }
        })
        .await;
        Self { server, answered }
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.url().replace("http:", "https:")
    }

    /// Connections so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.server.connections()
    }

    /// Requests answered by HTTP/2, and by HTTP/1.1.
    #[must_use]
    pub fn answered(&self) -> (u32, u32) {
        (self.answered.http2.load(Ordering::SeqCst), self.answered.http1.load(Ordering::SeqCst))
    }
}

async fn serve(
    mut stream: TlsStream<TcpStream>,
    settings: &[u8],
    answered: &Answered,
    react: impl Fn(u32) -> Reaction + Send,
) -> io::Result<()> {
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        return converse(&mut stream, settings, answered, react).await;
    }
    // The requests here are short, and come in one piece each.
    while stream.read(&mut [0; 4_096]).await? > 0 {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await?;
        answered.http1.fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}

async fn converse(
    stream: &mut TlsStream<TcpStream>,
    settings: &[u8],
    answered: &Answered,
    react: impl Fn(u32) -> Reaction + Send,
) -> io::Result<()> {
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await?;
    write(stream, SETTINGS, 0, 0, settings).await?;
    let (mut requests, mut last_answered) = (0, 0_u32);
    // The last request that is begun with, once that is said.
    let mut last = u32::MAX;
    loop {
        let (kind, flags, id, payload) = read(stream).await?;
        match kind {
            _ if last == 0 || id > last => {}
            SETTINGS if flags & ACK == 0 => write(stream, SETTINGS, ACK, 0, &[]).await?,
            PING if flags & ACK == 0 => write(stream, PING, ACK, 0, &payload).await?,
            HEADERS | DATA if flags & END_STREAM != 0 => {
                requests += 1;
                match react(requests) {
                    // Its end may come after that of one that began later, and that was answered.
                    Reaction::Goodbye if id < last_answered || last < u32::MAX => answer(stream, id, answered).await?,
                    Reaction::Answer => {
                        answer(stream, id, answered).await?;
                        last_answered = last_answered.max(id);
                    }
                    Reaction::Refuse => write(stream, RST_STREAM, 0, id, &REFUSED_STREAM.to_be_bytes()).await?,
                    Reaction::Goodbye => {
                        let no_error = 0_u32.to_be_bytes();
                        write(stream, GOAWAY, 0, 0, &[last_answered.to_be_bytes(), no_error].concat()).await?;
                        last = last_answered;
                    }
                    Reaction::AnswerAfter(pause) => {
                        sleep(pause).await;
                        answer(stream, id, answered).await?;
                    }
                    Reaction::Silence => last = 0,
                    Reaction::Flood(beginning, again) => {
                        stream.write_all(&beginning).await?;
                        loop {
                            stream.write_all(&again).await?;
                        }
                    }
                }
            }
            _ => {}
        }
    }
}

async fn answer(stream: &mut TlsStream<TcpStream>, id: u32, answered: &Answered) -> io::Result<()> {
    answered.http2.fetch_add(1, Ordering::SeqCst);
    write(stream, HEADERS, END_HEADERS | END_STREAM, id, STATUS_200).await
}

/// A frame's type, flags, stream and payload.
async fn read(stream: &mut TlsStream<TcpStream>) -> io::Result<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await?;
    let [high, middle, low, kind, flags, id @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, high, middle, low]) as usize];
    stream.read_exact(&mut payload).await?;
    Ok((kind, flags, u32::from_be_bytes(id), payload))
}

async fn write(stream: &mut TlsStream<TcpStream>, kind: u8, flags: u8, id: u32, payload: &[u8]) -> io::Result<()> {
    stream.write_all(&frame(kind, flags, id, payload)).await?;
    stream.flush().await
}

/// A frame's bytes.
#[must_use]
pub fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let [0, length @ ..] = u32::try_from(payload.len()).expect("a frame is short").to_be_bytes() else {
        panic!("a frame has less than 16 MiB");
    };
    [&length[..], &[kind, flags], &id.to_be_bytes(), payload].concat()
}
