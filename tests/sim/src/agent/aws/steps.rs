//! Calls to EC2, one after the other (§4.6), and what their errors lead to (§4.12).

use std::time::Duration;

use ipnet::Ipv4Net;
use selvage_ipamd_core::ids::{EniId, Timestamp};

use super::{Aws, Event, HOST, METADATA};
use crate::agent::Io;
use crate::ec2::{Ask, Refusal, View};
use crate::quota::Api;

/// The SDK's standard retryer makes three attempts of a throttled call (§4.6).
const ATTEMPTS: u32 = 3;
/// Its pause before the n-th retry is up to 2^n seconds, at random (aws-sdk-go-v2, `retry.ExponentialJitterBackoff`).
const SDK_PAUSE: Duration = Duration::from_secs(1);
/// Tries of CreateTags (§4.1), and the first pause between them. Unverified: the pause.
const TAG_TRIES: u32 = 5;
const TAG_PAUSE: Duration = Duration::from_millis(500);
/// An attached interface is looked for in instance metadata so often, first after this, doubled (§4.1).
const LOOKS: u32 = 12;
const FIRST_LOOK: Duration = Duration::from_millis(100);
const LONGEST_LOOK: Duration = Duration::from_secs(60);
/// Detach and delete are tried so often, first after these, doubled, with a pause between the two (§4.1).
const REMOVE_TRIES: u32 = 12;
const DETACH_PAUSE: Duration = Duration::from_millis(200);
const DELETE_PAUSE: Duration = Duration::from_millis(500);
const BETWEEN: Duration = Duration::from_secs(2);

/// A call, with what is needed to go on from its reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Start: the interfaces' tags and kinds.
    DescribeAll,
    /// Start: the missing tags of an interface; the how-many-eth try.
    Tag(EniId, u32),
    /// Start: whether the interface's subnet is excluded by a tag (§4.4, §4.7).
    Excluded,
    /// More for an interface. `last`: asks for one, after more were refused.
    Fill {
        /// The interface.
        eni: EniId,
        /// How much.
        ask: Ask,
        /// Asks for one, after more were refused.
        last: bool,
    },
    /// What an interface that cannot take more really holds.
    Import(EniId),
    /// A new interface: the subnets.
    Subnets,
    /// A new interface: itself.
    Create,
    /// A new interface: a free device index.
    Instances(View),
    /// A new interface: attached.
    Attach(View),
    /// A new interface: ends with the instance.
    Modify(View),
    /// CIDRs given back.
    Unassign {
        /// Of which interface.
        eni: EniId,
        /// Which.
        cidrs: Vec<Ipv4Net>,
    },
    /// An interface given back: its attachment.
    FindAttachment(EniId),
    /// An interface given back: detached; the how-many-eth try.
    Detach(EniId, u32),
    /// An interface given back, or one that could not be attached: deleted; the how-many-eth try.
    Delete(EniId, u32),
    /// Reconcile: what an interface really holds.
    Verify(EniId),
}

/// What a reply says.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Interfaces.
    Views(Vec<View>),
    /// More of them.
    Cidrs(Vec<Ipv4Net>),
    /// That it is done.
    Done,
}

impl Aws {
    /// Makes a call, with the SDK's attempts.
    pub(super) fn call(&mut self, step: Step, io: &mut Io<'_, Event>) {
        self.attempt(step, 1, io);
    }

