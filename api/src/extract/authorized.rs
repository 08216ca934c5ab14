//! Whether a request comes from whoever runs the service: the bearer token.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;

use crate::app::App;
use crate::connections::Connection;
use crate::error::ApiError;

/// The request has the token. Taken before anything else of it is looked at.
pub(crate) struct Authorized;

impl FromRequestParts<Arc<App>> for Authorized {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let given = token(&parts.headers);
        let config = app.config();
        let expected = config.server.api_token.expose_secret();
        let equal = given.is_some_and(|given| given.as_bytes().ct_eq(expected.as_bytes()).into());
        if !equal {
            return Err(ApiError::Unauthorized);
        }
        Connection::of(parts).verified()?;
        Ok(Self)
    }
}

/// The token of `Authorization: Bearer …`. The scheme may be in any case (RFC 9110, section 11.1).
fn token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start())
}
