//! SIGHUP: what a process reads from files is read anew, and nothing else happens.

use std::fmt::Display;
use std::sync::{Arc, PoisonError, RwLock};

use clap::Parser;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::service::env;

/// SIGHUPs, which end nothing from here on.
pub struct Hangups(Signal);

/// Listens for SIGHUP; done before anything else is, so that one that comes early is not missed. SIGUSR1 and SIGUSR2,
/// which would end the process as well, are taken and mean nothing.
///
/// # Errors
/// The signal handlers cannot be installed.
pub fn listen() -> std::io::Result<Hangups> {
    for meaningless in [SignalKind::user_defined1(), SignalKind::user_defined2()] {
        // The handler stays when this is dropped.
        drop(signal(meaningless)?);
    }
    Ok(Hangups(signal(SignalKind::hangup())?))
}

impl Hangups {
    /// From here on, each has the configuration read anew and given to `apply`. If either fails, the process goes on with
    /// what it had, and says why. The task ends with the runtime.
    ///
    /// Variables and arguments stay as they are for as long as a process lives: only what stands in files is new.
    pub fn apply<Config, Error>(mut self, apply: impl Fn(Config) -> Result<(), Error> + Send + Sync + 'static)
    where
        Config: Parser + Send + 'static,
        Error: Display,
    {
        tokio::spawn(async move {
            while self.0.recv().await.is_some() {
                // A file may be on a disk that is slow to answer, and no delivery waits for it.
                let read = spawn_blocking(env::read_again::<Config>).await;
                let read = read.unwrap_or_else(|error| Err(error.to_string()));
                let applied = read.and_then(|config| apply(config).map_err(|error| error.to_string()));
                let outcome = if applied.is_ok() { "done" } else { "failed" };
                metrics::counter!("outhook_reloads_total", "outcome" => outcome).increment(1);
                match applied {
                    Ok(()) => info!("SIGHUP: read secrets and certificates anew"),
                    Err(error) => warn!(error, "SIGHUP: cannot read secrets and certificates anew; the old ones stay"),
                }
            }
        });
    }
}

/// What is replaced when it is read anew; whoever has taken it keeps the old one to the end.
#[derive(Debug, Default)]
pub struct Renewed<T>(RwLock<Arc<T>>);

impl<T> Renewed<T> {
    /// As it was read first.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self(RwLock::new(Arc::new(value)))
    }

    /// As it was read last.
    #[must_use]
    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts another one in its place.
    pub fn set(&self, value: T) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
    }
}
