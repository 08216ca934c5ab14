//! What has arrived of a body, until it is whole or makes way.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use super::body_buffer::BodyBuffer;

/// It stood still while others brought bytes, or wanted its connection.
#[derive(Debug)]
pub(crate) struct MadeWay;

pub(super) struct PartialBody {
    /// `None` once it has made way.
    buffer: Mutex<Option<BodyBuffer>>,
    made_way: CancellationToken,
}

impl Default for PartialBody {
    fn default() -> Self {
        Self { buffer: Mutex::new(Some(BodyBuffer::default())), made_way: CancellationToken::new() }
    }
}

impl PartialBody {
    /// By how many bytes of memory it grows with a piece of this length.
    pub(super) fn growth(&self, length: usize) -> Result<usize, MadeWay> {
        Ok(self.buffer().as_ref().ok_or(MadeWay)?.growth(length))
    }

    pub(super) fn append(&self, piece: &[u8]) -> Result<(), MadeWay> {
        self.buffer().as_mut().ok_or(MadeWay)?.append(piece);
        Ok(())
    }

    /// All that has arrived.
    pub(super) fn take(&self) -> Result<Vec<u8>, MadeWay> {
        let buffer = self.buffer().take();
        buffer.map(BodyBuffer::joined).ok_or(MadeWay)
    }

    /// Frees it, and says so to whoever brings it.
    pub(super) fn make_way(&self) {
        let freed = self.buffer().take();
        drop(freed);
        self.made_way.cancel();
    }

    /// Returns when it has made way.
    pub(super) async fn made_way(&self) {
        self.made_way.cancelled().await;
    }

    fn buffer(&self) -> MutexGuard<'_, Option<BodyBuffer>> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
