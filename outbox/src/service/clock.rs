//! The one place that reads the wall clock; everything else takes the time as a parameter.
//! Leases and schedules go by the database's clock, not by this one.

use time::OffsetDateTime;

/// The time of this machine.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "this is the place")]
pub fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}
