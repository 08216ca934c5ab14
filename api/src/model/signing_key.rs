//! Signing keys of destinations as they may be seen: no key, but for the public one of a pair.

use outbox::destination::Destination;
use serde::Serialize;
use uuid::Uuid;

use super::timestamp::Timestamp;

/// A key was set.
#[derive(Serialize)]
pub(crate) struct SigningKeyReceipt {
    pub destination: Destination,
    pub key_id: Uuid,
    pub public_key: Option<String>,
    pub scheme: &'static str,
}

/// A key was removed.
#[derive(Serialize)]
pub(crate) struct SigningKeyRemoval {
    pub key_id: Uuid,
    pub message: &'static str,
}

/// The keys of a destination, the newest first.
#[derive(Serialize)]
pub(crate) struct SigningKeyList {
    pub destination: Destination,
    pub keys: Vec<SigningKeyDetails>,
}

#[derive(Serialize)]
pub(crate) struct SigningKeyDetails {
    pub created_at: Timestamp,
    /// Why it cannot be opened, if that is so.
    pub error: Option<String>,
    pub expires_at: Option<Timestamp>,
    pub key_id: Uuid,
    pub public_key: Option<String>,
    pub scheme: String,
}
