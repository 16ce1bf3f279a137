use std::net::Ipv4Addr;

use serde_json::json;

use super::*;
use crate::server::Server;

const POD: &str = "/api/v1/namespaces/shop/pods/web-0";

fn pod() -> PodName {
    PodName {
        namespace: "shop".into(),
        name: "web-0".into(),
    }
}

fn address(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, last).into()
}

fn annotation(server: &Server) -> Option<String> {
    let value = &server.get(POD)?["metadata"]["annotations"][ANNOTATION];
    value.as_str().map(ToOwned::to_owned)
}

fn started() -> (Server, Annotations) {
    let server = Server::default();
    server.set(
        POD,
        json!({"metadata": {"annotations": {"other": "stays"}}}),
    );
    let annotations = Annotations::start(server.client());
    (server, annotations)
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_annotated_when_the_add_goes_on_and_emptied_after_its_end() {
    let (server, annotations) = started();
    annotations.write(&pod(), address(7)).await;
    assert_eq!(annotation(&server).as_deref(), Some("10.0.0.7"));
    annotations.clear(&pod(), address(7));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(annotation(&server).as_deref(), Some(""));
    let there = server.get(POD).unwrap();
    assert_eq!(there["metadata"]["annotations"]["other"], "stays");
}

#[tokio::test(start_paused = true)]
async fn the_annotation_of_the_next_pod_of_that_name_is_left_alone() {
    let (server, annotations) = started();
    annotations.write(&pod(), address(8)).await;
    annotations.clear(&pod(), address(7));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(annotation(&server).as_deref(), Some("10.0.0.8"));
    let tries = server.requests().len();
    assert_eq!(tries, 2, "that is no failure: {:?}", server.requests());
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_away_costs_an_add_a_second_and_is_told_later() {
    for silent in [true, false] {
        let (server, annotations) = started();
        match silent {
            true => server.silence(true),
            false => server.refuse(Some(503)),
        }
        let start = Instant::now();
        annotations.write(&pod(), address(7)).await;
        let took = start.elapsed();
        assert!(took <= Duration::from_millis(1100), "{took:?}");
        tokio::time::sleep(Duration::from_secs(60)).await;
        server.silence(false);
        server.refuse(None);
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(annotation(&server).as_deref(), Some("10.0.0.7"));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_late_is_the_newest_word() {
    let (server, annotations) = started();
    server.refuse(Some(503));
    annotations.write(&pod(), address(7)).await;
    annotations.clear(&pod(), address(7));
    annotations.write(&pod(), address(9)).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    server.refuse(None);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(annotation(&server).as_deref(), Some("10.0.0.9"));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_has_gone_is_not_tried_again() {
    let (server, annotations) = started();
    server.remove(POD);
    annotations.write(&pod(), address(7)).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(server.requests().len(), 1);
}
