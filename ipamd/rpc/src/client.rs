//! One call to ipamd on a connection of its own, with a deadline on the connection and on the reply.
//!
//! Nothing is kept and nothing runs in the background: the request leaves with the connection's first bytes
//! (RFC 9113 §3.4 lets a client speak before the server's settings have come). [`call`] is for who has a runtime,
//! [`blocking`] for who has not.

pub mod blocking;
mod transport;

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::{Response, Status};

use transport::converse;

pub use transport::Transport;

/// How long to wait for ipamd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// For the socket to accept. A daemon that has stopped working still accepts (the kernel does it).
    pub connect: Duration,
    /// For each reply, from the request's last byte. It is sent along, so that the server can stop too.
    pub reply: Duration,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens, or may not be talked to.
    #[error("ipamd socket {path}: {source}", path = .path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
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

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server said no, or nothing ([`tonic::Code::DeadlineExceeded`]), or the connection broke.
    #[error(transparent)]
    Status(Box<Status>),
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// Connects to the daemon at `socket` and makes one call.
///
/// *Errors*: [`CallError::Connect`] if nobody listens or accepts within `deadlines.connect`;
/// [`CallError::Status`] for what the server answers, or if it does not within `deadlines.reply`.
/// *Needs*: a tokio runtime with I/O and time; write permission on the socket. *Cost*: one connection, two
/// round trips.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use selvage_ipamd_rpc::client::{Deadlines, call, request};
/// use selvage_ipamd_rpc::health::{HealthCheckRequest, health_client::HealthClient};
/// use selvage_ipamd_rpc::SOCKET_PATH;
/// use std::time::Duration;
///
/// let deadlines = Deadlines { connect: Duration::from_secs(2), reply: Duration::from_secs(5) };
/// let reply = call(SOCKET_PATH.as_ref(), deadlines, async |ipamd| {
///     HealthClient::new(ipamd).check(request(HealthCheckRequest::default(), deadlines)).await
/// })
/// .await?;
/// println!("{:?}", reply.status());
/// # Ok(())
/// # }
/// ```
pub async fn call<T>(
    socket: &Path,
    deadlines: Deadlines,
    work: impl AsyncFnOnce(Transport) -> Result<Response<T>, Status>,
) -> Result<T, CallError> {
    let refused = |source| ConnectError::Refused {
        path: socket.to_owned(),
        source,
    };
    let stream = timeout(deadlines.connect, UnixStream::connect(socket))
        .await
        .map_err(|_| ConnectError::Timeout {
            path: socket.to_owned(),
            after: deadlines.connect,
        })?
        .map_err(refused)?;
    match timeout(deadlines.reply, converse(stream, work, || ())).await {
        Ok(reply) => Ok(reply?.into_inner()),
        Err(_) => Err(silent(socket, deadlines).into()),
    }
}

fn silent(socket: &Path, deadlines: Deadlines) -> Status {
    Status::deadline_exceeded(format!(
        "no answer from {} within {:?}",
        socket.display(),
        deadlines.reply
    ))
}

/// A request that carries its deadline to the server.
pub fn request<T>(message: T, deadlines: Deadlines) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(deadlines.reply);
    request
}
