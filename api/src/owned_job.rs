//! What a path names by its id, for whoever has the token.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use uuid::Uuid;

use crate::App;
use crate::authorized::Authorized;
use crate::error::ApiError;

/// The `{id}` of `/webhooks/{id}`. Whether there is such a job is not known yet.
pub(crate) struct OwnedJob(pub Uuid);

impl FromRequestParts<Arc<App>> for OwnedJob {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        Authorized::from_request_parts(parts, app).await?;
        id_of(parts, app).await.map(Self)
    }
}

/// The `{id}` of `/destinations/keys/{id}`. Whether there is such a key is not known yet.
pub(crate) struct OwnedKey(pub Uuid);

impl FromRequestParts<Arc<App>> for OwnedKey {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        Authorized::from_request_parts(parts, app).await?;
        id_of(parts, app).await.map(Self)
    }
}

async fn id_of(parts: &mut Parts, app: &Arc<App>) -> Result<Uuid, ApiError> {
    let Path(id) = Path::<String>::from_request_parts(parts, app).await.map_err(|_| ApiError::NotFound)?;
    id.parse().map_err(|_| ApiError::NotFound)
}
