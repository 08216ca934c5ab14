//! A moment in an answer.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// In RFC 3339. Where Postgres makes the JSON it is Postgres' own text, with `+00:00` at its end; elsewhere `Z` stands there.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Timestamp(String);

impl From<OffsetDateTime> for Timestamp {
    fn from(moment: OffsetDateTime) -> Self {
        Self(moment.format(&Rfc3339).expect("Postgres' moments have a text"))
    }
}
