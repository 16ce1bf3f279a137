//! How long EC2 takes. None of it is documented to the millisecond; each line says what it rests on.

use std::ops::Range;
use std::time::Duration;

use fastrand::Rng;

use crate::quota::Api;

/// Until the reply, in milliseconds. Unverified: the order of magnitude is what users of the API see.
fn reply(api: Api) -> Range<u64> {
    match api {
        Api::DescribeNetworkInterfaces | Api::DescribeInstances | Api::DescribeSubnets => 100..400,
        Api::CreateNetworkInterface => 400..1500,
        Api::AttachNetworkInterface => 500..2000,
        Api::ModifyNetworkInterfaceAttribute | Api::CreateTags => 150..500,
        Api::AssignPrivateIpAddresses | Api::UnassignPrivateIpAddresses => 300..1000,
        Api::DetachNetworkInterface | Api::DeleteNetworkInterface => 200..800,
    }
}

/// A refusal for want of a token comes from the front door. Unverified.
const THROTTLED: Range<u64> = 20..100;
/// From the attach call until the instance has the interface. "Attaching an ENI can take up to 10 seconds" (the AWS VPC
/// CNI's docs/eni-and-ip-target.md).
const ATTACHING: Range<u64> = 2500..10_000;
/// From the detach call until the interface can be deleted. Unverified.
const DETACHING: Range<u64> = 2500..8000;
/// How far behind a describe call may be: EC2's API is eventually consistent; by how much is not documented.
const LAG: Range<u64> = 0..1500;
/// How far behind instance metadata may be. Unverified.
const METADATA_LAG: Range<u64> = 200..2500;

fn some(rng: &mut Rng, range: Range<u64>) -> Duration {
    Duration::from_millis(rng.u64(range))
}

pub(super) fn replying(api: Api, rng: &mut Rng) -> Duration {
    some(rng, reply(api))
}

pub(super) fn throttled(rng: &mut Rng) -> Duration {
    some(rng, THROTTLED)
}

pub(super) fn attaching(rng: &mut Rng) -> Duration {
    some(rng, ATTACHING)
}

pub(super) fn detaching(rng: &mut Rng) -> Duration {
    some(rng, DETACHING)
}

pub(super) fn lag(rng: &mut Rng) -> Duration {
    some(rng, LAG)
}

pub(super) fn metadata_lag(rng: &mut Rng) -> Duration {
    some(rng, METADATA_LAG)
}
