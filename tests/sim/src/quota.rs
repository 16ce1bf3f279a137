//! What EC2 lets an account call in a region: a bucket of tokens for each action, shared by every node.
//!
//! Each request takes a token of its action's bucket; from an empty one it is refused with `RequestLimitExceeded`, and
//! nothing else happens. "Each API is evaluated individually" and "limits are applied to individual API actions, not
//! API action categories": a category only says how large the buckets of its actions are.

use std::fmt;

use selvage_ipamd_core::ids::Timestamp;

/// The actions of EC2's API that either algorithm calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Api {
    /// DescribeNetworkInterfaces.
    DescribeNetworkInterfaces,
    /// DescribeInstances.
    DescribeInstances,
    /// DescribeSubnets.
    DescribeSubnets,
    /// CreateNetworkInterface.
    CreateNetworkInterface,
    /// AttachNetworkInterface.
    AttachNetworkInterface,
    /// ModifyNetworkInterfaceAttribute.
    ModifyNetworkInterfaceAttribute,
    /// AssignPrivateIpAddresses.
    AssignPrivateIpAddresses,
    /// UnassignPrivateIpAddresses.
    UnassignPrivateIpAddresses,
    /// DetachNetworkInterface.
    DetachNetworkInterface,
    /// DeleteNetworkInterface.
    DeleteNetworkInterface,
    /// CreateTags.
    CreateTags,
}

impl fmt::Display for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{self:?}"))
    }
}

/// One action's bucket.
#[derive(Debug, Clone, Copy)]
pub struct Quota {
    /// The action.
    pub api: Api,
    /// Requests at once ("bucket maximum capacity").
    pub burst: u32,
    /// Requests a second from then on ("bucket refill rate").
    pub per_second: u32,
    /// Where the numbers stand: a table and row of [`SOURCE`], and what is unverified about it.
    pub row: &'static str,
}

/// Where the numbers come from, read as of 2025.
pub const SOURCE: &str = "Amazon EC2 Developer Guide, \"Request throttling for the Amazon EC2 API\", \
    docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html";

const NON_MUTATING: &str = "category: Non-mutating actions";
// Calls that name objects and give no filter might count as unfiltered (50, 10): that is not documented either way, and
// AWS's agent describes so. The larger bucket is in its favour.
const BY_ID: &str = "category: Non-mutating actions; unverified: calls by identifier, without a filter, count as filtered";
const MUTATING: &str = "category: Mutating actions";
const OWN: &str = "Uncategorized actions, its own row";

/// The buckets of a new account, before any increase.
pub const QUOTAS: [Quota; 11] = [
    quota(Api::DescribeNetworkInterfaces, 100, 20, BY_ID),
    quota(Api::DescribeInstances, 100, 20, BY_ID),
    quota(Api::DescribeSubnets, 100, 20, NON_MUTATING),
    quota(Api::CreateNetworkInterface, 100, 5, OWN),
    quota(Api::AttachNetworkInterface, 50, 5, MUTATING),
    quota(Api::ModifyNetworkInterfaceAttribute, 100, 5, OWN),
    quota(Api::AssignPrivateIpAddresses, 100, 5, OWN),
    quota(Api::UnassignPrivateIpAddresses, 100, 5, OWN),
    quota(Api::DetachNetworkInterface, 50, 5, MUTATING),
    quota(Api::DeleteNetworkInterface, 100, 5, OWN),
    quota(Api::CreateTags, 100, 10, OWN),
];

const fn quota(api: Api, burst: u32, per_second: u32, row: &'static str) -> Quota {
    Quota {
        api,
        burst,
        per_second,
        row,
    }
}

/// A token, in the smallest part of one that a bucket gains: a second has so many nanoseconds.
const TOKEN: u64 = 1_000_000_000;

/// A bucket that refills continuously (the guide says "every second"; which part of it, it does not).
#[derive(Debug, Clone)]
struct Bucket {
    capacity: u64,
    per_nanosecond: u64,
    held: u64,
    at: Timestamp,
}

