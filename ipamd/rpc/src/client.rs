//! One call to ipamd on a connection of its own, with a deadline on the connection and on the reply.
//!
//! The plugin lives for one call, so nothing is kept and nothing runs in the background: the request leaves
//! with the connection's first bytes (RFC 9113 §3.4 lets a client speak before the server's settings have
//! come), and while ipamd works the caller may do the same.

mod transport;

use std::future::{Future, poll_fn};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::{Response, Status};

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
    call_meanwhile(socket, deadlines, work, || ()).await
}

/// As [`call`], and does something else when the request has gone out and before the reply is looked for.
/// It is not done if the call fails before that. May block: nothing else waits for the runtime.
pub async fn call_meanwhile<T>(
    socket: &Path,
    deadlines: Deadlines,
    work: impl AsyncFnOnce(Transport) -> Result<Response<T>, Status>,
    meanwhile: impl FnOnce(),
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
    let conversation = async {
        let (transport, connection) = transport::handshake(stream).await?;
        let mut driver = pin!(connection);
        let mut reply = pin!(work(transport));
        let mut over = false;
        // The order matters: what the call wants to send, then the sending, then looking for what has come.
        let mut turn = move |cx: &mut std::task::Context<'_>| {
            if let Poll::Ready(reply) = reply.as_mut().poll(cx) {
                return Poll::Ready(reply);
            }
            if !over && driver.as_mut().poll(cx).is_ready() {
                // The call learns from its stream why.
                over = true;
            }
            reply.as_mut().poll(cx)
        };
        let mut meanwhile = Some(meanwhile);
        poll_fn(|cx| {
            let mut polled = turn(cx);
            if polled.is_pending()
                && let Some(meanwhile) = meanwhile.take()
            {
                meanwhile();
                polled = turn(cx);
            }
            polled
        })
        .await
    };
    match timeout(deadlines.reply, conversation).await {
        Ok(reply) => Ok(reply?.into_inner()),
        Err(_) => Err(Status::deadline_exceeded(format!(
            "no answer from {} within {:?}",
            socket.display(),
            deadlines.reply
        ))
        .into()),
    }
}

/// A request that carries its deadline to the server.
pub fn request<T>(message: T, deadlines: Deadlines) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(deadlines.reply);
    request
}
