use super::*;
use crate::server::Server;

const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/selvage-system/leases/selvage-ipamd";

fn candidate(server: &Server, name: &str) -> Election {
    Election::new(server.client(), "selvage-system", name.to_owned())
}

async fn pass(minutes: u64) {
    tokio::time::advance(Duration::from_secs(60 * minutes)).await;
}

fn holder(server: &Server) -> String {
    let lease = server.get(PATH).unwrap();
    lease["spec"]["holderIdentity"].as_str().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn of_two_candidates_one_leads_and_the_other_takes_over_when_it_falls_silent() {
    let server = Server::default();
    let (one, two) = (candidate(&server, "node-1"), candidate(&server, "node-2"));
    assert_eq!(one.lead().await, Ok(true));
    assert_eq!(two.lead().await, Ok(false));
    for _ in 0..10 {
        pass(10).await;
        assert_eq!(one.lead().await, Ok(true));
        assert_eq!(two.lead().await, Ok(false));
    }
    assert_eq!(holder(&server), "node-1");
    // The first one dies. Its last word was seen by the second just now.
    pass(10).await;
    assert_eq!(two.lead().await, Ok(false));
    pass(10).await;
    assert_eq!(two.lead().await, Ok(false));
    pass(10).await;
    assert_eq!(two.lead().await, Ok(true));
    assert_eq!(holder(&server), "node-2");
    assert_eq!(server.get(PATH).unwrap()["spec"]["leaseTransitions"], 1);
    // It was only away.
    assert_eq!(one.lead().await, Ok(false));
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_is_wrong_makes_nobody_lead() {
    let server = Server::default();
    assert_eq!(candidate(&server, "node-1").lead().await, Ok(true));
    let mut lease = server.get(PATH).unwrap();
    lease["spec"]["renewTime"] = serde_json::json!("1999-01-01T00:00:00.000000Z");
    server.set(PATH, lease);
    assert_eq!(candidate(&server, "node-2").lead().await, Ok(false));
}

#[tokio::test(start_paused = true)]
async fn of_two_who_take_over_at_once_one_is_refused() {
    let server = Server::default();
    candidate(&server, "node-0").lead().await.unwrap();
    let candidates: Vec<Election> = (1..=5)
        .map(|n| candidate(&server, &format!("node-{n}")))
        .collect();
    let all = || futures::future::join_all(candidates.iter().map(Election::lead));
    assert!(all().await.iter().all(|leads| *leads == Ok(false)));
    pass(31).await;
    let leads = all().await;
    let leaders = leads.iter().filter(|leads| **leads == Ok(true)).count();
    assert_eq!(leaders, 1, "{leads:?}");
}

#[tokio::test(start_paused = true)]
async fn without_an_api_server_nobody_leads() {
    let server = Server::default();
    server.refuse(Some(403));
    let error = candidate(&server, "node-1").lead().await.unwrap_err();
    assert!(error.contains("refused with 403"), "{error}");
    server.silence(true);
    let error = candidate(&server, "node-1").lead().await.unwrap_err();
    assert!(error.contains("no answer within 5s"), "{error}");
}
