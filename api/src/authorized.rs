//! Whether a request comes from whoever runs the service: the bearer token.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;

use crate::App;
use crate::error::ApiError;

/// The request has the token. Taken before anything else of it is looked at.
pub(crate) struct Authorized;

impl FromRequestParts<Arc<App>> for Authorized {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let given = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let expected = app.config.server.api_token.expose_secret();
        let equal = given.is_some_and(|given| given.as_bytes().ct_eq(expected.as_bytes()).into());
        if equal { Ok(Self) } else { Err(ApiError::Unauthorized) }
    }
}
