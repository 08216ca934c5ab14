//! Why a request got no answer, in words that name neither the URL nor an address.

use std::error::Error;
use std::io;
use std::time::Duration;

use outbox::headers::HeaderError;
use outbox::target::TargetError;
use rustls::{AlertDescription, CertificateError};

use crate::keyring::KeyError;
use crate::target_guard::NameError;

/// Linux' numbers for "too many open files": of the system, and of the process.
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;

/// Why there is no answer. Shown in psql: it names neither the URL nor an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SendError {
    /// The URL may not be delivered to. Nothing was sent.
    #[error("target refused: {0}")]
    Target(#[from] TargetError),
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
    /// The worker is going down.
    #[error("the worker stopped before the answer came")]
    Stopped,
}

/// What went wrong, without the URL and the address in reqwest's own text.
pub(crate) fn describe(error: &reqwest::Error) -> SendError {
    let mut causes = std::iter::successors(error.source(), |&cause| cause.source());
    match causes.clone().find_map(|cause| cause.downcast_ref()) {
        Some(NameError::Refused(refused)) => return SendError::Target(refused.clone()),
        Some(unresolved @ NameError::NotResolved) => return SendError::Name(unresolved.to_string()),
        None => {}
    }
    if let Some(tls) = causes.clone().find_map(tls_cause) {
        return SendError::Connect(certificate_text(tls).to_owned());
    }
    if error.is_connect() && error.is_timeout() {
        return SendError::Connect("no connection in time".to_owned());
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

/// rustls hides its errors in those of the streams below it, one in another.
fn tls_cause<'a>(cause: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    match cause.downcast_ref::<io::Error>() {
        Some(io) => tls_cause(io.get_ref()?),
        None => cause.downcast_ref(),
    }
}

/// rustls's own text names hosts.
const fn certificate_text(error: &rustls::Error) -> &'static str {
    match error {
        rustls::Error::InvalidCertificate(reason) => match reason {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "the certificate has expired",
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the certificate is for another name"
            }
            CertificateError::UnknownIssuer => "the certificate's issuer is not trusted",
            _ => "the certificate is not valid",
        },
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied,
        ) => "the receiver asks for a client certificate that it trusts",
        _ => "TLS failed",
    }
}
