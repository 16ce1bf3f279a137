//! A token bucket over all calls to EC2, one for those that read and one for those that change, as EC2 itself counts.
//!
//! ```text
//!   rate ──> tokens (up to a burst) ──take──> call ── ok ────────> rate + a step, up to this node's share
//!                                              └───── throttled ─> rate / 2, tokens gone
//! ```
//!
//! EC2's budgets are for an account and a region; a node cannot see the others. So it takes a share that is small
//! beside the whole, waits for its turn where many start at once ([`Bucket::share`]), and gives way when EC2 says that there are too many calls: halving when told
//! so, a small step up with each call that goes well, is what lets strangers share a budget (additive increase,
//! multiplicative decrease). Every loop of the daemon draws on the same bucket, so that none shouts while another rests.

use std::time::Duration;

use crate::cloud::Budget;
use crate::ids::Timestamp;
use crate::retry::Jitter;

/// Calls that one node may make at once after a rest: enough for an interface with all that belongs to it, twice.
const BURST: f64 = 10.0;
/// Calls in a second that one node makes at most when it goes on and on.
const RATE: f64 = 2.0;
/// Calls in a second that EC2 grants an account in a region, by its documentation ("Request throttling for the Amazon
/// EC2 API": refill rates of non-mutating and of mutating actions).
const REGION_READS: f64 = 20.0;
/// See [`REGION_READS`].
const REGION_CHANGES: f64 = 5.0;
/// Part of the region's rate that nodes which start together take: the rest is for those that run.
const TOGETHER: f64 = 0.9;
/// Each action of EC2's has a budget of its own. A node that starts asks once what is attached; it counts as two, so that
/// its turn to read comes with its turn to change something, and until then it hears of others that start ...
const READS_OF_A_START: f64 = 2.0;
/// ... and makes one change before it can serve: half of many nodes assign addresses, half make an interface.
const CHANGES_OF_A_START: f64 = 0.5;
/// From so many nodes on it is worth while to use both ways.
const MANY: u32 = 100;
/// Between two questions how many nodes start, at least: that many ask.
const LOOK: Duration = Duration::from_secs(10);
/// Longest time between two calls: a cause that went away is noticed within two minutes.
const LONGEST: f64 = 120.0;
/// A success brings the rate back by this part of the whole.
const STEP: f64 = 0.125;

/// One budget's side of the bucket, to be looked at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// Calls that could be made at once.
    pub calls: u32,
    /// Calls in a second that it is filled with.
    pub rate: f64,
    /// Calls in a second that it would be filled with had EC2 never complained.
    pub full_rate: f64,
    /// When the next call may be made; nothing if at once.
    pub next_in: Duration,
    /// How often EC2 said that there are too many calls.
    pub throttled: u64,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Bucket {
    read: Lane,
    change: Lane,
    turn: Option<Turn>,
    jitter: Jitter,
}

/// A node's turn among those that start together: all turns are spread evenly over the time that EC2 needs for them.
#[derive(Debug, Clone, Copy)]
struct Turn {
    since: Timestamp,
    /// Where in the row the node stands, from 0 to 1.
    place: f64,
    nodes: u32,
}

#[derive(Debug, Clone)]
struct Lane {
    tokens: f64,
    burst: f64,
    rate: f64,
    full_rate: f64,
    at: Timestamp,
    throttled: u64,
}

impl Bucket {
    /// A full bucket for a node that starts alone.
    pub fn new(seed: u64) -> Self {
        let lane = Lane {
            tokens: BURST,
            burst: BURST,
            rate: RATE,
            full_rate: RATE,
            at: Timestamp::default(),
            throttled: 0,
        };
        Self {
            read: lane.clone(),
            change: lane,
            turn: None,
            jitter: Jitter::new(seed ^ 0x6275_636b_6574),
        }
    }

    /// Waits for this node's turn where `nodes` start at about the same time, itself included: the turns of all make a
    /// steady stream that EC2 takes. Told again as more is known; a turn is put off if there are more nodes than it
    /// seemed, and never moved up: those that are ahead have made room already.
    pub fn share(&mut self, nodes: u32, now: Timestamp) {
        let place = self.jitter.unit();
        let turn = self.turn.get_or_insert(Turn {
            since: now,
            place,
            nodes: 1,
        });
        turn.nodes = turn.nodes.max(nodes);
    }

    /// Whether this node, starting with many, makes an interface first instead of filling the one that it has: the two
    /// ways draw on different budgets of EC2's.
    pub fn begins_with_eni(&self) -> bool {
        self.turn
            .is_some_and(|turn| turn.nodes >= MANY && (turn.place * 1024.0) as u32 % 2 == 1)
    }

    /// How long until it is worth while to ask again how many nodes start; `None` once this node's turn has come.
    pub fn look_in(&self, now: Timestamp) -> Option<Duration> {
        let left = self.turn_in(Budget::Change, now);
        (left > Duration::ZERO).then_some(LOOK)
    }

