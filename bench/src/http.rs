//! A keep-alive HTTP/1.1 client that costs as little as one can: the request is bytes that are ready, and of
//! the answer only the status and the body's length are understood.

use std::net::SocketAddr;

use anyhow::{Context, bail, ensure};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// No answer of ours is longer, head and body.
const MAX_ANSWER_BYTES: usize = 16 * 1024;

/// One connection, used by one request after the other.
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// An answer, as long as the connection is not used again.
pub(crate) struct Answer<'a> {
    pub status: u16,
    pub body: &'a [u8],
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("nobody listens on {address}"))?;
        // A request is complete when it is written: waiting for more to send only delays it.
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(1_024) })
    }

    /// Sends the bytes of a request and reads the whole answer. The caller bounds the time of its whole run: a
    /// timer for each request would cost more than the rest of this client.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> anyhow::Result<Answer<'_>> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let head = loop {
            self.read_more().await?;
            if let Some(head) = read_head(&self.buffer)? {
                break head;
            }
        };
        while self.buffer.len() < head.length + head.body_length {
            self.read_more().await?;
        }
        Ok(Answer { status: head.status, body: &self.buffer[head.length..head.length + head.body_length] })
    }

    async fn read_more(&mut self) -> anyhow::Result<()> {
        ensure!(self.buffer.len() < MAX_ANSWER_BYTES, "the answer is longer than {MAX_ANSWER_BYTES} bytes");
        ensure!(self.stream.read_buf(&mut self.buffer).await? > 0, "the connection was closed instead of an answer");
        Ok(())
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    length: usize,
    body_length: usize,
}

/// Reads the head of an answer, if all of it is there.
fn read_head(bytes: &[u8]) -> anyhow::Result<Option<Head>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&bytes[..end]).context("the answer's head is not text")?;
    let status = text.get(9..12).and_then(|status| status.parse().ok()).context("the answer has no status")?;
    let length = text.lines().filter_map(|line| line.split_once(':')).find_map(|(name, value)| {
        if name.eq_ignore_ascii_case("content-length") { value.trim().parse().ok() } else { None }
    });
    match length {
        Some(body_length) => Ok(Some(Head { status, length: end + 4, body_length })),
        None => bail!("the answer has no Content-Length; no other form is understood here"),
    }
}

/// The bytes of a GET.
pub(crate) fn get(address: SocketAddr, path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").into_bytes()
}

/// The bytes of a `POST /webhooks`, signed.
pub(crate) fn signed_post(address: SocketAddr, secret: &str, body: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(body.as_bytes());
    let signature = hex::encode(mac.finalize().into_bytes());
    format!(
        "POST /webhooks HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
         X-Signature: sha256={signature}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_head_when_all_of_it_is_there() {
        let bytes = b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(read_head(&bytes[..30]).expect("it may go on"), None);
        let head = read_head(bytes).expect("it is an answer");
        assert_eq!(head, Some(Head { status: 202, length: 44, body_length: 2 }));
    }

    #[test]
    fn an_answer_of_unknown_length_is_refused() {
        assert!(read_head(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
    }
}
