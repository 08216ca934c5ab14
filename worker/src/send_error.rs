//! Why a request got no answer, in words that name neither the URL nor an address.

use std::error::Error;
use std::io;
use std::time::Duration;

use outbox::target::TargetError;
use outbox::target::headers::HeaderError;

use crate::keyring::KeyError;
use crate::target_guard::NameError;
use crate::tls;

/// Linux' numbers for "too many open files": of the system, and of the process.
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;

/// Why there is no answer. Shown in psql: it names neither the URL nor an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SendError {
    /// A column of the job's row holds what is none of its kind. Nothing was sent.
    #[error("the column {0} of webhook_jobs cannot be read")]
    Unreadable(&'static str),
    /// The URL may not be delivered to. Nothing was sent.
    #[error("target refused: {0}")]
    Target(#[from] TargetError),
    /// None of the addresses that the host's name has now may be delivered to. Nothing was sent.
    #[error("target refused: {0}")]
    Addresses(TargetError),
    /// The job's own headers cannot be sent. Nothing was.
    #[error("{0}")]
    Headers(#[from] HeaderError),
    /// It cannot be signed as it must be. Nothing was sent.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The name does not resolve, perhaps only now.
    #[error("{0}")]
    Name(String),
    /// No connection.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The total time-out.
    #[error("no answer within {} s", .0.as_secs_f64())]
    Timeout(Duration),
    /// Anything after the connection was there.
    #[error("the request failed: {0}")]
    Request(String),
    /// The worker stood still before the request left. Nothing was sent, and it may be sent if there is still time.
    #[error("the worker stood still")]
    Late,
    /// The worker is going down.
    #[error("the worker stopped before the answer came")]
    Stopped,
}

impl SendError {
    /// What went wrong, in one word for traces.
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "unreadable",
            Self::Target(_) | Self::Addresses(_) => "target_refused",
            Self::Headers(_) => "headers",
            Self::Key(_) => "signing_key",
            Self::Name(_) => "name_not_resolved",
            Self::Connect(_) => "not_connected",
            Self::Timeout(_) => "timeout",
            Self::Request(_) => "request_failed",
            Self::Late => "late",
            Self::Stopped => "stopped",
        }
    }

    pub(crate) fn not_connected() -> Self {
        Self::Connect("no connection in time".to_owned())
    }
}

/// What went wrong, without the URL and the address in reqwest's own text.
pub(crate) fn describe(error: &reqwest::Error) -> SendError {
    let mut causes = std::iter::successors(error.source(), |&cause| cause.source());
    match causes.clone().find_map(|cause| cause.downcast_ref()) {
        Some(NameError::Refused(refused)) => return SendError::Addresses(refused.clone()),
        Some(unresolved @ NameError::NotResolved) => return SendError::Name(unresolved.to_string()),
        None => {}
    }
    if let Some(reason) = causes.clone().find_map(tls::describe) {
        return SendError::Connect(reason);
    }
    if error.is_connect() && error.is_timeout() {
        return SendError::not_connected();
    }
    let io = causes.clone().filter_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    let io = io.filter(|&kind| kind != io::ErrorKind::Other).map(|kind| kind.to_string()).next();
    let root = io.or_else(|| causes.by_ref().last().map(ToString::to_string)).unwrap_or_default();
    if error.is_connect() { SendError::Connect(root) } else { SendError::Request(root) }
}

/// Whether the process or the system may open no more files, which sockets are too.
pub(crate) fn lacks_descriptors(error: &reqwest::Error) -> bool {
    let mut causes = std::iter::successors(error.source(), |&cause| cause.source());
    let io = causes.find_map(|cause| cause.downcast_ref::<io::Error>());
    io.and_then(io::Error::raw_os_error).is_some_and(|code| [EMFILE, ENFILE].contains(&code))
}

/// Whether an HTTP/2 receiver says that it has not begun with the request: it refused the stream, or takes no more on this
/// connection and has not come to it (RFC 9113, sections 6.8 and 8.7).
pub(crate) fn was_not_processed(error: &reqwest::Error) -> bool {
    let mut causes = std::iter::successors(error.source(), |&cause| cause.source());
    let Some(error) = causes.find_map(|cause| cause.downcast_ref::<h2::Error>()) else { return false };
    let is_refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    let is_too_late = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
    error.is_remote() && (is_refused || is_too_late)
}
