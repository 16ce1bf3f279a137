//! The client against sockets that refuse, hang and answer.
#![cfg(all(feature = "client", feature = "server"))]

use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::time::{Duration, Instant};

use selvage_ipamd_rpc::client::{
    CallError, ConnectError, Deadlines, call, call_meanwhile, request,
};
use selvage_ipamd_rpc::health::health_check_response::ServingStatus;
use selvage_ipamd_rpc::health::health_client::HealthClient;
use selvage_ipamd_rpc::health::health_server::{Health, HealthServer};
use selvage_ipamd_rpc::health::{HealthCheckRequest, HealthCheckResponse};
use tonic::{Code, Request, Response, Status};

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
        let service = request.into_inner().service;
        if !service.is_empty() {
            return Err(Status::not_found(format!("no service {service}")));
        }
        Ok(Response::new(HealthCheckResponse {
            status: ServingStatus::Serving.into(),
        }))
    }
}

async fn ask(socket: &Path) -> Result<HealthCheckResponse, CallError> {
    call(socket, SHORT, async |ipamd| {
        HealthClient::new(ipamd)
            .check(request(HealthCheckRequest::default(), SHORT))
            .await
    })
    .await
}

#[tokio::test]
async fn a_missing_socket_is_refused_in_the_systems_own_words() {
    let folder = tempfile::tempdir().unwrap();
    let error = ask(&folder.path().join("ipamd.sock")).await.unwrap_err();
    assert!(matches!(
        error,
        CallError::Connect(ConnectError::Refused { .. })
    ));
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
    let error = ask(&socket).await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(5));
    let CallError::Status(status) = error else {
        panic!("{error}");
    };
    assert_eq!(status.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_daemon_that_hangs_up_in_the_midst_is_unavailable() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("ipamd.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let hanging_up = tokio::spawn(async move { drop(listener.accept().await.unwrap()) });
    let error = ask(&socket).await.unwrap_err();
    hanging_up.await.unwrap();
    let CallError::Status(status) = error else {
        panic!("{error}");
    };
    assert_eq!(status.code(), Code::Unavailable);
}

fn serve(socket: &Path) -> tokio::task::JoinHandle<Result<(), tonic::transport::Error>> {
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(HealthServer::new(Serving))
            .serve_with_incoming(incoming),
    )
}

#[tokio::test]
async fn a_daemon_that_serves_is_asked_over_the_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("ipamd.sock");
    let server = serve(&socket);
    let reply = ask(&socket).await.unwrap();
    server.abort();
    assert_eq!(reply.status(), ServingStatus::Serving);
}

#[tokio::test]
async fn a_refusal_comes_with_the_daemons_code_and_words() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("ipamd.sock");
    let server = serve(&socket);
    let error = call(&socket, SHORT, async |ipamd| {
        let mut message = request(HealthCheckRequest::default(), SHORT);
        message.get_mut().service = "nobody".into();
        HealthClient::new(ipamd).check(message).await
    })
    .await
    .unwrap_err();
    server.abort();
    let CallError::Status(status) = error else {
        panic!("{error}");
    };
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(status.message(), "no service nobody");
}

/// The request has to be with the server by then: it is read on another thread while this one is blocked.
#[tokio::test]
async fn what_is_done_meanwhile_is_done_after_the_request_has_gone_out() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("ipamd.sock");
    let listener = StdListener::bind(&socket).unwrap();
    let (seen, sees) = std::sync::mpsc::channel();
    let reading = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        while !bytes.windows(6).any(|w| w == b"marked") {
            let count = std::io::Read::read(&mut stream, &mut buffer).unwrap();
            assert_ne!(count, 0, "hung up without the request");
            bytes.extend_from_slice(&buffer[..count]);
        }
        seen.send(()).unwrap();
        drop(stream);
    });
    let mut arrived = false;
    call_meanwhile(
        &socket,
        SHORT,
        async |ipamd| {
            let mut message = request(HealthCheckRequest::default(), SHORT);
            message.get_mut().service = "marked".into();
            HealthClient::new(ipamd).check(message).await
        },
        || arrived = sees.recv_timeout(Duration::from_secs(5)).is_ok(),
    )
    .await
    .unwrap_err();
    reading.join().unwrap();
    assert!(arrived);
}

#[tokio::test]
async fn nothing_is_done_meanwhile_if_nobody_listens() {
    let folder = tempfile::tempdir().unwrap();
    let mut done = false;
    call_meanwhile(
        &folder.path().join("ipamd.sock"),
        SHORT,
        async |ipamd| {
            HealthClient::new(ipamd)
                .check(request(HealthCheckRequest::default(), SHORT))
                .await
        },
        || done = true,
    )
    .await
    .unwrap_err();
    assert!(!done);
}
