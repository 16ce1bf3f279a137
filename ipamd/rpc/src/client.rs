//! Connects to ipamd's socket, with a deadline on the connection and on each reply.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

/// How long to wait for ipamd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// For the socket to accept. A daemon that has stopped working still accepts (the kernel does it).
    pub connect: Duration,
    /// For each reply, from the request's first byte. It is sent along, so that the server can stop too.
    pub reply: Duration,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The path cannot be part of an address.
    #[error("ipamd socket {path}: not valid UTF-8", path = .path.display())]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// Nobody listens, or may not be talked to.
    #[error("ipamd socket {path}: {reason}", path = .path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// What the system said, in its innermost words.
        reason: String,
        /// The error as the transport tells it.
        #[source]
        source: tonic::transport::Error,
    },
    /// The connection was not made in time.
    #[error("ipamd socket {path}: not accepted within {after:?}", path = .path.display())]
    Timeout {
        /// The socket.
        path: PathBuf,
        /// The deadline that passed.
        after: Duration,
    },
}

/// Connects to the daemon at `socket`; the channel then bounds every call by `deadlines.reply`.
///
/// *Errors*: [`ConnectError::Refused`] if nobody listens, [`ConnectError::Timeout`] after `deadlines.connect`.
/// *Needs*: a tokio runtime with I/O and time; write permission on the socket. *Cost*: one connection.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use selvage_ipamd_rpc::client::{Deadlines, connect};
/// use selvage_ipamd_rpc::{SOCKET_PATH, health};
/// use std::time::Duration;
///
/// let deadlines = Deadlines { connect: Duration::from_secs(2), reply: Duration::from_secs(5) };
/// let channel = connect(SOCKET_PATH.as_ref(), deadlines).await?;
/// let reply = health::health_client::HealthClient::new(channel)
///     .check(health::HealthCheckRequest { service: String::new() })
///     .await?;
/// println!("{:?}", reply.into_inner().status());
/// # Ok(())
/// # }
/// ```
pub async fn connect(socket: &Path, deadlines: Deadlines) -> Result<Channel, ConnectError> {
    let Some(text) = socket.to_str() else {
        return Err(ConnectError::Path {
            path: socket.to_owned(),
        });
    };
    let refused = |source: tonic::transport::Error| ConnectError::Refused {
        path: socket.to_owned(),
        reason: innermost(&source),
        source,
    };
    let endpoint = Endpoint::from_shared(format!("unix://{text}"))
        .map_err(refused)?
        .timeout(deadlines.reply);
    match tokio::time::timeout(deadlines.connect, endpoint.connect()).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(source)) => Err(refused(source)),
        Err(_) => Err(ConnectError::Timeout {
            path: socket.to_owned(),
            after: deadlines.connect,
        }),
    }
}

/// A request that carries its deadline to the server.
pub fn request<T>(message: T, deadlines: Deadlines) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(deadlines.reply);
    request
}

/// The last error of a chain: the transport's own words are only "transport error".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}
