use super::super::{Traffic, Way};
use super::*;

fn schedule(events: &[(Fault, u64, u64)]) -> Schedule {
    let events = events.iter().cloned();
    let events = events.map(|(fault, start_ms, end_ms)| Event { fault, start_ms, end_ms });
    Schedule { nodes: 4, copies: 2, events: events.collect(), ..Schedule::default() }
}

fn at(node: usize, (start_ms, end_ms): (u64, u64)) -> At {
    At { node, start_ms, end_ms }
}

/// Whether a read at a node without faults must see a write there.
fn sees(schedule: &Schedule, write: (u64, u64), read: (u64, u64)) -> bool {
    schedule.must_see(at(3, write), at(3, read))
}

const CRASH_0: Fault = Fault::Crash { node: 0 };
const CRASH_1: Fault = Fault::Crash { node: 1 };
const PAUSE_0: Fault = Fault::Pause { node: 0 };
const PAUSE_1: Fault = Fault::Pause { node: 1 };
const PAIR: Fault = Fault::OneWayCut { from: 0, to: 1 };

#[test]
fn one_fault_that_is_no_split_excuses_nothing() {
    let faults = [
        CRASH_0,
        PAUSE_1,
        PAIR,
        Fault::PowerCut { node: 1 },
        Fault::Leave { node: 1 },
        Fault::Unreachable { node: 1 },
        Fault::Refuse { node: 1 },
        Fault::Pair { from: 0, to: 1, drops: Traffic::Tcp, both_ways: true },
        Fault::Join { node: 4 },
        Fault::Skew { node: 0, ms: 300_000 },
        Fault::Datagrams { loss: 0.1, duplication: 0.1, corruption: 0.1 },
    ];
    for fault in faults {
        let schedule = schedule(&[(fault, 1_000, 3_000)]);
        assert!(sees(&schedule, (900, 950), (1_500, 1_600)));
        assert!(sees(&schedule, (1_500, 1_600), (2_000, 2_100)));
    }
}

#[test]
fn two_nodes_down_at_once_excuse_what_was_written_before_and_nothing_else() {
    let both = schedule(&[(CRASH_0, 1_000, 3_000), (CRASH_1, 12_000, 13_000)]);
    assert!(sees(&both, (2_000, 2_100), (11_000, 11_100)), "before the second");
    assert!(!sees(&both, (2_000, 2_100), (12_500, 12_600)), "after it");
    assert!(!sees(&both, (11_950, 12_050), (40_000, 40_100)), "written in that moment");
    assert!(sees(&both, (12_100, 12_200), (12_500, 12_600)), "written after it");
    let apart = schedule(&[(CRASH_0, 1_000, 3_000), (CRASH_1, 13_100, 14_000)]);
    assert!(sees(&apart, (2_000, 2_100), (13_500, 13_600)));
    let three_copies = Schedule { copies: 3, ..both };
    assert!(sees(&three_copies, (2_000, 2_100), (12_500, 12_600)));
}

#[test]
fn any_number_may_leave_at_once_as_long_as_one_stays_and_nothing_else_happens() {
    let leave = |node| (Fault::Leave { node }, 1_000, 7_000);
    assert!(sees(&schedule(&[leave(0), leave(1), leave(2)]), (500, 600), (8_000, 8_100)));
    assert!(!sees(&schedule(&[leave(0), leave(1), leave(2), leave(3)]), (500, 600), (8_000, 8_100)));
    assert!(!sees(&schedule(&[leave(0), leave(1), (CRASH_1, 9_000, 9_500)]), (500, 600), (9_200, 9_300)));
}

#[test]
fn a_crash_during_a_pause_counts_as_two_down() {
    let schedule = schedule(&[(PAUSE_1, 1_000, 3_000), (CRASH_0, 2_000, 2_100)]);
    assert!(!sees(&schedule, (500, 600), (2_500, 2_600)));
    assert!(!sees(&schedule, (1_500, 1_600), (2_500, 2_600)), "the only copy may have been at node 0");
    assert!(sees(&schedule, (2_200, 2_300), (2_500, 2_600)));
}

#[test]
fn pauses_hide_for_a_while_what_was_written_before_and_lose_nothing() {
    let both = schedule(&[(PAUSE_0, 1_000, 3_000), (PAUSE_1, 1_500, 3_000)]);
    assert!(!sees(&both, (500, 600), (2_000, 2_100)));
    assert!(!sees(&both, (1_200, 1_300), (2_000, 2_100)), "it may be at node 1 only");
    assert!(sees(&both, (1_600, 1_700), (2_000, 2_100)), "neither has it");
    assert!(sees(&both, (1_600, 1_700), (3_001, 3_010)), "nor an older one any more");
    assert!(sees(&both, (500, 600), (13_100, 13_200)));
    assert!(sees(&schedule(&[(PAUSE_0, 1_000, 3_000)]), (500, 600), (2_000, 2_100)));
}

#[test]
fn a_pair_that_is_cut_excuses_nothing_but_its_own_errors() {
    let pair = schedule(&[(PAIR, 1_000, 3_000)]);
    for node in 0..4 {
        assert!(pair.must_see(at(1, (1_500, 1_600)), at(node, (2_000, 2_100))));
        assert_eq!(pair.may_fail(at(node, (2_000, 2_100))), node < 2);
    }
    let leave = (Fault::Leave { node: 0 }, 2_000, 8_000);
    assert!(sees(&schedule(&[(PAIR, 1_000, 9_000), leave]), (1_500, 1_600), (9_000, 9_100)));
}

