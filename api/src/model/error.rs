//! The body of every error.

use serde::Serialize;

#[derive(Serialize)]
pub(crate) struct ErrorBody<'a> {
    pub error: ErrorDetails<'a>,
}

#[derive(Serialize)]
pub(crate) struct ErrorDetails<'a> {
    /// For programs.
    pub code: &'a str,
    /// For people.
    pub message: &'a str,
    /// As in `X-Request-Id`.
    pub request_id: &'a str,
}