    pub(super) fn attempt(&mut self, step: Step, attempt: u32, io: &mut Io<'_, Event>) {
        let (node, now) = (io.node, io.now);
        let done =
            |(at, result): (Timestamp, Result<(), Refusal>)| (at, result.map(|()| Answer::Done));
        let one = |(at, result): (Timestamp, Result<Option<View>, Refusal>)| {
            (
                at,
                result.map(|view| Answer::Views(view.into_iter().collect())),
            )
        };
        let (at, result) = match &step {
            Step::DescribeAll => {
                let (at, views) = io.ec2.describe_attached(node, now);
                (at, views.map(Answer::Views))
            }
            Step::Tag(eni, _) => done(io.ec2.tag(eni, &Default::default(), now)),
            Step::Fill { eni, ask, .. } => {
                let (at, cidrs) = io.ec2.assign(eni, *ask, now);
                (at, cidrs.map(Answer::Cidrs))
            }
            Step::Import(eni) | Step::Verify(eni) | Step::FindAttachment(eni) => {
                one(io.ec2.describe_one(eni, now))
            }
            Step::Excluded | Step::Subnets => {
                done(io.ec2.describe_other(Api::DescribeSubnets, now))
            }
            Step::Create => {
                let what = (self.machine.subnet, self.ask(self.places()));
                let (at, made) = io.ec2.create(node, what, "", Default::default(), now);
                (at, made.map(|view| Answer::Views(vec![view])))
            }
            Step::Instances(_) => done(io.ec2.describe_other(Api::DescribeInstances, now)),
            Step::Attach(view) => {
                let taken: Vec<u16> = io
                    .ec2
                    .truth(node, now)
                    .iter()
                    .filter_map(|view| view.attachment.as_ref().map(|(_, index)| *index))
                    .collect();
                let index = (1..u16::MAX)
                    .find(|index| !taken.contains(index))
                    .unwrap_or(1);
                let (at, attached) = io.ec2.attach(&view.id, index, now);
                (at, attached.map(|_| Answer::Done))
            }
            Step::Modify(view) => done(io.ec2.keep_with_instance(&view.id, now)),
            Step::Unassign { eni, cidrs } => done(io.ec2.unassign(eni, cidrs, now)),
            Step::Detach(eni, _) => done(io.ec2.detach(eni, now)),
            Step::Delete(eni, _) => done(io.ec2.delete(eni, now)),
        };
        io.wake(at, Event::Reply(step, attempt, result));
    }

    pub(super) fn reply(
        &mut self,
        step: Step,
        attempt: u32,
        result: Result<Answer, Refusal>,
        io: &mut Io<'_, Event>,
    ) {
        match result {
            Err(Refusal::THROTTLED) if attempt < ATTEMPTS => {
                let most = SDK_PAUSE.saturating_mul(1 << (attempt - 1));
                let pause = most.mul_f64(self.rng.f64());
                io.wake(io.now + pause, Event::Call(step, attempt + 1));
            }
            Ok(answer) => self.done(step, answer, io),
            Err(refusal) => self.refused(step, refusal, io),
        }
    }

    fn done(&mut self, step: Step, answer: Answer, io: &mut Io<'_, Event>) {
        let (views, cidrs) = match answer {
            Answer::Views(views) => (views, Vec::new()),
            Answer::Cidrs(cidrs) => (Vec::new(), cidrs),
            Answer::Done => (Vec::new(), Vec::new()),
        };
        let view = views.first();
        match step {
            Step::DescribeAll => {
                let index = |view: &View| view.attachment.as_ref().map(|(_, index)| *index);
                for view in &views {
                    self.store
                        .add(&view.id, index(view) == Some(0), &view.blocks, io.now);
                }
                match view {
                    Some(primary) if !self.tagged => {
                        self.call(Step::Tag(primary.id.clone(), 1), io)
                    }
                    Some(_) | None => self.call(Step::Excluded, io),
                }
            }
            Step::Tag(..) => {
                self.tagged = true;
                self.call(Step::Excluded, io);
            }
            Step::Excluded => self.increase(io),
            Step::Fill { eni, .. } => {
                self.store.add(&eni, false, &cidrs, io.now);
                self.last_action = io.now;
                self.go_on(io);
            }
            Step::Import(eni) | Step::Verify(eni) => {
                self.import(&eni, view, io.now);
                self.verify_next(io);
            }
            Step::Subnets => self.call(Step::Create, io),
            Step::Create => match view {
                Some(made) => self.call(Step::Instances(made.clone()), io),
                None => self.go_on(io),
            },
            Step::Instances(view) => self.call(Step::Attach(view), io),
            Step::Attach(view) => self.call(Step::Modify(view), io),
            Step::Modify(view) => {
                let wanted = view.blocks.clone();
                io.wake(io.now + FIRST_LOOK, Event::Look(view, wanted, 1));
            }
            Step::Unassign { .. } => {
                self.last_action = io.now;
                self.give_back(io);
            }
            Step::FindAttachment(eni) => self.call(Step::Detach(eni, 1), io),
            Step::Detach(eni, _) => io.wake(io.now + BETWEEN, Event::Call(Step::Delete(eni, 1), 1)),
            Step::Delete(..) => self.go_on(io),
        }
    }

