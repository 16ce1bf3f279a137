//! HTTP for one page: enough for a scraper, and nothing else to go wrong.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{Metrics, Snapshot};

/// A scrape that takes longer is given up.
const DEADLINE: Duration = Duration::from_secs(5);
/// Requests are one line and a few headers.
const LONGEST_REQUEST: usize = 8 * 1024;
/// Connections at once.
const CONNECTIONS: usize = 16;

/// The address cannot be listened on.
#[derive(Debug, Error)]
#[error("metrics on {addr}: {source}")]
pub struct MetricsError {
    addr: SocketAddr,
    source: std::io::Error,
}

/// Answers `GET /metrics` until `shutdown`. `snapshot` is asked once for each scrape.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve<F, S>(
    addr: SocketAddr,
    metrics: Arc<Metrics>,
    snapshot: F,
    shutdown: CancellationToken,
) -> Result<(), MetricsError>
where
    F: Fn() -> S + Clone + Send + Sync + 'static,
    S: Future<Output = Snapshot> + Send,
{
    let error = |source| MetricsError { addr, source };
    let listener = TcpListener::bind(addr).await.map_err(error)?;
    serve_on(listener, metrics, snapshot, shutdown).await;
    Ok(())
}

async fn serve_on<F, S>(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    snapshot: F,
    shutdown: CancellationToken,
) where
    F: Fn() -> S + Clone + Send + Sync + 'static,
    S: Future<Output = Snapshot> + Send,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        while connections.try_join_next().is_some() {}
        match (accepted, places.clone().try_acquire_owned()) {
            (Ok((stream, _)), Ok(place)) => {
                let (metrics, snapshot) = (metrics.clone(), snapshot.clone());
                connections.spawn(async move {
                    let page = async { metrics.render(&snapshot().await) };
                    let answered = tokio::time::timeout(DEADLINE, answer(stream, page)).await;
                    debug!(ok = matches!(answered, Ok(Ok(()))), "scraped");
                    drop(place);
                });
            }
            // Too many at once: this one is closed.
            (Ok(_), Err(_)) => {}
            // Out of descriptors, most likely; the next one may do.
            (Err(error), _) => {
                debug!(%error, "metrics connection refused");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    connections.shutdown().await;
}

async fn answer(mut stream: TcpStream, page: impl Future<Output = String>) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        if request.len() > LONGEST_REQUEST || stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let line = request.split(|b| *b == b'\r').next().unwrap_or_default();
    let mut words = line.split(|b| *b == b' ');
    let (method, path) = (words.next(), words.next());
    let path = path.and_then(|p| p.split(|b| *b == b'?').next());
    let (status, body) = match (method, path) {
        (Some(b"GET"), Some(b"/metrics")) => ("200 OK", page.await),
        (Some(b"GET"), Some(_)) => ("404 Not Found", "see /metrics\n".to_owned()),
        (_, _) => ("405 Method Not Allowed", "GET only\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get(request: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let served = tokio::spawn(serve_on(
            listener,
            Arc::new(Metrics::default()),
            || async { Snapshot::default() },
            shutdown.clone(),
        ));
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        shutdown.cancel();
        served.await.unwrap();
        reply
    }

    #[tokio::test]
    async fn a_scraper_gets_the_page_and_others_are_told_where_it_is() {
        let page = get("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
        assert!(page.contains("awscni_total_ip_addresses 0\n"), "{page}");
        let other = get("GET / HTTP/1.1\r\n\r\n").await;
        assert!(other.starts_with("HTTP/1.1 404 "), "{other}");
        let post = get("POST /metrics HTTP/1.1\r\n\r\n").await;
        assert!(post.starts_with("HTTP/1.1 405 "), "{post}");
    }
}
