//! The job that a path names, for whoever has the token.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Path};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;
use uuid::Uuid;

use crate::App;
use crate::error::ApiError;

/// The `{id}` of `/webhooks/{id}`. Whether there is such a job is not known yet.
pub(crate) struct OwnedJob(pub Uuid);

impl FromRequestParts<Arc<App>> for OwnedJob {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        authorize(app, &parts.headers)?;
        let Path(id) = Path::<String>::from_request_parts(parts, app).await.map_err(|_| ApiError::NotFound)?;
        id.parse().map(Self).map_err(|_| ApiError::NotFound)
    }
}

fn authorize(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let expected = app.config.server.api_token.expose_secret();
    let equal = given.is_some_and(|given| given.as_bytes().ct_eq(expected.as_bytes()).into());
    if equal { Ok(()) } else { Err(ApiError::Unauthorized) }
}
