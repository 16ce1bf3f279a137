//! When to say what: new trouble soon, standing trouble again and again, never too much at once.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{Report, Subject};
use crate::metrics::Reported;

/// Objects in trouble that are remembered; more are in the log only.
const STANDING_MAX: usize = 1024;

/// New trouble is said within this time, each node at its own moment: the first one's Event is
/// then there when the others come.
const SOON: Duration = Duration::from_secs(3);

/// Standing trouble is said again after so long: within the hour that the API server keeps Events.
const AGAIN: Duration = Duration::from_secs(30 * 60);

/// What was not taken is tried again after so long.
const RETRY: Duration = Duration::from_secs(60);

/// At most one Event in so long, once [`BURST`] are used up.
const PACE: Duration = Duration::from_secs(1);

/// Events that may go out at once.
const BURST: u32 = 16;

/// What is to be said, and when.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    standing: BTreeMap<Subject, Standing>,
    /// When the last allowance of [`BURST`] is whole again; in the past: it is.
    whole_at: Option<Instant>,
}

#[derive(Debug)]
struct Standing {
    problems: Vec<String>,
    due: Instant,
    /// How often this node's own Event of it was sent.
    said: u32,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Say this, which was said by us so often before.
    Now((Report, u32)),
    /// Nothing before then.
    At(Instant),
    /// Nothing.
    Never,
}

impl Schedule {
    /// Takes in a report; `false` when there is no room for it. `spread` is between 0 and 1.
    pub(super) fn note(&mut self, report: Report, now: Instant, spread: f64) -> bool {
        let Report { subject, problems } = report;
        if problems.is_empty() {
            self.standing.remove(&subject);
            return true;
        }
        if let Some(standing) = self.standing.get(&subject) {
            if standing.problems == problems {
                return true;
            }
        } else if self.standing.len() >= STANDING_MAX {
            return false;
        }
        let standing = Standing {
            problems,
            due: now + SOON.mul_f64(spread),
            said: 0,
        };
        self.standing.insert(subject, standing);
        true
    }

    pub(super) fn due(&self, now: Instant) -> Due {
        let next = self
            .standing
            .iter()
            .min_by_key(|(_, standing)| standing.due);
        let Some((subject, standing)) = next else {
            return Due::Never;
        };
        // With the allowance used up it becomes whole BURST paces from now.
        let allowed = self
            .whole_at
            .and_then(|whole| whole.checked_sub(PACE * (BURST - 1)));
        let when = allowed.map_or(standing.due, |allowed| allowed.max(standing.due));
        if when > now {
            return Due::At(when);
        }
        let report = Report {
            subject: subject.clone(),
            problems: standing.problems.clone(),
        };
        Due::Now((report, standing.said))
    }

    /// What became of it.
    pub(super) fn sent(&mut self, report: &Report, outcome: Reported, now: Instant) {
        self.whole_at = Some(self.whole_at.map_or(now, |whole| whole.max(now)) + PACE);
        let Some(standing) = self.standing.get_mut(&report.subject) else {
            return;
        };
        match outcome {
            Reported::Sent => {
                standing.said += 1;
                standing.due = now + AGAIN;
            }
            Reported::Known => standing.due = now + AGAIN,
            Reported::Failed | Reported::LeftOut => standing.due = now + RETRY,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::*;

    fn report(name: &str, problems: &[&str]) -> Report {
        Report {
            subject: Subject {
                kind: Kind::NetworkPolicy,
                namespace: "shop".to_owned(),
                name: name.to_owned(),
                uid: name.to_owned(),
            },
            problems: problems.iter().map(|&it| it.to_owned()).collect(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn trouble_is_said_once_and_again_while_it_lasts() {
        let mut schedule = Schedule::default();
        let start = Instant::now();
        let bad = report("a", &["bad"]);
        schedule.note(bad.clone(), start, 1.0);
        schedule.note(bad.clone(), start + SOON, 1.0);
        assert_eq!(schedule.due(start), Due::At(start + SOON));
        assert_eq!(schedule.due(start + SOON), Due::Now((bad.clone(), 0)));
        schedule.sent(&bad, Reported::Sent, start + SOON);
        schedule.note(bad.clone(), start + SOON, 1.0);
        let again = start + SOON + AGAIN;
        assert_eq!(schedule.due(start + SOON), Due::At(again));
        assert_eq!(schedule.due(again), Due::Now((bad.clone(), 1)));
        let worse = report("a", &["worse"]);
        schedule.note(worse.clone(), start + SOON, 0.0);
        assert_eq!(
            schedule.due(start + SOON),
            Due::Now((worse, 0)),
            "other words"
        );
        schedule.note(report("a", &[]), again, 0.0);
        assert_eq!(schedule.due(again + AGAIN), Due::Never, "mended");
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_bad_policies_goes_out_one_a_second_behind_the_first_few() {
        let mut schedule = Schedule::default();
        let start = Instant::now();
        for number in 0..100 {
            schedule.note(report(&number.to_string(), &["bad"]), start, 0.0);
        }
        let mut now = start;
        let mut said = Vec::new();
        while said.len() < 40 {
            match schedule.due(now) {
                Due::Now((report, _)) => {
                    schedule.sent(&report, Reported::Sent, now);
                    said.push(now - start);
                }
                Due::At(when) => now = when,
                Due::Never => panic!("there is more to say"),
            }
        }
        assert_eq!(said[BURST as usize - 1], Duration::ZERO);
        assert_eq!(said[BURST as usize], PACE);
        assert_eq!(said[39], PACE * (40 - BURST));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded_and_a_refused_event_is_tried_again() {
        let mut schedule = Schedule::default();
        let start = Instant::now();
        for number in 0..STANDING_MAX {
            assert!(schedule.note(report(&number.to_string(), &["bad"]), start, 1.0));
        }
        assert!(!schedule.note(report("late", &["bad"]), start, 0.0));
        schedule.standing.retain(|subject, _| subject.name == "0");
        let one = report("0", &["bad"]);
        schedule.sent(&one, Reported::Failed, start);
        assert_eq!(schedule.due(start), Due::At(start + RETRY));
        assert_eq!(schedule.due(start + RETRY), Due::Now((one, 0)));
    }
}
