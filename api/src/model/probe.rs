//! What probes are told.

use serde::Serialize;

/// `GET /health`.
#[derive(Serialize)]
pub(crate) struct Health {
    pub status: ProbeStatus,
}

/// `GET /ready`.
#[derive(Serialize)]
pub(crate) struct Readiness {
    /// `ok`, or why no webhook can be accepted; nobody has asked when the service is about to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postgres: Option<String>,
    pub status: ProbeStatus,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ProbeStatus {
    Ok,
    Unavailable,
    /// Asked to end, and soon listening no more.
    Stopping,
}
