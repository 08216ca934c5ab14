//! A connection's bytes, watched for the moment when an answer is out and for answers that are none of ours; and read in
//! small pieces.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Bytes;
use hyper::body::Buf;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio::time::{Sleep, sleep};

use super::hyper_refusal::explained;
use crate::connections::Connection;

/// Most bytes of one read. hyper's buffer of 8 KiB grows, up to the longest head, with each read that fills it, and
/// stays so while the connection stands still.
const READ_BYTES: u64 = 8 * 1024 - 1;

/// How long a caller whose request was refused may go on sending it. Closed at once, its connection would be reset, and it
/// would not get to read why. While this lasts it makes way for others like one that is idle.
const LINGER: Duration = Duration::from_secs(5);

pub(crate) struct WatchedStream<Stream> {
    stream: Take<Stream>,
    connection: Arc<Connection>,
    /// What is left to write of an answer of hyper's own.
    refusal: Bytes,
    /// There was such an answer.
    is_refused: bool,
    /// Until when to take the rest of a request off the wire, once all is said.
    lingering: Option<Pin<Box<Sleep>>>,
}

impl<Stream: AsyncRead + Unpin> WatchedStream<Stream> {
    pub(crate) fn new(stream: Stream, connection: Arc<Connection>) -> Self {
        Self { stream: stream.take(READ_BYTES), connection, refusal: Bytes::new(), is_refused: false, lingering: None }
    }

    /// Takes over what hyper writes when nobody was asked: it cannot read a request, and this is all that it says.
    fn takes_over(&mut self, bytes: &[u8]) -> bool {
        let is_its_own = !self.connection.has_request();
        if is_its_own {
            self.refusal = explained(bytes);
            self.is_refused = true;
        }
        is_its_own
    }
}

impl<Stream: AsyncRead + Unpin> AsyncRead for WatchedStream<Stream> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = &mut self.get_mut().stream;
        stream.set_limit(READ_BYTES);
        Pin::new(stream).poll_read(context, buffer)
    }
}

impl<Stream: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WatchedStream<Stream> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.takes_over(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(this.stream.get_mut()).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let first = slices.first().map_or(&[][..], |slice| slice);
        if this.takes_over(first) {
            return Poll::Ready(Ok(first.len()));
        }
        Pin::new(this.stream.get_mut()).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.get_ref().is_write_vectored()
    }

    /// hyper flushes when it has written all that it had.
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while !this.refusal.is_empty() {
            let written = ready!(Pin::new(this.stream.get_mut()).poll_write(context, &this.refusal))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            this.refusal.advance(written);
        }
        ready!(Pin::new(this.stream.get_mut()).poll_flush(context))?;
        this.connection.flushed();
        Poll::Ready(Ok(()))
    }

    /// hyper's last call. It closes the connection when this is done.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(end) = &mut this.lingering else {
            ready!(Pin::new(this.stream.get_mut()).poll_shutdown(context))?;
            if !this.is_refused && !this.connection.ends_with_answer() {
                return Poll::Ready(Ok(()));
            }
            this.lingering = Some(Box::pin(sleep(LINGER)));
            context.waker().wake_by_ref();
            return Poll::Pending;
        };
        // Looked at first: somebody may send without end.
        if end.as_mut().poll(context).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let mut bytes = [0; 8 * 1024];
        loop {
            let mut rest = ReadBuf::new(&mut bytes);
            match Pin::new(this.stream.get_mut()).poll_read(context, &mut rest) {
                Poll::Ready(Ok(())) if !rest.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
