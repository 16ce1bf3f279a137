//! The simulated EC2 in the core's words.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use selvage_ipamd_core::action::{Action, Outcome};
use selvage_ipamd_core::cloud::{
    Attachment, CloudError, EniFacts, EniKind, InstanceFacts, Operation, SeenEni, SubnetFacts, Want,
};
use selvage_ipamd_core::ids::{
    EniId, InstanceId, InstanceType, Mac, SecurityGroupId, SubnetId, Timestamp, VpcId,
};
use selvage_ipamd_core::limits::Mode;
use selvage_ipamd_core::pool::{Eni, Settings};

use crate::ec2::{Ask, Ec2, Refusal, View};
use crate::machine::NodeId;

pub(super) fn settings(mode: Mode, cooldown: Duration, seed: u64) -> Settings {
    Settings {
        mode,
        cooldown,
        seed,
        ..Settings::default()
    }
}

/// What the instance says of itself; `None` if the description lacks the primary interface.
pub(super) fn instance(views: &[View], node: NodeId, ec2: &Ec2) -> Option<InstanceFacts> {
    let first = |view: &&View| {
        view.attachment
            .as_ref()
            .is_some_and(|(_, index)| *index == 0)
    };
    let primary = views.iter().find(first)?;
    Some(InstanceFacts {
        instance_id: InstanceId::new(format!("i-{:08x}", node.0)),
        instance_type: InstanceType::new("simulated"),
        region: "us-west-2".into(),
        availability_zone: format!("zone-{}", primary.subnet),
        vpc_id: VpcId::new("vpc-1"),
        primary_eni: primary.id.clone(),
        primary_mac: mac(&primary.id),
        primary_address: primary.primary,
        primary_ipv6: None,
        subnet_id: Ec2::subnet_id(primary.subnet),
        subnet: ec2.subnet_net(primary.subnet),
        security_groups: vec![SecurityGroupId::new("sg-1")],
    })
}

pub(super) fn facts(view: &View, ec2: &Ec2) -> EniFacts {
    EniFacts {
        id: view.id.clone(),
        mac: mac(&view.id),
        subnet_id: Ec2::subnet_id(view.subnet),
        subnet: ec2.subnet_net(view.subnet),
        primary_address: view.primary,
        secondary_addresses: single(view).collect(),
        prefixes: prefixes(view),
        ipv6_addresses: BTreeSet::new(),
        ipv6_prefixes: BTreeSet::new(),
        security_groups: None,
        description: view.description.clone(),
        attachment: view
            .attachment
            .clone()
            .map(|(id, device_index)| Attachment {
                id,
                device_index,
                card: 0,
                delete_on_termination: view.keep,
            }),
        kind: EniKind::Interface,
        tags: view.tags.clone(),
    }
}

pub(super) fn seen(view: &View, ec2: &Ec2) -> SeenEni {
    SeenEni {
        id: view.id.clone(),
        mac: mac(&view.id),
        device_index: view.attachment.as_ref().map_or(0, |(_, index)| *index),
        card: 0,
        subnet_id: Ec2::subnet_id(view.subnet),
        subnet: ec2.subnet_net(view.subnet),
        primary_address: view.primary,
        addresses: single(view).chain([view.primary]).collect(),
        prefixes: prefixes(view),
        ipv6_addresses: BTreeSet::new(),
        ipv6_prefixes: BTreeSet::new(),
    }
}

fn single(view: &View) -> impl Iterator<Item = Ipv4Addr> {
    view.blocks
        .iter()
        .filter(|net| net.prefix_len() == 32)
        .map(Ipv4Net::addr)
}

fn prefixes(view: &View) -> BTreeSet<Ipv4Net> {
    let prefixes = view.blocks.iter().filter(|net| net.prefix_len() < 32);
    prefixes.copied().collect()
}

/// # Panics
/// When the pool of a cluster without IPv6 gives an IPv6 address.
pub(super) fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => panic!("{address} is not IPv4"),
    }
}

fn v4_net(net: IpNet) -> Option<Ipv4Net> {
    match net {
        IpNet::V4(net) => Some(net),
        IpNet::V6(_) => None,
    }
}

fn ask(want: Want) -> Ask {
    match want {
        Want::Addresses(count) => Ask::Addresses(count),
        Want::Prefixes(count) => Ask::Prefixes(count),
        Want::Ipv6Prefix => panic!("the simulated VPC has no IPv6"),
    }
}

