//! `GET /health`, `GET /ready` and `GET /metrics`: for whoever runs the service.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;

use crate::app::App;
use crate::model::{Health, ProbeStatus, Readiness};

/// The process lives. Says nothing of Postgres: a restart would not bring that back.
pub(crate) async fn health() -> Json<Health> {
    Json(Health { status: ProbeStatus::Ok })
}

/// Whether webhooks can be accepted now and from now on, asked of Postgres itself.
pub(crate) async fn ready(State(app): State<Arc<App>>) -> (StatusCode, Json<Readiness>) {
    if app.stop.is_cancelled() {
        let stopping = Readiness { postgres: None, status: ProbeStatus::Stopping };
        return (StatusCode::SERVICE_UNAVAILABLE, Json(stopping));
    }
    let Ok(postgres) = app.postgres() else { return not_ready("has not answered yet".to_owned()) };
    match postgres.readiness.ask().await {
        Ok(()) => (StatusCode::OK, Json(Readiness { postgres: Some("ok".to_owned()), status: ProbeStatus::Ok })),
        Err(obstacle) => not_ready(obstacle.to_string()),
    }
}

fn not_ready(postgres: String) -> (StatusCode, Json<Readiness>) {
    let body = Readiness { postgres: Some(postgres), status: ProbeStatus::Unavailable };
    (StatusCode::SERVICE_UNAVAILABLE, Json(body))
}

/// Counters in Prometheus's text format.
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.metrics.render())
}
