use super::*;

fn schedule(events: &[(Fault, u64, u64)]) -> Schedule {
    let events = events.iter().map(|(fault, start_ms, end_ms)| Event {
        fault: fault.clone(),
        start_ms: *start_ms,
        end_ms: *end_ms,
    });
    Schedule { nodes: 4, copies: 2, events: events.collect() }
}

const CRASH_0: Fault = Fault::Crash { node: 0 };
const CRASH_1: Fault = Fault::Crash { node: 1 };
const PAUSE_1: Fault = Fault::Pause { node: 1 };
const CUT: Fault = Fault::OneAgainstAll { node: 2 };

#[test]
fn one_fault_that_is_no_cut_excuses_nothing() {
    let faults = [
        CRASH_0,
        PAUSE_1,
        Fault::PowerCut { node: 1 },
        Fault::Leave { node: 1 },
        Fault::Unreachable { node: 1 },
        Fault::Join { node: 4 },
        Fault::Skew { node: 0, ms: 300_000 },
        Fault::Datagrams { loss: 0.1, duplication: 0.1, corruption: 0.1 },
    ];
    for fault in faults {
        let schedule = schedule(&[(fault, 1_000, 3_000)]);
        assert!(schedule.must_see((900, 950), (1_500, 1_600)));
        assert!(schedule.must_see((1_500, 1_600), (2_000, 2_100)));
    }
}

#[test]
fn two_nodes_down_at_once_excuse_what_was_written_before_and_nothing_else() {
    let both = schedule(&[(CRASH_0, 1_000, 3_000), (CRASH_1, 12_000, 13_000)]);
    assert!(both.must_see((2_000, 2_100), (11_000, 11_100)), "before the second");
    assert!(!both.must_see((2_000, 2_100), (12_500, 12_600)), "after it");
    assert!(!both.must_see((11_950, 12_050), (40_000, 40_100)), "written in that moment");
    assert!(both.must_see((12_100, 12_200), (12_500, 12_600)), "written after it");
    let apart = schedule(&[(CRASH_0, 1_000, 3_000), (CRASH_1, 13_100, 14_000)]);
    assert!(apart.must_see((2_000, 2_100), (13_500, 13_600)));
    let three_copies = Schedule { copies: 3, ..both };
    assert!(three_copies.must_see((2_000, 2_100), (12_500, 12_600)));
}

#[test]
fn any_number_may_leave_at_once_as_long_as_one_stays_and_nothing_else_happens() {
    let leave = |node| (Fault::Leave { node }, 1_000, 7_000);
    assert!(schedule(&[leave(0), leave(1), leave(2)]).must_see((500, 600), (8_000, 8_100)));
    assert!(!schedule(&[leave(0), leave(1), leave(2), leave(3)]).must_see((500, 600), (8_000, 8_100)));
    assert!(!schedule(&[leave(0), leave(1), (CRASH_1, 9_000, 9_500)]).must_see((500, 600), (9_200, 9_300)));
}

#[test]
fn a_pause_during_a_crash_counts_as_two_down() {
    let schedule = schedule(&[(PAUSE_1, 1_000, 3_000), (CRASH_0, 2_000, 2_100)]);
    assert!(!schedule.must_see((500, 600), (2_500, 2_600)));
    assert!(schedule.must_see((500, 600), (1_500, 1_600)));
}

#[test]
fn a_cut_excuses_reads_and_writes_until_it_is_settled() {
    let schedule = schedule(&[(CUT, 1_000, 3_000)]);
    assert!(schedule.must_see((100, 200), (800, 900)), "before");
    assert!(!schedule.must_see((100, 200), (900, 1_100)), "a read that meets it");
    assert!(!schedule.must_see((100, 200), (12_000, 12_100)), "a read before it is settled");
    assert!(schedule.must_see((100, 200), (13_100, 13_200)), "a write from before it has survived it");
    assert!(!schedule.must_see((2_000, 2_100), (20_000, 20_100)), "a write on one side may have lost");
    assert!(schedule.must_see((13_100, 13_200), (20_000, 20_100)), "after");
}

#[test]
fn a_crash_during_a_cut_may_take_the_only_copy() {
    let schedule = schedule(&[(CUT, 1_000, 3_000), (CRASH_0, 2_000, 2_500)]);
    assert!(!schedule.must_see((100, 200), (20_000, 20_100)));
    assert!(schedule.must_see((13_100, 13_200), (20_000, 20_100)));
}

#[test]
fn the_same_seed_gives_the_same_schedule() {
    assert_eq!(Schedule::generate(7, 20_000), Schedule::generate(7, 20_000));
    let all: Vec<_> = (0..200).flat_map(|seed| Schedule::generate(seed, 20_000).events).collect();
    let has = |wanted: &dyn Fn(&Fault) -> bool| all.iter().any(|event| wanted(&event.fault));
    assert!(has(&|fault| matches!(fault, Fault::Leave { .. })) && has(&|fault| fault.is_cut()));
    assert!(has(&|fault| matches!(fault, Fault::Move { .. })));
}
