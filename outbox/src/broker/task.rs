//! The task that wakes a worker. Thin: payloads and secrets stay in Postgres.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::destination::Destination;

/// Newest version of the task that this build writes.
const VERSION: u8 = 1;

/// Body of a task in the queue, as JSON. Readers ignore fields that they do not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    #[serde(rename = "v")]
    version: u8,
    /// The job in `webhook_jobs`.
    pub job_id: Uuid,
    /// The job's `attempt` when the task was made: what the claim must find.
    pub attempt: i32,
    /// The job's row in `outbox`.
    pub outbox_id: i64,
    /// W3C trace context of the accepting request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// The installation of Outhook that the job is of, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installation: Option<Uuid>,
    /// Where the job goes, if that is known.
    #[serde(default, skip_serializing_if = "Destination::is_unknown")]
    pub destination: Destination,
    /// Set free from a hold of its destination: it is not to be held again for what was known before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub released: bool,
    /// Its destination has a limit of webhooks a second: it needs a slot before it may go.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub limited: bool,
    /// Length of the job's payload, if it is long enough to matter ([`LARGE_PAYLOAD`]).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub payload_bytes: u32,
}

/// Payloads of fewer bytes are not counted: as many as a worker has slots are small change.
pub const LARGE_PAYLOAD: u32 = 65_536;

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it like this")]
const fn is_zero(bytes: &u32) -> bool {
    *bytes == 0
}

impl Task {
    /// A task of this build's version.
    #[must_use]
    pub fn new(job_id: Uuid, attempt: i32, outbox_id: i64, traceparent: Option<String>) -> Self {
        Self {
            version: VERSION,
            job_id,
            attempt,
            outbox_id,
            traceparent,
            installation: None,
            destination: Destination::default(),
            released: false,
            limited: false,
            payload_bytes: 0,
        }
    }

    /// The same, and where its job goes.
    #[must_use]
    pub fn to(self, destination: Destination, released: bool) -> Self {
        Self { destination, released, ..self }
    }

    /// The bytes that travel.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a struct of numbers and strings is always JSON")
    }

    /// Reads what travelled.
    ///
    /// # Errors
    /// It is not a task: poison, to be dead-lettered.
    pub fn decode(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn travels_as_small_json_and_back() {
        let task = Task::new(Uuid::from_u128(7), 2, 41, None);
        let bytes = task.encode();
        assert_eq!(
            String::from_utf8_lossy(&bytes),
            r#"{"v":1,"job_id":"00000000-0000-0000-0000-000000000007","attempt":2,"outbox_id":41}"#
        );
        assert_eq!(Task::decode(&bytes).expect("it was just encoded"), task);
    }

    #[test]
    fn says_where_it_goes_if_it_is_known() {
        let task = Task::new(Uuid::from_u128(7), 2, 41, None).to("https://example.com".to_owned().into(), true);
        let bytes = task.encode();
        assert!(String::from_utf8_lossy(&bytes).ends_with(r#","destination":"https://example.com","released":true}"#));
        assert_eq!(Task::decode(&bytes).expect("it was just encoded"), task);
    }

    #[test]
    fn a_later_version_with_more_fields_is_read() {
        let later =
            br#"{"v":2,"job_id":"00000000-0000-0000-0000-000000000007","attempt":0,"outbox_id":1,"lane":"slow"}"#;
        assert_eq!(Task::decode(later).expect("unknown fields are ignored").outbox_id, 1);
    }

    #[test]
    fn garbage_is_refused() {
        for garbage in [&b""[..], b"{}", b"\xff\x00", br#"{"v":1,"job_id":"x","attempt":0,"outbox_id":1}"#] {
            assert!(Task::decode(garbage).is_err());
        }
    }
}
