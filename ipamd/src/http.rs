//! HTTP for pages that are read: enough for a scraper and for `curl`, and nothing else to go wrong.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::config::Listen;

/// An answer that takes longer is given up.
const DEADLINE: Duration = Duration::from_secs(5);
/// Requests are one line and a few headers.
const LONGEST_REQUEST: usize = 8 * 1024;
/// Connections at once.
const CONNECTIONS: usize = 16;

/// The address cannot be listened on.
#[derive(Debug, Error)]
#[error("pages on {listen}: {source}")]
pub struct HttpError {
    listen: Listen,
    source: io::Error,
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(addr) => write!(f, "{addr}"),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// HTTP's status.
    pub status: u16,
    /// What kind of text it is.
    pub content_type: &'static str,
    /// The text.
    pub body: String,
}

impl Page {
    /// Text for people.
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            body: body.into(),
        }
    }

    /// JSON.
    pub fn json(status: u16, body: String) -> Self {
        Self {
            status,
            content_type: "application/json",
            body,
        }
    }
}

/// Either kind of socket.
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Socket {
    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Socket::Tcp(listener) => Ok(Box::new(listener.accept().await?.0)),
            Socket::Unix(listener) => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}

/// Answers GET requests until `shutdown`; `pages` is asked for each path.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve<F, P>(
    listen: &Listen,
    pages: F,
    shutdown: CancellationToken,
) -> Result<(), HttpError>
where
    F: Fn(String) -> P + Clone + Send + Sync + 'static,
    P: Future<Output = Page> + Send + 'static,
{
    let bound = match listen {
        Listen::Tcp(addr) => TcpListener::bind(addr).await.map(Socket::Tcp),
        Listen::Unix(path) => bind(path).map(Socket::Unix),
    };
    let socket = bound.map_err(|source| HttpError {
        listen: listen.clone(),
        source,
    })?;
    serve_on(socket, pages, shutdown).await;
    Ok(())
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    crate::server::listen(path)
}

async fn serve_on<F, P>(socket: Socket, pages: F, shutdown: CancellationToken)
where
    F: Fn(String) -> P + Clone + Send + Sync + 'static,
    P: Future<Output = Page> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = socket.accept() => accepted,
        };
        while connections.try_join_next().is_some() {}
        match (accepted, places.clone().try_acquire_owned()) {
            (Ok(stream), Ok(place)) => {
                let pages = pages.clone();
                connections.spawn(async move {
                    let answered = tokio::time::timeout(DEADLINE, answer(stream, pages)).await;
                    debug!(ok = matches!(answered, Ok(Ok(()))), "page");
                    drop(place);
                });
            }
            // Too many at once: this one is closed.
            (Ok(_), Err(_)) => {}
            // Out of descriptors, most likely; the next one may do.
            (Err(error), _) => {
                debug!(%error, "connection refused");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    connections.shutdown().await;
}

async fn answer<F, P>(mut stream: Box<dyn Stream>, pages: F) -> io::Result<()>
where
    F: Fn(String) -> P,
    P: Future<Output = Page>,
{
    let mut request = Vec::new();
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        if request.len() > LONGEST_REQUEST || stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let line = request.split(|b| *b == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    let (method, path) = (words.next(), words.next());
    let path = path.and_then(|p| p.split('?').next());
    let page = match (method, path) {
        (Some("GET"), Some(path)) => pages(path.to_owned()).await,
        (_, _) => Page::text(405, "GET only\n"),
    };
    let reason = match page.status {
        200 => "OK",
        404 => "Not Found",
        405 => "Method Not Allowed",
        503 => "Service Unavailable",
        _ => "See Body",
    };
    let head = format!(
        "HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        page.status,
        page.content_type,
        page.body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(page.body.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpStream, UnixStream};

    use super::*;

    async fn pages(path: String) -> Page {
        match path.as_str() {
            "/here" => Page::text(200, "a page\n"),
            _ => Page::text(404, "see /here\n"),
        }
    }

    async fn ask(mut stream: impl Stream, request: &[u8]) -> String {
        stream.write_all(request).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        reply
    }

    #[tokio::test]
    async fn a_reader_gets_the_page_and_others_are_told_where_it_is() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let served = tokio::spawn(serve_on(Socket::Tcp(listener), pages, shutdown.clone()));
        let get = async |request: &str| {
            let stream = TcpStream::connect(addr).await.unwrap();
            ask(stream, request.as_bytes()).await
        };
        let page = get("GET /here?x=1 HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
        assert!(page.ends_with("\r\n\r\na page\n"), "{page}");
        let other = get("GET / HTTP/1.1\r\n\r\n").await;
        assert!(other.starts_with("HTTP/1.1 404 "), "{other}");
        let post = get("POST /here HTTP/1.1\r\n\r\n").await;
        assert!(post.starts_with("HTTP/1.1 405 "), "{post}");
        let garbage = get("\u{0}\u{1}\r\n\r\n").await;
        assert!(garbage.starts_with("HTTP/1.1 405 "), "{garbage}");
        shutdown.cancel();
        served.await.unwrap();
    }

    #[tokio::test]
    async fn pages_are_served_on_a_unix_socket_too_also_where_an_old_one_lies() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pages.sock");
        for _ in 0..2 {
            let shutdown = CancellationToken::new();
            let listen = Listen::Unix(path.clone());
            let stop = shutdown.clone();
            let served = tokio::spawn(async move { serve(&listen, pages, stop).await });
            let mut tries = 0;
            let stream = loop {
                match UnixStream::connect(&path).await {
                    Ok(stream) => break stream,
                    Err(error) => assert!(tries < 100, "{error}"),
                }
                tries += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            };
            let page = ask(stream, b"GET /here HTTP/1.1\r\n\r\n").await;
            assert!(page.ends_with("a page\n"), "{page}");
            shutdown.cancel();
            served.await.unwrap().unwrap();
        }
    }
}
