//! Why a turn failed, and which of the servers failed it.

use outbox::broker::topology::BrokerError;
use outbox::service::database::DatabaseError;
use outbox::service::telemetry::{Readiness, Server};

/// What was lost.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("RabbitMQ takes no messages for now: see whether it lacks memory or disk (rabbitmqctl status)")]
    Blocked,
    #[error(
        "RabbitMQ answers and confirms nothing: its queue has no leader, for a node is away; waiting for the next one"
    )]
    Unconfirmed,
    #[error("nothing answered in time")]
    Everything,
}

impl From<tokio_postgres::Error> for Lost {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database(error.into())
    }
}

impl Lost {
    /// Counts it, and lets probes say it.
    pub(crate) fn report(&self, readiness: &Readiness) {
        let (servers, what): (&[Server], _) = match self {
            Self::Database(_) => (&[Server::Postgres], "is not reached"),
            Self::Broker(_) => (&[Server::RabbitMq], "is not reached"),
            Self::Blocked => (&[Server::RabbitMq], "takes no messages for now"),
            Self::Unconfirmed => (&[Server::RabbitMq], "confirms nothing for now"),
            Self::Everything => (&[Server::Postgres, Server::RabbitMq], "does not answer in time"),
        };
        for &server in servers {
            let name = if server == Server::Postgres { "postgres" } else { "rabbitmq" };
            // Its connection stays.
            if !matches!(self, Self::Unconfirmed) {
                metrics::counter!("outhook_relay_reconnects_total", "server" => name).increment(1);
            }
            readiness.lost(server, what);
        }
    }
}
