//! A body while it arrives, piece by piece, each of them counted before it is kept.

use std::sync::Arc;

use super::connection::Connection;
use super::partial_body::{MadeWay, PartialBody};

/// Its bytes are no longer counted when this is dropped.
pub(crate) struct Receiving {
    connection: Arc<Connection>,
    body: Arc<PartialBody>,
}

impl Receiving {
    /// Starts to keep the body of the request that the connection brings.
    pub(crate) fn start(connection: &Arc<Connection>) -> Self {
        let body = Arc::new(PartialBody::default());
        connection.begin_body(&body);
        Self { connection: Arc::clone(connection), body }
    }

    /// Returns when the body has made way for others.
    pub(crate) async fn made_way(&self) {
        self.body.made_way().await;
    }

    /// Keeps a piece of the body. What is counted is the memory that it takes.
    pub(crate) fn append(&self, piece: &[u8]) -> Result<(), MadeWay> {
        self.connection.hold(self.body.growth(piece.len())?)?;
        self.body.append(piece)
    }

    /// The whole body, which is verified now or refused.
    pub(crate) fn finish(self) -> Result<Vec<u8>, MadeWay> {
        self.body.take()
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        self.connection.end_body();
    }
}
