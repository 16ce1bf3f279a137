//! The client against sockets that refuse, hang and answer.
#![cfg(all(feature = "client", feature = "server"))]

use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::time::{Duration, Instant};

use selvage_ipamd_rpc::client::{CallError, ConnectError, Deadlines, blocking, call, request};
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

/// The same question by both ways to ask.
async fn ask(socket: &Path, service: &'static str) -> [Result<HealthCheckResponse, CallError>; 2] {
    let message = move || {
        let service = service.into();
        request(HealthCheckRequest { service }, SHORT)
    };
    let with_runtime = call(socket, SHORT, async |ipamd| {
        HealthClient::new(ipamd).check(message()).await
    })
    .await;
    let path = socket.to_owned();
    let without = tokio::task::spawn_blocking(move || {
        let work = async |ipamd| HealthClient::new(ipamd).check(message()).await;
        blocking::call(&path, SHORT, work, || ())
    });
    [with_runtime, without.await.unwrap()]
}

#[tokio::test]
async fn a_missing_socket_is_refused_in_the_systems_own_words() {
    let folder = tempfile::tempdir().unwrap();
    for result in ask(&folder.path().join("ipamd.sock"), "").await {
        let error = result.unwrap_err();
        assert!(matches!(
            error,
            CallError::Connect(ConnectError::Refused { .. })
        ));
        assert!(
            error.to_string().contains("No such file or directory"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_daemon_that_accepts_and_says_nothing_costs_one_reply_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("ipamd.sock");
    let _silent = StdListener::bind(&socket).unwrap();
    let start = Instant::now();
    for result in ask(&socket, "").await {
        let error = result.unwrap_err();
        let CallError::Status(status) = error else {
            panic!("{error}");
        };
        assert_eq!(status.code(), Code::DeadlineExceeded);
    }
    let took = start.elapsed();
    assert!(
        took >= SHORT.reply * 2 && took < Duration::from_secs(5),
        "{took:?}"
    );
}

#[tokio::test]
async fn a_daemon_whose_queue_is_full_costs_one_connect_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("ipamd.sock");
    let listener = rustix::net::socket(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    let address = rustix::net::SocketAddrUnix::new(&socket).unwrap();
    rustix::net::bind(&listener, &address).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _first = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    let start = Instant::now();
    let error = blocking::call(
        &socket,
        SHORT,
        async |ipamd| {
            HealthClient::new(ipamd)
                .check(request(HealthCheckRequest::default(), SHORT))
                .await
        },
        || panic!("there is no request yet"),
    )
    .unwrap_err();
    assert!(
        matches!(error, CallError::Connect(ConnectError::Timeout { .. })),
        "{error}"
    );
    assert!(start.elapsed() >= SHORT.connect);
}

#[tokio::test]
async fn a_daemon_that_hangs_up_in_the_midst_is_unavailable() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("ipamd.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let hanging_up = tokio::spawn(async move {
        for _ in 0..2 {
            drop(listener.accept().await.unwrap());
        }
    });
    for result in ask(&socket, "").await {
        let error = result.unwrap_err();
        let CallError::Status(status) = error else {
            panic!("{error}");
        };
        assert_eq!(status.code(), Code::Unavailable);
    }
    hanging_up.await.unwrap();
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
    for result in ask(&socket, "").await {
        assert_eq!(result.unwrap().status(), ServingStatus::Serving);
    }
    server.abort();
}

#[tokio::test]
async fn a_refusal_comes_with_the_daemons_code_and_words() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("ipamd.sock");
    let server = serve(&socket);
    for result in ask(&socket, "nobody").await {
        let CallError::Status(status) = result.unwrap_err() else {
            panic!("no answer");
        };
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(status.message(), "no service nobody");
    }
    server.abort();
}

/// The request has to be with the server by then: it is read on another thread while this one is blocked.
#[test]
fn what_is_done_meanwhile_is_done_after_the_request_has_gone_out() {
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
    blocking::call(
        &socket,
        SHORT,
        async |ipamd| {
            let mut message = request(HealthCheckRequest::default(), SHORT);
            message.get_mut().service = "marked".into();
            HealthClient::new(ipamd).check(message).await
        },
        || arrived = sees.recv_timeout(Duration::from_secs(5)).is_ok(),
    )
    .unwrap_err();
    reading.join().unwrap();
    assert!(arrived);
}

#[test]
fn nothing_is_done_meanwhile_if_nobody_listens() {
    let folder = tempfile::tempdir().unwrap();
    let mut done = false;
    blocking::call(
        &folder.path().join("ipamd.sock"),
        SHORT,
        async |ipamd| {
            HealthClient::new(ipamd)
                .check(request(HealthCheckRequest::default(), SHORT))
                .await
        },
        || done = true,
    )
    .unwrap_err();
    assert!(!done);
}
