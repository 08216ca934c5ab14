//! A request's body of JSON: bounded in size and in time, and in what all of them hold together.

use std::sync::Arc;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::request::Parts;
use http_body_util::BodyExt;
use outbox::service::telemetry::Raised;
use serde::Deserialize;
use tokio::time::timeout;

use crate::app::App;
use crate::config::ServerConfig;
use crate::connections::{Connection, Receiving};
use crate::error::ApiError;
use crate::json;

/// Kept for as long as its request has no answer.
pub(crate) struct JsonBody {
    bytes: Bytes,
    /// So long it is counted.
    _under_way: Raised,
}

impl FromRequest<Arc<App>> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let (head, body) = request.into_parts();
        Self::receive(&head, body, &app.config().server).await
    }
}

impl JsonBody {
    /// Reads the whole body.
    pub(super) async fn receive(head: &Parts, body: Body, config: &ServerConfig) -> Result<Self, ApiError> {
        require_json(&head.headers)?;
        let bytes = read(head, body, config).await?;
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        Ok(Self { bytes, _under_way: Raised::by(metrics::gauge!("outhook_api_body_bytes"), length.into()) })
    }

    /// As it came: what is signed are bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What it says.
    pub(crate) fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, ApiError> {
        json::read(&self.bytes)
    }
}

/// Refuses what is not plain JSON, before a byte of it is read.
fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(ApiError::UnsupportedMediaType("the body must not have a Content-Encoding"));
    }
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::UnsupportedMediaType("the Content-Type must be application/json"));
    }
    Ok(())
}

/// Reads the whole body. Unless the request is verified already, it makes way for others while it stands still.
async fn read(head: &Parts, mut body: Body, config: &ServerConfig) -> Result<Bytes, ApiError> {
    let limit = config.max_body_bytes;
    let announced = head.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > u64::from(limit)) {
        return Err(ApiError::BodyTooLarge(limit));
    }
    let whole = async {
        let Some(first) = next_piece(&mut body).await? else { return Ok(Bytes::new()) };
        if body.is_end_stream() { Ok(first) } else { gather(Connection::of(head), first, body, limit).await }
    };
    // The whole body, not a piece of it: a time-out that each byte renews never ends.
    let whole = timeout(config.body_timeout(), whole).await.map_err(|_| ApiError::BodyTimeout)??;
    Connection::of(head).body_was_read();
    Ok(whole)
}

async fn next_piece(body: &mut Body) -> Result<Option<Bytes>, ApiError> {
    while let Some(frame) = body.frame().await {
        // Trailers are of no interest.
        if let Ok(piece) = frame.map_err(|_| ApiError::BodyBroken)?.into_data() {
            return Ok(Some(piece));
        }
    }
    Ok(None)
}

/// Keeps the pieces of a body that did not come as one. Only such a one can stand still while it holds memory.
async fn gather(connection: &Arc<Connection>, first: Bytes, body: Body, limit: u32) -> Result<Bytes, ApiError> {
    let receiving = Receiving::start(connection);
    tokio::select! {
        received = receive(&receiving, first, body, limit) => received?,
        () = receiving.made_way() => return Err(ApiError::MadeWay),
    }
    Ok(receiving.finish()?.into())
}

async fn receive(receiving: &Receiving, first: Bytes, mut body: Body, limit: u32) -> Result<(), ApiError> {
    let (mut piece, mut room) = (first, limit as usize);
    loop {
        room = room.checked_sub(piece.len()).ok_or(ApiError::BodyTooLarge(limit))?;
        receiving.append(&piece)?;
        piece = match next_piece(&mut body).await? {
            Some(piece) => piece,
            None => return Ok(()),
        };
    }
}
