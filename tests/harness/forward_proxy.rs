//! A forward proxy that remembers what it was asked for.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;

use crate::raw_server::{Connection, RawServer};

/// A forward proxy to whom every name is that of one server. Its requests are those of the returned server.
pub async fn forward_proxy(server: SocketAddr) -> RawServer {
    RawServer::start(move |connection| forward(connection, server)).await
}

/// A tunnel for CONNECT; anything else is handed on as it is, and so is what follows on the connection.
async fn forward(mut client: Connection, server: SocketAddr) -> io::Result<()> {
    let request = client.request().await?;
    let mut server = TcpStream::connect(server).await?;
    if request.starts_with("CONNECT ") {
        client.stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    } else {
        server.write_all(request.as_bytes()).await?;
    }
    copy_bidirectional(&mut client.stream, &mut server).await.map(|_| ())
}
