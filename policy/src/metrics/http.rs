//! Answers scrapes.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::Metrics;

/// Scrapes answered at once; more wait.
const SCRAPES_MAX: usize = 8;

/// How long a connection may take to say what it wants.
const HEADER_DEADLINE: Duration = Duration::from_secs(5);

/// How long a connection is kept for more questions.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(120);

/// Pause between two tries to bind an address that is in use.
const BIND_PAUSE: Duration = Duration::from_secs(1);

/// Serves `GET /metrics` until told to stop. An address in use is tried again each second: the
/// instance before us may not be gone yet.
pub async fn serve(address: SocketAddr, metrics: Arc<Metrics>, stop: CancellationToken) {
    let Some(listener) = bind(address, &stop).await else {
        return;
    };
    info!(%address, "metrics are served");
    let mut scrapes = JoinSet::new();
    loop {
        while scrapes.len() >= SCRAPES_MAX {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = scrapes.join_next() => {}
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = scrapes.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let metrics = Arc::clone(&metrics);
                    scrapes.spawn(async move {
                        let service = service_fn(|request| answer(request, &metrics));
                        let connection = hyper::server::conn::http1::Builder::new()
                            .timer(TokioTimer::new())
                            .header_read_timeout(HEADER_DEADLINE)
                            .serve_connection(TokioIo::new(stream), service);
                        match tokio::time::timeout(CONNECTION_DEADLINE, connection).await {
                            Ok(Ok(())) | Err(_) => {}
                            Ok(Err(error)) => debug!(%error, "scrape"),
                        }
                    });
                }
                Err(error) => {
                    debug!(%error, "accept a scrape");
                    tokio::time::sleep(BIND_PAUSE).await;
                }
            }
        }
    }
}

async fn bind(address: SocketAddr, stop: &CancellationToken) -> Option<TcpListener> {
    let mut told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return Some(listener),
            Err(error) if told => debug!(%address, %error, "bind metrics"),
            Err(error) => {
                warn!(%address, %error, "metrics are not served yet: trying each second");
                told = true;
            }
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(BIND_PAUSE) => {}
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    metrics: &Metrics,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let reply = |code, kind: &'static str, body: String| {
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = code;
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    };
    Ok(match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => reply(
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            metrics.render(),
        ),
        (_, "/metrics") => reply(
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain; charset=utf-8",
            "only GET\n".to_owned(),
        ),
        _ => reply(
            StatusCode::NOT_FOUND,
            "text/plain; charset=utf-8",
            "metrics are at /metrics\n".to_owned(),
        ),
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::metrics::{Outcome, Work};
    use crate::status::Counts;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = loop {
            match TcpStream::connect(address).await {
                Ok(stream) => break stream,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        reply
    }

    #[tokio::test]
    async fn a_scrape_shows_what_was_counted() {
        let metrics = Arc::new(Metrics::new());
        metrics.set_counts(&Counts {
            rejected: 2,
            members: 7,
            ..Counts::default()
        });
        metrics.applied(Work::Rules, Outcome::Failed, Duration::from_millis(3));
        let address = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(address, Arc::clone(&metrics), stop.clone()));

        let reply = get(address, "/metrics").await;
        for line in [
            "selvage_policy_policies{state=\"rejected\"} 2",
            "selvage_policy_set_members 7",
            "selvage_policy_applies_total{work=\"rules\",outcome=\"failed\"} 1",
            "selvage_policy_phase{phase=\"syncing\"} 1",
            "selvage_policy_in_sync{resource=\"pods\"} 0",
            "# EOF",
        ] {
            assert!(reply.contains(line), "no {line} in {reply}");
        }
        assert!(get(address, "/").await.starts_with("HTTP/1.1 404"));
        stop.cancel();
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn metrics_come_up_when_the_instance_before_lets_go_of_the_port() {
        tokio::time::pause();
        let before = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = before.local_addr().unwrap();
        let stop = CancellationToken::new();
        let binding = tokio::spawn({
            let stop = stop.clone();
            async move { bind(address, &stop).await.is_some() }
        });
        tokio::time::sleep(BIND_PAUSE * 3).await;
        assert!(!binding.is_finished());
        drop(before);
        assert!(binding.await.unwrap());
    }
}
