//! Sends a request by a client's connections, in its turn.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::HeaderMap;
use reqwest::{Body, Client, Response};
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;
use url::Url;

use super::SendError;
use super::payload::{Payload, TICK, Turn};
use crate::send_error::{describe, lacks_descriptors, was_not_processed};

/// How soon to look again whether a file descriptor is free.
const DESCRIPTOR_WAIT: Duration = Duration::from_millis(100);

/// A request, as often as it has to be sent.
pub(super) struct Outgoing {
    pub url: Url,
    pub headers: HeaderMap,
    pub payload: Bytes,
}

/// What became of a request.
pub(super) enum Sent {
    /// The head of the answer.
    Answered(Response),
    /// It did not begin to leave in time, and does not any more.
    NoTurn,
    /// The receiver has not begun with it, or its connection was gone before its turn. At most its head was sent.
    Unsent(SendError),
}

/// Sends the request. That no socket can be opened is no fault of the receiver's and must not count as a failed attempt:
/// nothing was sent, so it waits, in its slot, for others to end. With `patience` it waits no longer than that for its turn.
pub(super) async fn send(client: &Client, request: &Outgoing, patience: Option<Duration>) -> Result<Sent, SendError> {
    let mut waited = false;
    loop {
        let turn = Turn::of(&request.payload);
        let _waited_for = turn.while_waited_for();
        let body = Body::wrap(Payload::new(request.payload.clone(), turn.clone()));
        let sending = client.post(request.url.clone()).headers(request.headers.clone()).body(body).send();
        let Some(sent) = in_turn(sending, &turn, patience).await? else { return Ok(Sent::NoTurn) };
        match sent {
            Ok(response) => return Ok(Sent::Answered(response)),
            Err(_) if turn.is_withdrawn() => return Err(SendError::Late),
            Err(error) if error.is_connect() && lacks_descriptors(&error) => {}
            Err(error) if was_not_processed(&error) || (!error.is_connect() && turn.withdraw()) => {
                return Ok(Sent::Unsent(describe(&error)));
            }
            Err(error) => return Err(describe(&error)),
        }
        if !waited {
            warn!("no file descriptor is free: waiting for one");
            metrics::counter!("outhook_worker_descriptor_waits_total").increment(1);
            waited = true;
        }
        sleep(DESCRIPTOR_WAIT).await;
    }
}

/// Waits for what comes of a request, and as long as it waits for its turn, looks at the time.
async fn in_turn<Sent>(
    sending: impl Future<Output = Sent>,
    turn: &Turn,
    patience: Option<Duration>,
) -> Result<Option<Sent>, SendError> {
    let (mut sending, from) = (pin!(sending), Instant::now());
    loop {
        if let Ok(sent) = timeout(TICK, &mut sending).await {
            return Ok(Some(sent));
        }
        if turn.stood_still() && turn.withdraw() {
            return Err(SendError::Late);
        }
        if patience.is_some_and(|patience| from.elapsed() >= patience) && turn.withdraw() {
            return Ok(None);
        }
        if turn.has_begun() {
            return Ok(Some(sending.await));
        }
        turn.is_alive();
    }
}
