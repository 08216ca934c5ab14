//! `GET /health`, `GET /ready` and `GET /metrics`: for whoever runs the service.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Value, json};

use crate::App;

/// The process lives. Says nothing of Postgres: a restart would not bring that back.
pub(crate) async fn health() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// Whether webhooks can be accepted now and from now on, asked of Postgres itself.
pub(crate) async fn ready(State(app): State<Arc<App>>) -> (StatusCode, Json<Value>) {
    if app.stop.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "stopping" })));
    }
    let Ok(postgres) = app.postgres() else { return not_ready("has not answered yet") };
    match postgres.readiness.ask().await {
        Ok(()) => (StatusCode::OK, Json(json!({ "status": "ok", "postgres": "ok" }))),
        Err(obstacle) => not_ready(&obstacle.to_string()),
    }
}

fn not_ready(postgres: &str) -> (StatusCode, Json<Value>) {
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "unavailable", "postgres": postgres })))
}

/// Counters in Prometheus's text format.
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.metrics.render())
}
