//! Which path and method goes to which handler; the handlers, one file each.

mod destination_keys;
mod probes;
mod webhooks;

use std::sync::Arc;

use axum::routing::{delete, get, post, put};
use axum::{Router, middleware};

use crate::app::App;
use crate::error::ApiError;
use crate::request_id::identify;

pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/webhooks", post(webhooks::accept))
        .route("/webhooks/{id}", get(webhooks::show).delete(webhooks::cancel))
        .route("/destinations/keys", put(destination_keys::set).get(destination_keys::list))
        .route("/destinations/keys/{id}", delete(destination_keys::remove))
        .route("/health", get(probes::health))
        .route("/ready", get(probes::ready))
        .route("/metrics", get(probes::metrics))
        .fallback(async || ApiError::NotFound)
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .layer(middleware::from_fn(identify))
        .with_state(app)
}