    /// How long until this node's turn.
    fn turn_in(&self, budget: Budget, now: Timestamp) -> Duration {
        let Some(turn) = self.turn else {
            return Duration::ZERO;
        };
        let each = match budget {
            Budget::Read => READS_OF_A_START / (REGION_READS * TOGETHER),
            Budget::Change => CHANGES_OF_A_START / (REGION_CHANGES * TOGETHER),
        };
        let after = Duration::from_secs_f64(each * f64::from(turn.nodes - 1) * turn.place);
        (turn.since + after).since(now)
    }

    /// Calls that may be made now.
    pub fn available(&self, budget: Budget, now: Timestamp) -> u32 {
        // A hair more than what is counted: after `ready_in` there is a whole token, whatever was rounded. Never
        // negative, and a burst at most.
        if self.turn_in(budget, now) > Duration::ZERO {
            return 0;
        }
        (self.lane(budget).tokens_at(now) + 1e-6).max(0.0) as u32
    }

    /// Whether so little was used lately that what can wait may be done.
    pub fn is_calm(&self, budget: Budget, now: Timestamp) -> bool {
        let lane = self.lane(budget);
        let rested = lane.tokens_at(now) >= (lane.burst / 2.0).max(1.0);
        rested && self.turn_in(budget, now) == Duration::ZERO
    }

    /// Notes a call that is about to be made, also one that could not wait.
    pub fn take(&mut self, budget: Budget, now: Timestamp) {
        let lane = self.lane_mut(budget);
        lane.refill(now);
        lane.tokens -= 1.0;
    }

    /// How long until the next call may be made.
    pub fn ready_in(&self, budget: Budget, now: Timestamp) -> Duration {
        self.lane(budget)
            .ready_in(now)
            .max(self.turn_in(budget, now))
    }

    /// Notes that EC2 said there are too many calls.
    pub fn throttled(&mut self, budget: Budget, now: Timestamp) {
        // Two calls begun together are refused together: that is one complaint and costs the tokens only once, but
        // either makes the node slower.
        let spread = self.jitter.spread(Duration::from_secs(1)).as_secs_f64();
        let lane = self.lane_mut(budget);
        lane.refill(now);
        lane.throttled += 1;
        lane.rate = (lane.rate / 2.0).max(1.0 / LONGEST);
        // The next call after about one interval of the new rate.
        lane.tokens = lane.tokens.min(1.0 - spread).max(-1.0);
    }

    /// Notes that EC2 has answered a call otherwise.
    pub fn went_well(&mut self, budget: Budget, now: Timestamp) {
        let lane = self.lane_mut(budget);
        lane.refill(now);
        lane.rate = (lane.rate + lane.full_rate * STEP).min(lane.full_rate);
    }

    /// One budget's side, to be looked at.
    pub fn level(&self, budget: Budget, now: Timestamp) -> Level {
        let lane = self.lane(budget);
        Level {
            calls: self.available(budget, now),
            rate: lane.rate,
            full_rate: lane.full_rate,
            next_in: self.ready_in(budget, now),
            throttled: lane.throttled,
        }
    }

    /// Whether EC2 has complained and the rate has not come back since.
    pub fn is_slowed(&self, budget: Budget) -> bool {
        let lane = self.lane(budget);
        lane.rate < lane.full_rate
    }

    fn lane(&self, budget: Budget) -> &Lane {
        match budget {
            Budget::Read => &self.read,
            Budget::Change => &self.change,
        }
    }

    fn lane_mut(&mut self, budget: Budget) -> &mut Lane {
        match budget {
            Budget::Read => &mut self.read,
            Budget::Change => &mut self.change,
        }
    }
}

impl Lane {
    fn tokens_at(&self, now: Timestamp) -> f64 {
        let gained = now.since(self.at).as_secs_f64() * self.rate;
        (self.tokens + gained).min(self.burst)
    }

    fn refill(&mut self, now: Timestamp) {
        self.tokens = self.tokens_at(now);
        self.at = self.at.max(now);
    }

