use selvage_policy_core::ruleset::Family;

use super::*;

const GAP: Duration = Duration::from_millis(50);

fn recompile() -> Delta {
    Delta {
        recompile: true,
        ..Delta::default()
    }
}

fn members() -> Delta {
    Delta {
        members: true,
        ..Delta::default()
    }
}

/// Rules that are due are written until they would have to wait: how often.
fn write_all(pending: &mut Pending, now: Instant) -> u32 {
    let mut writes = 0;
    loop {
        pending.add(&recompile());
        match pending.due(now) {
            Due::Now(Work::Rules) => {
                pending.begin_rules(now);
                pending.succeeded();
                writes += 1;
            }
            Due::At(_) => return writes,
            other @ (Due::Now(Work::Members) | Due::Inspect | Due::Tell | Due::Never) => {
                panic!("{other:?}")
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn first_changes_go_in_at_once_and_a_burst_shares_the_next_write() {
    let mut pending = Pending::new(GAP);
    let start = Instant::now();
    assert_eq!(pending.due(start), Due::Never);
    pending.add(&recompile());
    assert_eq!(pending.due(start), Due::Now(Work::Rules));
    pending.begin_rules(start);
    pending.add(&recompile());
    assert_eq!(pending.due(start), Due::Never, "work is under way");
    pending.succeeded();
    assert_eq!(write_all(&mut pending, start), BURST - 1);
    assert_eq!(pending.due(start), Due::At(start + GAP));
    assert_eq!(pending.due(start + GAP), Due::Now(Work::Rules));
    pending.begin_rules(start + GAP);
    pending.succeeded();
    assert_eq!(pending.due(start + GAP * 9), Due::Never);
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_changes_costs_one_write_a_gap_and_calm_pays_for_the_next_burst() {
    let mut pending = Pending::new(GAP);
    let mut now = Instant::now();
    assert_eq!(write_all(&mut pending, now), BURST);
    for _ in 0..20 {
        now += GAP;
        assert_eq!(write_all(&mut pending, now), 1);
    }
    now += GAP * 100;
    assert_eq!(write_all(&mut pending, now), BURST);
}

#[tokio::test(start_paused = true)]
async fn members_do_not_wait_for_the_gap_unless_chains_are_to_be_compiled() {
    let mut pending = Pending::new(GAP);
    let start = Instant::now();
    write_all(&mut pending, start);
    pending.rules = false;
    pending.add(&members());
    assert_eq!(pending.due(start), Due::Now(Work::Members));
    pending.add(&recompile());
    assert_eq!(pending.due(start), Due::At(start + GAP));
    pending.begin_rules(start + GAP);
    pending.succeeded();
    assert_eq!(
        pending.due(start + GAP * 9),
        Due::Never,
        "compiled sets hold the change"
    );
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_members_shares_writes_and_a_lone_one_goes_in_at_once() {
    let mut pending = Pending::new(GAP);
    let start = Instant::now();
    // A pod every 15 ms never waits.
    let mut now = start;
    for _ in 0..100 {
        pending.add(&members());
        assert_eq!(pending.due(now), Due::Now(Work::Members));
        pending.begin_members();
        pending.members_changed(now, Duration::from_millis(1));
        pending.succeeded();
        now += Duration::from_millis(15);
    }
    // As many as there may be, for a second, each write as dear as four pods'.
    let (mut writes, end) = (0, now + Duration::from_secs(1));
    while now < end {
        pending.add(&members());
        match pending.due(now) {
            Due::Now(Work::Members) => {
                pending.begin_members();
                pending.members_changed(now, Duration::from_millis(4));
                pending.succeeded();
                writes += 1;
            }
            Due::At(when) => now = when,
            other @ (Due::Now(Work::Rules) | Due::Inspect | Due::Tell | Due::Never) => {
                panic!("{other:?}")
            }
        }
    }
    assert!((16..=24).contains(&writes), "{writes} writes");
    // One that took a second is not paid for with fifteen.
    pending.add(&members());
    pending.begin_members();
    pending.members_changed(now, Duration::from_secs(1));
    pending.succeeded();
    pending.add(&members());
    let Due::At(when) = pending.due(now) else {
        panic!("it rests")
    };
    assert!(when <= now + MEMBERS_REST_MAX * 2, "{:?}", when - now);
}

#[tokio::test(start_paused = true)]
async fn members_that_turn_out_to_need_rules_are_not_written() {
    let mut pending = Pending::new(GAP);
    pending.add(&members());
    pending.begin_members();
    pending.rules_instead();
    assert_eq!(pending.due(Instant::now()), Due::Now(Work::Rules));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_moves_needs_no_rules_but_its_file_waits_for_those_that_are_due() {
    let mut pending = Pending::new(GAP);
    let now = Instant::now();
    pending.moved();
    assert_eq!(pending.due(now), Due::Tell);
    pending.begin_telling();
    assert_eq!(pending.due(now), Due::Never, "work is under way");
    pending.told();
    assert_eq!(pending.due(now), Due::Never);
    pending.moved();
    pending.add(&recompile());
    assert_eq!(pending.due(now), Due::Now(Work::Rules));
    pending.begin_rules(now);
    pending.succeeded();
    assert_eq!(pending.due(now), Due::Never);
}

#[tokio::test(start_paused = true)]
async fn after_a_failure_everything_is_looked_at_afresh_after_a_growing_pause() {
    let mut pending = Pending::new(GAP);
    let mut now = Instant::now();
    assert_eq!(pending.begin_rules(now), Look::Afresh, "nothing is known");
    pending.succeeded();
    now += GAP;
    pending.add(&members());
    pending.begin_members();
    let mut pauses = Vec::new();
    for _ in 0..9 {
        let pause = pending.failed(now);
        pauses.push(pause);
        assert_eq!(pending.due(now), Due::At(now + pause));
        now += pause;
        assert_eq!(pending.due(now), Due::Now(Work::Rules));
        assert_eq!(pending.begin_rules(now), Look::Afresh);
    }
    assert_eq!(pauses[0], PAUSE_FIRST);
    assert_eq!(pauses[1], PAUSE_FIRST * 2);
    assert_eq!(pauses[8], PAUSE_MAX);
    pending.succeeded();
    pending.add(&recompile());
    assert_eq!(pending.begin_rules(now + GAP), Look::Remembered);
    assert_eq!(
        pending.failed(now + GAP),
        PAUSE_FIRST,
        "a success starts anew"
    );
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_deleted_is_tried_again_soon_and_then_ever_less_often() {
    let mut pending = Pending::new(GAP);
    let mut now = Instant::now();
    pending.begin_rules(now);
    pending.succeeded();
    for pause in [SWEEP_FIRST, SWEEP_FIRST * 2, SWEEP_FIRST * 4] {
        pending.left(now, 1);
        assert_eq!(pending.due(now), Due::At(now + pause));
        now += pause;
        assert_eq!(pending.due(now), Due::Now(Work::Rules));
        assert_eq!(pending.begin_rules(now), Look::Afresh);
        pending.succeeded();
    }
    pending.left(now, 1);
    pending.add(&members());
    assert_eq!(pending.due(now), Due::Now(Work::Members), "not held up");
    pending.begin_members();
    pending.succeeded();
    pending.add(&recompile());
    assert_eq!(pending.begin_rules(now), Look::Remembered);
    pending.succeeded();
    pending.left(now, 0);
    assert!(
        matches!(pending.due(now), Due::At(_)),
        "what is remembered does not tell of leftovers"
    );
    pending.look_afresh();
    pending.begin_rules(now);
    pending.succeeded();
    pending.left(now, 0);
    assert_eq!(pending.due(now), Due::Never);
}

#[tokio::test(start_paused = true)]
async fn a_suspicion_is_looked_at_at_once_and_a_fight_gets_slower() {
    let mut pending = Pending::new(GAP);
    let mut now = Instant::now();
    let mut pauses = Vec::new();
    for time in 1..=REPAIRS_FREE + 24 {
        pending.suspect(Suspect::Sets);
        match pending.due(now) {
            Due::Inspect => pauses.push(Duration::ZERO),
            Due::At(when) => {
                pauses.push(when - now);
                now = when;
                assert_eq!(pending.due(now), Due::Inspect);
            }
            other @ (Due::Now(_) | Due::Tell | Due::Never) => panic!("{other:?}"),
        }
        assert_eq!(pending.begin_inspection(), [Suspect::Sets].into());
        assert_eq!(pending.inspected(true, now), time);
        now += GAP;
        assert_eq!(pending.due(now), Due::Now(Work::Rules));
        assert_eq!(pending.begin_rules(now), Look::Afresh);
        pending.succeeded();
    }
    assert_eq!(pauses[..REPAIRS_FREE as usize], [Duration::ZERO; 5]);
    let late: Duration = pauses[pauses.len() - 12..].iter().sum();
    assert!(
        late > 12 * PAID / 2 && late < 12 * PAID * 2,
        "about one in {PAID:?}: {pauses:?}"
    );
    now += CALM;
    assert_eq!(pending.fought(now), 0);
    pending.suspect(Suspect::Sets);
    assert_eq!(pending.due(now), Due::Inspect);
    pending.begin_inspection();
    assert_eq!(pending.inspected(false, now), 0);
    assert_eq!(pending.due(now), Due::Never, "nothing was changed");
}

#[tokio::test(start_paused = true)]
async fn what_somebody_changes_now_and_then_is_looked_at_at_once_however_long_it_goes_on() {
    let mut pending = Pending::new(GAP);
    let mut now = Instant::now();
    for time in 1..=50 {
        pending.suspect(Suspect::Sets);
        assert_eq!(pending.due(now), Due::Inspect, "{time}");
        pending.begin_inspection();
        assert_eq!(pending.inspected(true, now), time, "and it is told");
        pending.begin_rules(now);
        pending.succeeded();
        now += PAID;
    }
}

#[tokio::test(start_paused = true)]
async fn where_rules_alone_were_changed_sets_are_believed_unless_more_is_asked_for() {
    let mut pending = Pending::new(GAP);
    let now = Instant::now();
    pending.begin_rules(now);
    pending.succeeded();
    pending.suspect(Suspect::Rules(Family::V4));
    pending.begin_inspection();
    pending.suspect(Suspect::Rules(Family::V4));
    pending.suspect(Suspect::Sets);
    assert_eq!(pending.inspected_rules(now), 1);
    assert_eq!(pending.due(now), Due::Now(Work::Rules));
    assert_eq!(pending.begin_rules(now), Look::Rules);
    pending.succeeded();
    assert_eq!(pending.begin_inspection(), [Suspect::Sets].into());
    pending.inspected(true, now);
    assert_eq!(pending.inspected_rules(now), 3);
    assert_eq!(pending.begin_rules(now), Look::Afresh);
}

#[tokio::test(start_paused = true)]
async fn what_we_have_to_write_does_not_wait_for_a_look_at_others_hands() {
    let mut pending = Pending::new(GAP);
    let now = Instant::now();
    pending.suspect(Suspect::Members);
    pending.add(&members());
    assert_eq!(pending.due(now), Due::Now(Work::Members));
    pending.begin_members();
    assert_eq!(pending.due(now), Due::Never, "one at a time");
    pending.succeeded();
    assert_eq!(pending.due(now), Due::Inspect);
}
