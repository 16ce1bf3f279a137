//! The client against sockets that refuse, hang and answer.
#![cfg(all(feature = "client", feature = "server"))]

use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::time::{Duration, Instant};

use selvage_ipamd_rpc::client::{ConnectError, Deadlines, connect, request};
use selvage_ipamd_rpc::health::health_check_response::ServingStatus;
use selvage_ipamd_rpc::health::health_client::HealthClient;
use selvage_ipamd_rpc::health::health_server::{Health, HealthServer};
use selvage_ipamd_rpc::health::{HealthCheckRequest, HealthCheckResponse};
use tonic::{Request, Response, Status};

const SHORT: Deadlines = Deadlines {
    connect: Duration::from_millis(200),
    reply: Duration::from_millis(200),
};

struct Serving;

#[tonic::async_trait]
impl Health for Serving {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        assert!(request.metadata().contains_key("grpc-timeout"));
        Ok(Response::new(HealthCheckResponse {
            status: ServingStatus::Serving.into(),
        }))
    }
}

async fn ask(socket: &Path) -> Result<HealthCheckResponse, Status> {
    let channel = connect(socket, SHORT).await.unwrap();
    HealthClient::new(channel)
        .check(request(HealthCheckRequest::default(), SHORT))
        .await
        .map(Response::into_inner)
}

#[tokio::test]
async fn a_missing_socket_is_refused_in_the_systems_own_words() {
    let folder = tempfile::tempdir().unwrap();
    let error = connect(&folder.path().join("ipamd.sock"), SHORT)
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Refused { .. }));
    assert!(
        error.to_string().contains("No such file or directory"),
        "{error}"
    );
}

#[tokio::test]
async fn a_daemon_that_accepts_and_says_nothing_costs_one_reply_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("ipamd.sock");
    let _silent = StdListener::bind(&socket).unwrap();
    let start = Instant::now();
    ask(&socket).await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_daemon_that_serves_is_asked_over_the_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("ipamd.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    let server = tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(HealthServer::new(Serving))
            .serve_with_incoming(incoming),
    );
    let reply = ask(&socket).await.unwrap();
    server.abort();
    assert_eq!(reply.status(), ServingStatus::Serving);
}
