//! `GET /health`, `GET /ready` and `GET /metrics`: for whoever runs the service.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use outbox::database::on_connection;
use serde_json::{Value, json};

use crate::App;

/// The process lives. Says nothing of Postgres: a restart would not bring that back.
pub(crate) async fn health() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// Whether webhooks can be accepted now, asked of Postgres itself.
pub(crate) async fn ready(State(app): State<Arc<App>>) -> (StatusCode, Json<Value>) {
    let asked = on_connection(&app.pool, async |connection| {
        sqlx::query_scalar::<_, bool>("SELECT pg_is_in_recovery()").fetch_one(connection).await
    });
    match asked.await {
        Ok(false) => (StatusCode::OK, Json(json!({ "status": "ok", "postgres": "ok" }))),
        Ok(true) => not_ready("in recovery: it takes no writes"),
        Err(sqlx::Error::PoolTimedOut) => not_ready("no connection in time"),
        Err(_) => not_ready("does not answer"),
    }
}

fn not_ready(postgres: &str) -> (StatusCode, Json<Value>) {
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "unavailable", "postgres": postgres })))
}

/// Counters in Prometheus's text format.
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.metrics.render())
}
