//! Carrying out one action: the call, its deadline, its count.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use selvage_ipamd_core::action::{Action, Outcome};
use selvage_ipamd_core::cloud::{
    Cloud, CloudError, CreateEni, EniFacts, Operation, SeenEni, is_untouched,
};
use selvage_ipamd_core::pool::Provisioning;
use tokio::time::Instant;

use super::{Shared, words};
use crate::cluster::Cluster;
use crate::hostnet::{EniNet, Host, HostError};

/// A call that takes longer has lost its reply. EC2 answers within seconds, its slowest calls within ten.
const EC2_DEADLINE: Duration = Duration::from_secs(30);
/// Metadata comes from the host below us: milliseconds, and several reads for a list.
const METADATA_DEADLINE: Duration = Duration::from_secs(10);
/// An interface appears on the node some seconds after EC2 says that it is attached.
const LINK_WAIT: Duration = Duration::from_secs(15);
/// Between two looks for it.
const LINK_LOOK: Duration = Duration::from_millis(250);

/// One call with its deadline, counted.
pub(crate) async fn call<T, C: Cloud, H: Host, K: Cluster>(
    shared: &Shared<C, H, K>,
    operation: Operation,
    reply: impl Future<Output = Result<T, CloudError>>,
) -> Result<T, CloudError> {
    let deadline = if operation.is_ec2() {
        EC2_DEADLINE
    } else {
        METADATA_DEADLINE
    };
    let started = Instant::now();
    let result = tokio::time::timeout(deadline, reply)
        .await
        .unwrap_or_else(|_| {
            Err(CloudError::unknown(
                operation,
                format!("no answer within {deadline:?}"),
            ))
        });
    shared
        .metrics
        .count_call(operation, started.elapsed(), result.as_ref().err());
    result
}

/// The interfaces by EC2; where EC2 must not be called, as far as metadata knows them. `first`: no daemon has written
/// a checkpoint here. Then there is nothing to look for that was made and not attached, unless a tag says otherwise.
pub(crate) async fn interfaces<C: Cloud, H: Host, K: Cluster>(
    shared: &Shared<C, H, K>,
    first: bool,
) -> Result<Vec<EniFacts>, CloudError> {
    let cloud = &shared.cloud;
    match shared.config.provisioning {
        Provisioning::Full | Provisioning::AttachedOnly => {
            let operation = Operation::DescribeEnis;
            let attached = call(shared, operation, cloud.attached_enis()).await?;
            shared.described.store(true, Ordering::Relaxed);
            if first && is_untouched(&attached) {
                return Ok(attached);
            }
            let unattached = call(shared, operation, cloud.unattached_enis()).await?;
            // Reads lag: one that was attached a moment ago may be in both answers.
            let found: BTreeMap<_, _> = unattached
                .into_iter()
                .chain(attached)
                .map(|eni| (eni.id.clone(), eni))
                .collect();
            Ok(found.into_values().collect())
        }
        Provisioning::MetadataOnly => {
            let seen = call(shared, Operation::SeenEnis, cloud.seen_enis()).await?;
            Ok(seen.iter().map(SeenEni::facts).collect())
        }
    }
}

/// A new interface. On a new instance EC2 describes the others first: the new one takes after the primary one in what
/// metadata does not tell.
async fn create<C: Cloud, H: Host, K: Cluster>(
    shared: &Shared<C, H, K>,
    request: &CreateEni,
) -> Result<EniFacts, CloudError> {
    let cloud = &shared.cloud;
    if !shared.described.load(Ordering::Relaxed) {
        call(shared, Operation::DescribeEnis, cloud.attached_enis()).await?;
        shared.described.store(true, Ordering::Relaxed);
    }
    call(shared, Operation::CreateEni, cloud.create_eni(request)).await
}

/// Carries out an action. `net` is what the host needs of the action's interface, for the two steps on the host.
pub(crate) async fn carry_out<C: Cloud, H: Host, K: Cluster>(
    shared: Arc<Shared<C, H, K>>,
    action: Action,
    net: Option<EniNet>,
) -> Outcome {
    let cloud = &shared.cloud;
    let shared = shared.as_ref();
    match action {
        Action::Create(request) => {
            Outcome::Created(request.token.clone(), create(shared, &request).await)
        }
        Action::Attach { eni, device_index } => {
            let reply = cloud.attach_eni(&eni, device_index);
            let result = call(shared, Operation::AttachEni, reply).await;
            Outcome::Attached(eni, device_index, result)
        }
        Action::Keep { eni, attachment } => {
            let reply = cloud.keep_with_instance(&eni, &attachment);
            let result = call(shared, Operation::KeepWithInstance, reply).await;
            Outcome::Kept(eni, result)
        }
        Action::Describe { eni } => {
            let reply = cloud.describe_eni(&eni);
            let result = call(shared, Operation::DescribeEnis, reply).await;
            Outcome::Described(eni, result)
        }
        Action::Assign { eni, want } => {
            let reply = cloud.assign(&eni, want);
            let result = call(shared, want.operation(), reply).await;
            Outcome::Assigned(eni, want, result)
        }
        Action::Unassign { eni, blocks } => {
            let reply = cloud.unassign(&eni, &blocks);
            let result = call(shared, Operation::unassign(&blocks), reply).await;
            Outcome::Unassigned(eni, blocks, result)
        }
        Action::Tag { eni, tags } => {
            let reply = cloud.tag_eni(&eni, &tags);
            let result = call(shared, Operation::TagEni, reply).await;
            Outcome::Tagged(eni, tags, result)
        }
        Action::Regroup { eni, groups } => {
            let reply = cloud.regroup_eni(&eni, &groups);
            let result = call(shared, Operation::RegroupEni, reply).await;
            Outcome::Regrouped(eni, groups, result)
        }
        Action::DescribeSubnets => {
            let reply = cloud.describe_subnets();
            Outcome::Subnets(call(shared, Operation::DescribeSubnets, reply).await)
        }
        Action::Detach { eni, attachment } => {
            let reply = cloud.detach_eni(&attachment);
            let result = call(shared, Operation::DetachEni, reply).await;
            Outcome::Detached(eni, result)
        }
        Action::Delete { eni } => {
            let reply = cloud.delete_eni(&eni);
            let result = call(shared, Operation::DeleteEni, reply).await;
            Outcome::Deleted(eni, result)
        }
        Action::SetUp { eni } => {
            let result = match &net {
                Some(net) => set_up(&shared.host, net).await,
                None => Err(format!("{eni} is not attached")),
            };
            Outcome::SetUp(eni, result)
        }
        Action::TearDown { eni } => {
            let result = match &net {
                Some(net) => shared.host.remove_eni(net).await.map_err(|e| words(&e)),
                None => Ok(()),
            };
            Outcome::TornDown(eni, result)
        }
    }
}

/// Sets the interface up as soon as it has appeared.
async fn set_up<H: Host>(host: &H, net: &EniNet) -> Result<(), String> {
    let until = Instant::now() + LINK_WAIT;
    loop {
        match host.ensure_eni(net).await {
            Ok(_) => return Ok(()),
            Err(HostError::NoLink { .. }) if Instant::now() < until => {
                tokio::time::sleep(LINK_LOOK).await;
            }
            Err(error) => return Err(words(&error)),
        }
    }
}