    fn ready_in(&self, now: Timestamp) -> Duration {
        let missing = 1.0 - self.tokens_at(now);
        Duration::try_from_secs_f64(missing / self.rate).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Timestamp {
        Timestamp::from_unix(Duration::from_secs_f64(1000.0 + seconds))
    }

    /// Calls that can be made until `end`, one each time the bucket allows it.
    fn calls_until(bucket: &mut Bucket, budget: Budget, start: f64, end: f64) -> u32 {
        let mut now = start;
        let mut calls = 0;
        loop {
            now += bucket.ready_in(budget, at(now)).as_secs_f64();
            if now > end {
                return calls;
            }
            bucket.take(budget, at(now));
            calls += 1;
        }
    }

    #[test]
    fn a_rested_node_makes_a_burst_of_calls_and_then_a_steady_stream() {
        let mut bucket = Bucket::new(1);
        assert_eq!(bucket.available(Budget::Change, at(0.0)), 10);
        assert_eq!(calls_until(&mut bucket, Budget::Change, 0.0, 0.0), 10);
        assert_eq!(calls_until(&mut bucket, Budget::Change, 0.0, 10.0), 20);
        assert_eq!(
            bucket.available(Budget::Read, at(10.0)),
            10,
            "reads have a budget of their own"
        );
    }

    #[test]
    fn each_complaint_halves_the_rate_and_each_success_brings_back_a_step() {
        let mut bucket = Bucket::new(1);
        let rate = |bucket: &Bucket| bucket.level(Budget::Change, at(0.0)).rate;
        bucket.throttled(Budget::Change, at(0.0));
        assert_eq!(rate(&bucket), 1.0);
        assert_eq!(bucket.available(Budget::Change, at(0.0)), 0);
        bucket.throttled(Budget::Change, at(0.0));
        assert_eq!(rate(&bucket), 0.5);
        assert!(bucket.is_slowed(Budget::Change));
        for _ in 0..40 {
            bucket.throttled(Budget::Change, at(0.0));
        }
        let longest = bucket.ready_in(Budget::Change, at(0.0));
        assert!(longest <= Duration::from_secs(240), "{longest:?}");
        for _ in 0..8 {
            bucket.went_well(Budget::Change, at(0.0));
        }
        assert!(!bucket.is_slowed(Budget::Change));
        assert_eq!(bucket.level(Budget::Change, at(0.0)).throttled, 42);
    }

    #[test]
    fn what_waits_for_the_bucket_finds_it_ready_when_it_said_so() {
        for seed in 0..50 {
            let mut bucket = Bucket::new(seed);
            for _ in 0..seed % 7 {
                bucket.throttled(Budget::Read, at(0.0));
            }
            calls_until(&mut bucket, Budget::Read, 0.0, 1.0);
            let pause = bucket.ready_in(Budget::Read, at(1.0));
            let then = at(1.0) + pause;
            assert_eq!(bucket.available(Budget::Read, then), 1, "seed {seed}");
        }
    }

    #[test]
    fn nodes_that_start_together_stay_below_the_regions_rate_from_the_first_second() {
        let nodes = 1000;
        let mut first = Vec::new();
        let mut by_eni = 0;
        for seed in 0..nodes {
            let mut bucket = Bucket::new(seed);
            bucket.share(u32::try_from(nodes).unwrap(), at(0.0));
            first.push(bucket.ready_in(Budget::Change, at(0.0)).as_secs_f64());
            by_eni += u32::from(bucket.begins_with_eni());
        }
        let span = 1000.0 * CHANGES_OF_A_START / (REGION_CHANGES * TOGETHER);
        assert!(first.iter().all(|t| *t <= span + 1.0));
        for window in 0..10 {
            let from = span * f64::from(window) / 10.0;
            let within = first
                .iter()
                .filter(|t| **t >= from && **t < from + span / 10.0);
            let count = within.count();
            assert!((60..140).contains(&count), "{count} first calls of 100");
        }
        assert!(
            (400..600).contains(&by_eni),
            "{by_eni} of 1000 make an interface first"
        );
    }

    #[test]
    fn a_turn_is_put_off_for_more_nodes_and_never_moved_up() {
        let mut bucket = Bucket::new(3);
        bucket.share(1, at(0.0));
        assert_eq!(bucket.ready_in(Budget::Change, at(0.0)), Duration::ZERO);
        assert!(!bucket.begins_with_eni());
        bucket.share(1000, at(1.0));
        let put_off = bucket.ready_in(Budget::Change, at(1.0));
        assert!(put_off > Duration::ZERO);
        assert_eq!(bucket.available(Budget::Change, at(1.0)), 0);
        bucket.share(10, at(1.0));
        assert_eq!(bucket.ready_in(Budget::Change, at(1.0)), put_off);
        assert!(bucket.available(Budget::Change, at(1.0) + put_off) > 0);
    }

    #[test]
    fn a_node_asks_how_many_start_until_its_turn() {
        let mut bucket = Bucket::new(3);
        assert_eq!(bucket.look_in(at(0.0)), None, "it knows of no others");
        bucket.share(5000, at(0.0));
        let (mut now, mut looks) = (0.0, 0);
        while let Some(pause) = bucket.look_in(at(now)) {
            assert!(pause >= LOOK);
            now += pause.as_secs_f64();
            looks += 1;
        }
        let turn = bucket.ready_in(Budget::Change, at(0.0));
        assert!(turn > Duration::from_secs(60), "{turn:?}");
        assert!(now < turn.as_secs_f64() + LOOK.as_secs_f64());
        assert!((2..60).contains(&looks), "{looks} looks in {turn:?}");
    }
}
