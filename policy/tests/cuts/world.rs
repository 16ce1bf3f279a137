//! A client and a server on one node, a Service, an API server, and the shipped agent.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Result;
use selvage_netfilter::Backend;
use selvage_policy_core::ruleset::Family;
use selvage_tests::{Node, Pod, run};
use serde_json::json;

use crate::agent::{Agent, Home};
use crate::apiserver::{ApiServer, Kind};

pub struct World {
    pub client: Pod,
    pub server: Pod,
    pub client_address: IpAddr,
    pub server_address: IpAddr,
    pub service_address: IpAddr,
    pub agent: Agent,
    api: ApiServer,
    tool: String,
    _folder: tempfile::TempDir,
    _node: Node,
}

impl World {
    /// Nothing is isolated, and the agent's rules are in force.
    pub fn new(backend: Backend, family: Family) -> Result<Self> {
        let node = Node::new()?;
        let client = node.pod("shop", "client", Ipv4Addr::new(10, 40, 0, 11))?;
        let server = node.pod("shop", "server", Ipv4Addr::new(10, 40, 0, 12))?;
        let (tool, families, addresses) = match family {
            Family::V4 => (
                "iptables",
                "ipv4",
                ["10.40.0.11", "10.40.0.12", "10.96.0.1"],
            ),
            Family::V6 => {
                client.add_ipv6("fd00::11".parse()?)?;
                server.add_ipv6("fd00::12".parse()?)?;
                ("ip6tables", "ipv6", ["fd00::11", "fd00::12", "fd96::1"])
            }
        };
        let [client_address, server_address, service_address] =
            addresses.map(|it| it.parse().expect("an address"));
        let folder = tempfile::tempdir()?;
        let api = ApiServer::start()?;
        let home = Home {
            folder: folder.path().to_owned(),
            kubeconfig: api.kubeconfig(folder.path())?,
            families,
        };
        api.set_all(Kind::Namespace, vec![json!({"metadata": {"name": "shop"}})]);
        let pods = [("client", client_address), ("server", server_address)];
        let pods = pods.map(|(name, address)| {
            json!({
                "metadata": {"name": name, "namespace": "shop", "uid": name, "labels": {"app": name}},
                "spec": {"nodeName": "node-1"},
                "status": {"podIPs": [{"ip": address}]},
            })
        });
        api.set_all(Kind::Pod, pods.to_vec());
        let mut agent = home.start(backend, None)?;
        agent.until_ready()?;
        Ok(Self {
            client,
            server,
            client_address,
            server_address,
            service_address,
            agent,
            api,
            tool: format!("{tool}-{backend}"),
            _folder: folder,
            _node: node,
        })
    }

    /// The Service's port leads to a port of the server's.
    pub fn service(&self, port: u16, target: u16) -> Result<()> {
        let (tool, from) = (&self.tool, self.service_address);
        let to = SocketAddr::new(self.server_address, target);
        for protocol in ["tcp", "udp"] {
            run(&format!(
                "{tool} -w 5 -t nat -A PREROUTING -d {from} -p {protocol} --dport {port} \
                 -j DNAT --to-destination {to}"
            ))?;
        }
        Ok(())
    }

    /// From now on the server may be reached on ports from 8000 to 8099 alone.
    pub fn forbid(&self) {
        let ports = ["TCP", "UDP", "SCTP"]
            .map(|protocol| json!({"protocol": protocol, "port": 8000, "endPort": 8099}));
        let policy = json!({
            "metadata": {"name": "some", "namespace": "shop"},
            "spec": {
                "podSelector": {"matchLabels": {"app": "server"}},
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}], "ports": ports}],
            },
        });
        self.api.set_all(Kind::NetworkPolicy, vec![policy]);
    }

    /// From now on policy allows everything.
    pub fn allow(&self) {
        self.api.set_all(Kind::NetworkPolicy, vec![]);
    }
}
