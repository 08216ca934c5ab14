//! Why the broker cannot be worked with, said once, and what to do about it.

use std::io;

use lapin::ErrorKind;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use rustls::{AlertDescription, CertificateError};
use tokio::time::timeout;

use super::BROKER_TIMEOUT;

/// What is asked for first: whether it is a user's right to come in is answered with it.
pub(super) const CONNECTION: &str = "the connection";

/// Why the broker cannot be worked with now.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// RabbitMQ or its client says no to what was asked for.
    #[error("RabbitMQ: {}", explained(.0, .1))]
    Client(&'static str, lapin::Error),
    /// No answer within [`BROKER_TIMEOUT`].
    #[error("RabbitMQ did not answer {0} in time: see whether it lacks memory or disk (rabbitmqctl status)")]
    Timeout(&'static str),
}

impl BrokerError {
    /// Whether RabbitMQ failed at what it was asked for: 541, `INTERNAL_ERROR`.
    #[must_use]
    pub fn is_internal(&self) -> bool {
        self.refusal() == Some(&AMQPErrorKind::Hard(AMQPHardError::INTERNALERROR))
    }

    pub(super) fn is_not_found(&self) -> bool {
        self.refusal() == Some(&AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND))
    }

    /// Whether the user lacks a right.
    #[must_use]
    pub fn is_access_refused(&self) -> bool {
        self.refusal() == Some(&AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED))
    }

    fn refusal(&self) -> Option<&AMQPErrorKind> {
        match self {
            Self::Client(_, error) => match error.kind() {
                ErrorKind::ProtocolError(refusal) => Some(refusal.kind()),
                _ => None,
            },
            Self::Timeout(_) => None,
        }
    }
}

/// Waits for the broker's answer, but no longer than [`BROKER_TIMEOUT`].
///
/// # Errors
/// The answer is an error, or there is none in time.
pub async fn within<T>(
    what: &'static str,
    answer: impl Future<Output = Result<T, lapin::Error>>,
) -> Result<T, BrokerError> {
    let answer = timeout(BROKER_TIMEOUT, answer).await.map_err(|_| BrokerError::Timeout(what))?;
    answer.map_err(|error| BrokerError::Client(what, error))
}

/// What is wrong, and what to do. RabbitMQ's own text begins with the name of its code, which the client's text has as
/// well.
fn explained(asked: &str, error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(refusal) => {
            let text = refusal.get_message().as_str();
            let text = text.split_once(" - ").map_or(text, |(_, text)| text).trim_end_matches('.');
            format!("{text}: {}", advice(asked, refusal.kind()))
        }
        ErrorKind::IOError(error) => match error.get_ref().and_then(|cause| cause.downcast_ref()) {
            Some(cause) => advice_on_tls(cause).to_owned(),
            // A port for TLS takes the beginning of AMQP for garbage and hangs up.
            None if asked == CONNECTION && error.kind() == io::ErrorKind::ConnectionAborted => {
                format!("{error}: see that RABBITMQ_URL names its port for AMQP 0-9-1; where that is one for TLS, it says amqps")
            }
            None => format!("{error}: see that it runs, where RABBITMQ_URL says"),
        },
        ErrorKind::ParsingError(_) | ErrorKind::InvalidProtocolVersion(_) => {
            "what answers does not speak AMQP: see that RABBITMQ_URL names its port for AMQP 0-9-1; where that is one for \
             TLS, it says amqps"
                .to_owned()
        }
        _ => format!("{error}: trying again"),
    }
}

/// rustls's own text is long, and names hosts.
fn advice_on_tls(error: &rustls::Error) -> &'static str {
    match error {
        rustls::Error::InvalidMessage(_) => {
            "what answers does not speak TLS: where RABBITMQ_URL names a port without it, it says amqp"
        }
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "its certificate is of nobody who is trusted: RABBITMQ_CA_FILE names whom to trust"
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "its certificate is for another name than RABBITMQ_URL has",
        rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "its certificate has expired"
        }
        rustls::Error::InvalidCertificate(_) => {
            "its certificate is not valid: see that it is one for servers, and of today"
        }
        rustls::Error::AlertReceived(
            AlertDescription::HandshakeFailure
            | AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA,
        ) => {
            "it asks for a client certificate that it trusts: RABBITMQ_CLIENT_CERT_FILE and RABBITMQ_CLIENT_KEY_FILE name one"
        }
        rustls::Error::General(_) => "nobody is trusted: install the system's CA certificates, or set RABBITMQ_CA_FILE",
        _ => "TLS failed: see RabbitMQ's log",
    }
}

fn advice(asked: &str, refusal: &AMQPErrorKind) -> &'static str {
    use AMQPErrorKind::{Hard, Soft};
    match refusal {
        Soft(AMQPSoftError::ACCESSREFUSED) if asked == CONNECTION => "see user and password in RABBITMQ_URL",
        Soft(AMQPSoftError::ACCESSREFUSED) => "give the user its permissions, as scripts/rabbitmq-users has them",
        Soft(AMQPSoftError::NOTFOUND) => "see that a relay runs, which declares it",
        Soft(AMQPSoftError::PRECONDITIONFAILED) => {
            "what exists differs from what is asked for: delete it, or set RABBITMQ_EXCHANGE or RABBITMQ_QUEUE to \
             another name"
        }
        Soft(AMQPSoftError::RESOURCELOCKED) => "end the other connection, which has it for itself",
        Hard(AMQPHardError::NOTALLOWED) => {
            "RABBITMQ_URL must end with a virtual host that exists and that the user may use; write %2f for the default \
             one"
        }
        Hard(AMQPHardError::CONNECTIONFORCED) => "trying again until it is back",
        Hard(AMQPHardError::NOTIMPLEMENTED) => "RabbitMQ 3.10 or later is needed",
        _ => "see RabbitMQ's log",
    }
}

#[cfg(test)]
mod tests {
    use lapin::protocol::AMQPError;

    use super::*;

    #[test]
    fn a_refusal_is_said_once_and_with_what_to_do() {
        let refused = |asked, kind: AMQPErrorKind, text: &str| {
            let error = lapin::Error::from(ErrorKind::ProtocolError(AMQPError::new(kind, text.into())));
            BrokerError::Client(asked, error).to_string()
        };
        assert_eq!(
            refused("the queue", AMQPSoftError::NOTFOUND.into(), "NOT_FOUND - no queue 'a' in vhost '/'"),
            "RabbitMQ: no queue 'a' in vhost '/': see that a relay runs, which declares it"
        );
        assert_eq!(
            refused(CONNECTION, AMQPSoftError::ACCESSREFUSED.into(), "ACCESS_REFUSED - Login was refused."),
            "RabbitMQ: Login was refused: see user and password in RABBITMQ_URL"
        );
    }
}