#[test]
fn a_pair_that_is_cut_is_a_split_once_no_other_node_stays() {
    let leave = |node| (Fault::Leave { node }, 2_000, 8_000);
    let sees = |nodes, events: &[_]| {
        let schedule = Schedule { nodes, ..schedule(&[&[(PAIR, 1_000, 9_000)], events].concat()) };
        schedule.must_see(at(0, (4_000, 4_100)), at(1, (5_000, 5_100)))
    };
    assert!(sees(4, &[leave(2)]) && sees(3, &[leave(0)]));
    assert!(!sees(3, &[leave(2)]) && !sees(4, &[leave(2), leave(3)]));
}

#[test]
fn a_node_of_a_pair_may_take_with_it_what_the_other_lacks() {
    let then = |fault| schedule(&[(PAIR, 1_000, 9_000), (fault, 2_000, 2_100)]);
    assert!(!sees(&then(CRASH_0), (1_500, 1_600), (3_000, 3_100)));
    assert!(!sees(&then(PAUSE_0), (1_500, 1_600), (2_050, 2_060)));
}

#[test]
fn a_split_excuses_what_happened_on_the_other_side() {
    let one = schedule(&[(Fault::OneAgainstAll { node: 2 }, 1_000, 3_000)]);
    let sees = |from: usize, write, to: usize, read| one.must_see(at(from, write), at(to, read));
    assert!(sees(2, (100, 200), 1, (2_000, 2_100)), "the other copy is on this side");
    assert!(!sees(1, (100, 200), 2, (2_000, 2_100)), "both copies may be on the other");
    assert!(!sees(1, (950, 1_050), 1, (2_000, 2_100)), "on whichever side it was");
    assert!(sees(1, (1_100, 1_200), 3, (2_000, 2_100)));
    assert!(sees(2, (1_100, 1_200), 2, (2_000, 2_100)));
    assert!(!sees(1, (1_100, 1_200), 2, (2_000, 2_100)));
    assert!(!sees(1, (1_100, 1_200), 2, (12_000, 12_100)), "before it is settled");
    assert!(sees(1, (1_100, 1_200), 2, (13_100, 13_200)));
    assert!(one.may_fail(at(2, (2_000, 2_100))) && !one.may_fail(at(1, (2_000, 2_100))));
    let halves = schedule(&[(Fault::Halves { left: BTreeSet::from([0, 1]) }, 1_000, 3_000)]);
    let (before, during) = ((100, 200), (2_000, 2_100));
    assert!(!halves.must_see(at(1, before), at(1, during)), "both copies may be on the other side");
    assert!(halves.may_fail(at(1, during)));
}

#[test]
fn a_node_that_starts_when_a_split_ends_may_join_either_side() {
    let sees = |end_ms, from: usize, written, to: usize| {
        let split = (Fault::OneAgainstAll { node: 2 }, 1_000, 3_000);
        let schedule = schedule(&[split, (CRASH_0, 1_100, end_ms)]);
        schedule.must_see(at(from, (written, written + 10)), at(to, (3_500, 3_510)))
    };
    assert!(!sees(2_900, 3, 3_300, 0) && !sees(2_900, 0, 3_300, 3));
    assert!(sees(2_900, 1, 3_300, 3), "neither has started");
    assert!(sees(1_400, 0, 3_300, 3), "it was in before the end");
}

#[test]
fn two_that_stop_during_a_split_may_part_from_each_other() {
    let halves = Fault::Halves { left: BTreeSet::from([0, 1]) };
    let part = |stops: &[(Fault, u64, u64)]| {
        let schedule = schedule(&[&[(halves.clone(), 1_000, 4_000)], stops].concat());
        schedule.must_see(at(0, (3_450, 3_460)), at(1, (3_500, 3_600)))
    };
    assert!(part(&[(PAUSE_0, 1_700, 2_500)]));
    assert!(!part(&[(PAUSE_0, 1_700, 2_500), (PAUSE_1, 2_400, 3_400)]));
}

#[test]
fn a_crash_during_a_split_may_take_the_only_copy() {
    let split = (Fault::OneAgainstAll { node: 2 }, 1_000, 3_000);
    let schedule = schedule(&[split, (CRASH_0, 2_000, 2_500)]);
    assert!(!sees(&schedule, (100, 200), (20_000, 20_100)));
    assert!(sees(&schedule, (13_100, 13_200), (20_000, 20_100)));
}

#[test]
fn cuts_that_leave_a_node_without_a_majority_are_not_told_apart() {
    let cut = |to| (Fault::OneWayCut { from: 0, to }, 1_000, 3_000);
    assert!(sees(&schedule(&[cut(1)]), (1_500, 1_600), (2_000, 2_100)));
    assert!(!sees(&schedule(&[cut(1), cut(2)]), (1_500, 1_600), (2_000, 2_100)));
}

#[test]
fn what_is_asked_of_a_node_that_has_lost_one_protocol_may_be_done_anywhere() {
    let filter = Fault::Filter { node: 2, drops: Traffic::Udp, way: Way::In };
    let schedule = schedule(&[(filter, 1_000, 3_000)]);
    let sees = |from, to| schedule.must_see(at(from, (1_500, 1_600)), at(to, (2_000, 2_100)));
    assert!(sees(0, 1) && !sees(2, 2) && !sees(0, 2) && !sees(2, 0));
}
