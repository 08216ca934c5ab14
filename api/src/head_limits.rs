//! How long a request's head may be. The server refuses what is longer, and the error says so.

/// More headers than this are answered with 431.
pub(crate) const MAX_HEADERS: usize = 100;

/// Most bytes of a request's head.
pub(crate) const MAX_HEAD_BYTES: usize = 64 * 1024;
