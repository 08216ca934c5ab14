//! A request that was signed by somebody who knows a secret.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use outbox::service::clock;
use time::OffsetDateTime;

use super::json_body::JsonBody;
use crate::app::App;
use crate::connections::Connection;
use crate::error::ApiError;

pub(crate) struct SignedRequest {
    pub headers: HeaderMap,
    pub body: JsonBody,
    /// The id that was signed with it, in the timestamped scheme.
    pub webhook_id: Option<String>,
    /// When it was verified, which was before anything of its body was read as JSON.
    pub verified_at: OffsetDateTime,
    /// When its head was there, should it become a trace.
    pub began: Option<SystemTime>,
}

impl FromRequest<Arc<App>> for SignedRequest {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let began = traces::now();
        let (head, body) = request.into_parts();
        let config = app.config();
        let body = JsonBody::receive(&head, body, &config.server).await?;
        let now = clock::now();
        let (secrets, require_timestamp) = (&config.accept.hmac_secret, config.accept.require_timestamp);
        let verified = secrets.verify(&head.headers, body.bytes(), now, require_timestamp)?;
        Connection::of(&head).verified()?;
        Ok(Self { headers: head.headers, body, webhook_id: verified.webhook_id, verified_at: now, began })
    }
}
