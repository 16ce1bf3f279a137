//! HTTP/2 under tonic's client: one connection that the caller drives, nothing spawned.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::client::SendRequest;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Request, Response, Uri};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::Status;

/// A socket has no host, and HTTP wants one.
const AUTHORITY: Authority = Authority::from_static("localhost");

/// Carries requests of tonic's generated clients. Good while its connection is driven.
pub struct Transport {
    requests: SendRequest<Bytes>,
}

/// One call on a fresh connection. `meanwhile` is done when the request has gone out and before the reply is looked
/// for; it may block: nothing else waits.
pub(super) async fn converse<T>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    work: impl AsyncFnOnce(Transport) -> Result<T, Status>,
    meanwhile: impl FnOnce(),
) -> Result<T, Status> {
    let (requests, connection) = h2::client::handshake(stream).await.map_err(broken)?;
    let mut driver = pin!(connection);
    let mut reply = pin!(work(Transport { requests }));
    let mut over = false;
    // The order matters: what the call wants to send, then the sending, then looking for what has come.
    let mut turn = move |cx: &mut Context<'_>| {
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
}

fn broken(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("the connection broke: {error}"))
}

impl tower_service::Service<Request<tonic::body::Body>> for Transport {
    type Response = Response<Answer>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.requests.poll_ready(cx).map_err(broken)
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        let mut requests = self.requests.clone();
        Box::pin(async move {
            let (mut head, body) = request.into_parts();
            let path = head.uri.path_and_query().cloned();
            head.uri = Uri::builder()
                .scheme(Scheme::HTTP)
                .authority(AUTHORITY)
                .path_and_query(path.unwrap_or(PathAndQuery::from_static("/")))
                .build()
                .map_err(broken)?;
            // One message, encoded already.
            let message = body.collect().await?.to_bytes();
            let (response, mut stream) = requests
                .send_request(Request::from_parts(head, ()), false)
                .map_err(broken)?;
            stream.send_data(message, true).map_err(broken)?;
            let (head, body) = response.await.map_err(broken)?.into_parts();
            Ok(Response::from_parts(head, Answer { body }))
        })
    }
}

/// What a server answers.
pub struct Answer {
    body: h2::RecvStream,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(data) = std::task::ready!(self.body.poll_data(cx)) {
            return Poll::Ready(Some(match data {
                Ok(data) => {
                    let taken = self.body.flow_control().release_capacity(data.len());
                    taken.map(|()| Frame::data(data)).map_err(broken)
                }
                Err(error) => Err(broken(error)),
            }));
        }
        let trailers: Option<HeaderMap> =
            std::task::ready!(self.body.poll_trailers(cx)).map_err(broken)?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
