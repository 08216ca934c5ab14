//! What a relay has to do next.

use std::time::Duration;

use tokio_postgres::{Error, GenericClient};

use super::statements::Statements;

/// What comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Next {
    /// How long until the next row becomes due, if that is within a second.
    pub due_in: Option<Duration>,
    /// Whether turns of ordering keys are to be given.
    pub turns_to_give: bool,
}

/// Says what comes next. Rows that are due already do not count: they are held by somebody, or were just looked at.
/// Lines of `ordering_checks` count from `from_id` on.
///
/// # Errors
/// The database cannot be asked.
pub async fn next_due(client: &impl GenericClient, statements: &Statements, from_id: i64) -> Result<Next, Error> {
    let row = client.query_one(&statements.next_due, &[&from_id]).await?;
    let seconds: Option<f64> = row.get("seconds");
    let due_in = seconds.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default());
    Ok(Next { due_in, turns_to_give: row.get("turns_to_give") })
}