    fn refused(&mut self, step: Step, refusal: Refusal, io: &mut Io<'_, Event>) {
        let exhausted = refusal.is_exhaustion();
        match step {
            // Fatal: the process ends and is started again.
            Step::DescribeAll => self.crash(io),
            Step::Tag(eni, tries) if tries < TAG_TRIES => {
                let pause = TAG_PAUSE.saturating_mul(1 << (tries - 1));
                io.wake(io.now + pause, Event::Call(Step::Tag(eni, tries + 1), 1));
            }
            Step::Tag(..) => self.crash(io),
            Step::Excluded => self.increase(io),
            Step::Fill { eni, .. } if refusal.code == "PrivateIpAddressLimitExceeded" => {
                self.call(Step::Import(eni), io);
            }
            Step::Fill {
                eni,
                ask,
                last: false,
            } => {
                let ask = match ask {
                    Ask::Addresses(_) => Ask::Addresses(1),
                    Ask::Prefixes(_) => Ask::Prefixes(1),
                };
                self.call(
                    Step::Fill {
                        eni,
                        ask,
                        last: true,
                    },
                    io,
                );
            }
            Step::Fill { last: true, .. } | Step::Create => {
                if exhausted {
                    self.exhausted = Some(io.now);
                }
                self.go_on(io);
            }
            // Without an answer the primary's subnet is taken.
            Step::Subnets => self.call(Step::Create, io),
            Step::Instances(view) | Step::Attach(view) => self.call(Step::Delete(view.id, 1), io),
            Step::Modify(view) => self.call(Step::Detach(view.id, 1), io),
            Step::Import(_) => self.go_on(io),
            Step::Verify(_) => self.verify_next(io),
            Step::Unassign { eni, cidrs } => {
                // Still ours.
                self.store.add(&eni, false, &cidrs, io.now);
                self.give_back(io);
            }
            Step::FindAttachment(_) => self.go_on(io),
            Step::Detach(eni, tries) | Step::Delete(eni, tries) if tries >= REMOVE_TRIES => {
                // Left to the next reconcile, or to the hourly job.
                drop(eni);
                self.go_on(io);
            }
            Step::Detach(eni, tries) => {
                let pause = DETACH_PAUSE.saturating_mul(1 << (tries - 1).min(16));
                io.wake(io.now + pause, Event::Call(Step::Detach(eni, tries + 1), 1));
            }
            Step::Delete(eni, tries) => {
                let pause = DELETE_PAUSE.saturating_mul(1 << (tries - 1).min(16));
                io.wake(io.now + pause, Event::Call(Step::Delete(eni, tries + 1), 1));
            }
        }
    }

    /// Waits until instance metadata shows the new interface with all it was made with.
    pub(super) fn look(
        &mut self,
        view: &View,
        wanted: Vec<Ipv4Net>,
        tries: u32,
        io: &mut Io<'_, Event>,
    ) {
        let seen = io.ec2.seen(io.node, io.now);
        let there = seen.iter().any(|shown| {
            shown.id == view.id && wanted.iter().all(|net| shown.blocks.contains(net))
        });
        if there {
            let ready = io.now + METADATA + HOST;
            self.store.add(&view.id, false, &wanted, ready);
            self.last_action = ready;
            self.go_on(io);
        } else if tries < LOOKS {
            let pause = FIRST_LOOK.saturating_mul(1 << tries).min(LONGEST_LOOK);
            io.wake(io.now + pause, Event::Look(view.clone(), wanted, tries + 1));
        } else {
            // It stays attached: a later reconcile adopts it.
            self.go_on(io);
        }
    }
}
