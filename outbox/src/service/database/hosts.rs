//! Which of several servers to use: the first that answers and takes writes.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::sleep;

use super::url::{DatabaseUrl, Host};

/// The next host is tried when the one before has not answered for this long: a machine that is gone says nothing, and
/// whoever waits for the connection has less than a second.
const HEAD_START: Duration = Duration::from_millis(100);

impl DatabaseUrl {
    /// Connects to each of the hosts, the next one when the one before fails or is slow, and takes the first connection
    /// that is good.
    pub(super) async fn connect_to_one<'a, Connection, Error, Connecting>(
        &'a self,
        connect: impl Fn(&'a Host) -> Connecting,
    ) -> Result<Connection, Error>
    where
        Connecting: Future<Output = Result<Connection, Error>>,
    {
        let mut hosts = self.hosts.iter();
        let mut tries = FuturesUnordered::new();
        loop {
            tries.extend(hosts.next().map(&connect));
            let has_more = hosts.len() > 0;
            tokio::select! {
                Some(outcome) = tries.next() => match outcome {
                    Err(error) if !has_more && tries.is_empty() => return Err(error),
                    Err(_) => {}
                    Ok(connection) => return Ok(connection),
                },
                () = sleep(HEAD_START), if has_more => {}
            }
        }
    }
}