/// All buckets, and what came of each call.
#[derive(Debug, Clone)]
pub struct Quotas {
    buckets: Vec<Bucket>,
    calls: [u64; QUOTAS.len()],
    throttled: [u64; QUOTAS.len()],
    /// Every call in order.
    #[cfg(test)]
    pub(crate) log: Vec<(Timestamp, Api)>,
}

impl Quotas {
    /// Full buckets.
    pub fn new(now: Timestamp) -> Self {
        let bucket = |quota: &Quota| Bucket {
            capacity: u64::from(quota.burst) * TOKEN,
            per_nanosecond: u64::from(quota.per_second),
            held: u64::from(quota.burst) * TOKEN,
            at: now,
        };
        Self {
            buckets: QUOTAS.iter().map(bucket).collect(),
            calls: [0; QUOTAS.len()],
            throttled: [0; QUOTAS.len()],
            #[cfg(test)]
            log: Vec::new(),
        }
    }

    /// Leaves an action without tokens for ever.
    #[cfg(test)]
    pub(crate) fn close(&mut self, api: Api) {
        let bucket = &mut self.buckets[api as usize];
        (bucket.capacity, bucket.held) = (0, 0);
    }

    /// Counts a call and takes its token; `false`: throttled.
    pub fn take(&mut self, api: Api, now: Timestamp) -> bool {
        let at = api as usize;
        self.calls[at] += 1;
        #[cfg(test)]
        self.log.push((now, api));
        let bucket = &mut self.buckets[at];
        let nanos = u64::try_from(now.since(bucket.at).as_nanos()).unwrap_or(u64::MAX);
        let gained = nanos.saturating_mul(bucket.per_nanosecond);
        bucket.held = bucket.held.saturating_add(gained).min(bucket.capacity);
        bucket.at = bucket.at.max(now);
        let given = bucket.held >= TOKEN;
        if given {
            bucket.held -= TOKEN;
        } else {
            self.throttled[at] += 1;
        }
        given
    }

    /// Forgets what was counted, not what the buckets hold.
    pub fn count_anew(&mut self) {
        self.calls = [0; QUOTAS.len()];
        self.throttled = [0; QUOTAS.len()];
    }

    /// Calls of one action, those throttled included.
    pub fn calls(&self, api: Api) -> u64 {
        self.calls[api as usize]
    }

    /// Calls of each action, those throttled included, and those throttled.
    pub fn counts(&self) -> Vec<(Api, u64, u64)> {
        let all = QUOTAS.iter().map(|quota| quota.api);
        all.map(|api| (api, self.calls[api as usize], self.throttled[api as usize]))
            .collect()
    }

    /// Calls of every action, those throttled included.
    pub fn all_calls(&self) -> u64 {
        self.calls.iter().sum()
    }

    /// Calls that were throttled.
    pub fn all_throttled(&self) -> u64 {
        self.throttled.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_action_finds_its_own_row_of_the_table() {
        for (at, quota) in QUOTAS.iter().enumerate() {
            assert_eq!(quota.api as usize, at, "{}", quota.api);
        }
    }

    #[test]
    fn a_bucket_gives_its_burst_at_once_and_its_rate_from_then_on() {
        let start = Timestamp::from_unix(Duration::from_secs(1));
        let mut quotas = Quotas::new(start);
        let api = Api::AttachNetworkInterface;
        let given = (0..60).filter(|_| quotas.take(api, start)).count();
        assert_eq!(given, 50);
        let later = start + Duration::from_secs(2);
        let given = (0..60).filter(|_| quotas.take(api, later)).count();
        assert_eq!(given, 10);
        let much_later = start + Duration::from_secs(1000);
        let given = (0..60).filter(|_| quotas.take(api, much_later)).count();
        assert_eq!(given, 50, "a bucket holds no more than its capacity");
        assert_eq!(quotas.calls(api), 180);
        assert_eq!(quotas.all_throttled(), 70);
    }

    #[test]
    fn one_actions_empty_bucket_throttles_no_other_action() {
        let start = Timestamp::default();
        let mut quotas = Quotas::new(start);
        while quotas.take(Api::CreateNetworkInterface, start) {}
        assert!(quotas.take(Api::AssignPrivateIpAddresses, start));
    }
}