pub(super) fn held(eni: &Eni) -> Vec<Ipv4Net> {
    eni.blocks()
        .filter_map(|block| v4_net(block.net()))
        .collect()
}

/// One call to EC2: when its reply arrives, and what it means to the core.
pub(super) fn call(
    action: Action,
    node: NodeId,
    ec2: &mut Ec2,
    now: Timestamp,
) -> (Timestamp, Outcome) {
    match action {
        Action::Create(request) => {
            let subnet = subnet(&request.subnet_id);
            let ask = ask(request.want);
            let token = request.token.as_str();
            let tags = (request.tags.clone(), request.description.clone());
            let (at, made) = ec2.create(node, (subnet, ask), token, tags, now);
            let made = made.map(|view| facts(&view, ec2));
            let made = made.map_err(|r| error(Operation::CreateEni, r));
            (at, Outcome::Created(request.token, made))
        }
        Action::Attach { eni, device_index } => {
            let (at, result) = ec2.attach(&eni, device_index, now);
            let result = result.map_err(|r| error(Operation::AttachEni, r));
            (at, Outcome::Attached(eni, device_index, result))
        }
        Action::Keep { eni, .. } => {
            let (at, result) = ec2.keep_with_instance(&eni, now);
            let result = result.map_err(|r| error(Operation::KeepWithInstance, r));
            (at, Outcome::Kept(eni, result))
        }
        Action::Describe { eni } => {
            let (at, result) = ec2.describe_one(&eni, now);
            let result = result.map(|view| view.map(|view| facts(&view, ec2)));
            let result = result.map_err(|r| error(Operation::DescribeEnis, r));
            (at, Outcome::Described(eni, result))
        }
        Action::Assign { eni, want } => {
            let (at, result) = ec2.assign(&eni, ask(want), now);
            let result = result.map(|blocks| blocks.into_iter().map(IpNet::V4).collect());
            let result = result.map_err(|r| error(Operation::AssignAddresses, r));
            (at, Outcome::Assigned(eni, want, result))
        }
        Action::Unassign { eni, blocks } => {
            let nets: Vec<Ipv4Net> = blocks.iter().filter_map(|net| v4_net(*net)).collect();
            let (at, result) = ec2.unassign(&eni, &nets, now);
            let result = result.map_err(|r| error(Operation::UnassignAddresses, r));
            (at, Outcome::Unassigned(eni, blocks, result))
        }
        Action::Tag { eni, tags } => {
            let (at, result) = ec2.tag(&eni, &tags, now);
            let result = result.map_err(|r| error(Operation::TagEni, r));
            (at, Outcome::Tagged(eni, tags, result))
        }
        // Groups are not modelled, so that none is ever missing.
        Action::Regroup { eni, groups } => (now, Outcome::Regrouped(eni, groups, Ok(()))),
        Action::DescribeSubnets => {
            let (at, result) = ec2.describe_subnet(node, now);
            let result = result.map(|(subnet, available)| {
                vec![SubnetFacts {
                    id: Ec2::subnet_id(subnet),
                    block: ec2.subnet_net(subnet),
                    available,
                    tags: BTreeMap::new(),
                }]
            });
            let result = result.map_err(|r| error(Operation::DescribeSubnets, r));
            (at, Outcome::Subnets(result))
        }
        Action::Detach { eni, .. } => {
            let (at, result) = ec2.detach(&eni, now);
            let result = result.map_err(|r| error(Operation::DetachEni, r));
            (at, Outcome::Detached(eni, result))
        }
        Action::Delete { eni } => {
            let (at, result) = ec2.delete(&eni, now);
            let result = result.map_err(|r| error(Operation::DeleteEni, r));
            (at, Outcome::Deleted(eni, result))
        }
        Action::SetUp { eni } => (now, Outcome::SetUp(eni, Ok(()))),
        Action::TearDown { eni } => (now, Outcome::TornDown(eni, Ok(()))),
    }
}

pub(super) fn error(operation: Operation, refusal: Refusal) -> CloudError {
    CloudError::from_code(operation, refusal.code, "refused", Some(refusal.status()))
}

fn subnet(id: &SubnetId) -> usize {
    let number = id.as_str().strip_prefix("subnet-");
    number.and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn mac(eni: &EniId) -> Mac {
    let hex = eni.as_str().strip_prefix("eni-").unwrap_or_default();
    let number = u32::from_str_radix(hex, 16).unwrap_or(0);
    let [a, b, c, d] = number.to_be_bytes();
    Mac([2, 0, a, b, c, d])
}
