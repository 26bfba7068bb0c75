use super::*;
use crate::schedule::{Event, Fault, Traffic, Way};

/// `(start, end, action, outcome)` in milliseconds, of one key.
type Line = (u64, u64, Action, Outcome);

fn check(lines: &[Line], events: &[(Fault, u64, u64)]) -> Vec<String> {
    let mut history = History::default();
    for (start, end, action, outcome) in lines {
        // Twice as much, so that an end and a start of the same millisecond are told apart.
        let [start, end] = [(2 * start + 1, *start), (2 * end, *end)].map(|(order, ms)| Moment { order, ms });
        let end = Some((end, outcome.clone()));
        let operation = Operation { client: 0, node: 0, key: 0, action: action.clone(), start, end };
        history.operations.push(operation);
    }
    let events = events.iter().cloned();
    let events = events.map(|(fault, start_ms, end_ms)| Event { fault, start_ms, end_ms }).collect();
    let violations = history.check(&Schedule { nodes: 4, copies: 2, events, ..Schedule::default() });
    violations.into_iter().map(|violation| violation.what.split(':').next().unwrap().to_string()).collect()
}

fn put(start: u64, end: u64, value: &str) -> Line {
    (start, end, Action::Put(value.into()), Outcome::Stored { version: value.into() })
}

fn create(start: u64, end: u64, value: &str) -> Line {
    (start, end, Action::Create(value.into()), Outcome::Stored { version: value.into() })
}

fn replace(start: u64, end: u64, old: &str, new: &str) -> Line {
    (start, end, Action::Replace(new.into(), old.into()), Outcome::Stored { version: new.into() })
}

fn unknown(start: u64, end: u64, action: Action) -> Line {
    (start, end, action, Outcome::Unknown("500".into()))
}

fn delete(start: u64, end: u64) -> Line {
    (start, end, Action::Delete, Outcome::Deleted)
}

fn get(start: u64, end: u64, value: &str) -> Line {
    let outcome = match value {
        "" => Outcome::Missing,
        value => Outcome::Found { value: value.into(), version: value.into() },
    };
    (start, end, Action::Get, outcome)
}

const CRASH_0: (Fault, u64, u64) = (Fault::Crash { node: 0 }, 10, 20);
const CRASH_1: (Fault, u64, u64) = (Fault::Crash { node: 1 }, 15, 20);
/// What the checker says of any error.
const ERROR: [&str; 1] = ["an error although little is wrong"];
const CUT: (Fault, u64, u64) = (Fault::OneAgainstAll { node: 0 }, 10, 20);

#[test]
fn a_read_may_return_the_last_write_or_one_under_way() {
    assert!(check(&[put(1, 2, "a"), put(3, 9, "b"), get(4, 5, "a"), get(6, 7, "b")], &[]).is_empty());
    assert_eq!(check(&[put(1, 2, "a"), put(3, 4, "b"), get(5, 6, "a")], &[]), ["stale"]);
}

#[test]
fn a_read_never_returns_what_nobody_wrote_even_during_a_cut() {
    assert_eq!(check(&[get(12, 13, "x")], &[CUT]), ["a value that was never written"]);
    assert_eq!(check(&[get(1, 2, "x"), put(3, 4, "x")], &[]), ["a value from the future"]);
    let refused = (11, 12, Action::Create("x".into()), Outcome::Refused);
    let found = check(&[unknown(11, 12, Action::Put("a".into())), refused, get(13, 14, "x")], &[CUT]);
    assert_eq!(found, ["a value whose writing was refused"]);
}

#[test]
fn a_miss_needs_a_delete_that_is_not_older() {
    assert!(check(&[put(1, 5, "a"), delete(2, 3), get(6, 7, "")], &[]).is_empty());
    let perhaps = [put(1, 2, "a"), unknown(3, 4, Action::Delete), get(6, 7, "")];
    assert_eq!(check(&perhaps, &[]), ERROR);
    let lost = ["acknowledged, yet a miss"];
    assert_eq!(check(&[put(1, 2, "a"), get(3, 4, "")], &[]), lost);
    assert_eq!(check(&[delete(1, 2), put(3, 4, "a"), get(5, 6, "")], &[]), lost);
    assert_eq!(check(&[put(1, 2, "a"), get(3, 4, ""), delete(5, 6)], &[]), lost);
    let unsent = (3, 4, Action::Delete, Outcome::NotSent);
    assert!(check(&[put(1, 2, "a"), unsent, get(5, 6, "")], &[]).contains(&lost[0].to_string()));
}

#[test]
fn what_was_deleted_stays_away() {
    assert!(check(&[put(1, 4, "a"), delete(2, 3), get(5, 6, "a")], &[]).is_empty());
    assert_eq!(check(&[put(1, 2, "a"), delete(3, 4), get(5, 6, "a")], &[]), ["deleted, yet it is back"]);
}

#[test]
fn what_is_lent_is_there_for_its_time_and_hides_what_was_before() {
    let lend = (3, 4, Action::Lend("b".into(), 1), Outcome::Stored { version: "b".into() });
    let then = |line: Line| check(&[put(1, 2, "a"), lend.clone(), line], &[]);
    assert!(then(get(5, 1004, "b")).is_empty());
    assert_eq!(then(get(5, 1002, "")), ["acknowledged, yet a miss"]);
    assert!(then(get(5, 1003, "")).is_empty());
    assert_eq!(then(get(1005, 1006, "b")), ["its time to live was over"]);
    assert_eq!(then(get(1005, 1006, "a")), ["stale"]);
    let skewed = (Fault::Skew { node: 0, ms: 1 }, 1, 2);
    assert_eq!(check(&[lend.clone(), get(1005, 1006, "b")], &[skewed]), ["its time to live was over"]);
}

#[test]
fn a_write_of_unknown_outcome_may_come_at_any_time() {
    let late = [unknown(1, 2, Action::Put("c".into())), put(3, 4, "b"), get(5, 6, "b"), get(7, 8, "c")];
    assert_eq!(check(&late, &[]), ERROR);
    let acknowledged = [put(1, 2, "a"), put(3, 4, "b"), get(5, 6, "b"), get(7, 8, "a")];
    assert_eq!(check(&acknowledged, &[]), ["stale"]);
}

#[test]
fn one_version_has_one_value() {
    let read = |at, value: &str| {
        let found = Outcome::Found { value: value.into(), version: "v".into() };
        (at, at + 1, Action::Get, found)
    };
    let both = [unknown(12, 13, Action::Put("a".into())), unknown(12, 13, Action::Put("b".into()))];
    assert!(check(&[both[0].clone(), both[1].clone(), read(14, "a"), read(16, "a")], &[CUT]).is_empty());
    let torn = check(&[both[0].clone(), both[1].clone(), read(14, "a"), read(16, "b")], &[CUT]);
    assert_eq!(torn, ["two values of one version"]);
}

#[test]
fn only_what_is_missing_is_created() {
    assert!(check(&[put(1, 2, "a"), delete(3, 4), create(5, 6, "c")], &[]).is_empty());
    assert_eq!(check(&[put(1, 2, "a"), create(5, 6, "c")], &[]), ["created over a value"]);
}

#[test]
fn of_creates_at_the_same_time_one_is_granted_unless_a_delete_may_come_between() {
    let both = [create(1, 5, "a"), create(2, 6, "b")];
    assert_eq!(check(&both, &[]), ["created over a value"]);
    assert_eq!(check(&[both[1].clone(), both[0].clone()], &[]), ["created over a value"]);
    assert!(check(&[both[0].clone(), delete(3, 4), both[1].clone()], &[]).is_empty());
    let over_an_earlier_one = [put(1, 9, "b"), create(2, 6, "a")];
    assert!(check(&over_an_earlier_one, &[]).is_empty(), "the greater version came later");
}

#[test]
fn nothing_comes_between_a_version_and_what_replaces_it() {
    let history = |between: Line| check(&[put(1, 2, "a"), between, replace(3, 9, "a", "c")], &[]);
    assert_eq!(history(put(4, 5, "b")), ["a lost update"]);
    assert_eq!(history(replace(4, 5, "a", "b")), ["a lost update"]);
    assert!(history(put(4, 5, "d")).is_empty(), "it came later");
    let perhaps = history(unknown(4, 5, Action::Put("b".into())));
    assert_eq!(perhaps, ERROR, "what is not known to be done hides nothing");
}

#[test]
fn versions_never_go_back_in_time() {
    assert_eq!(
        check(&[put(1, 2, "b"), put(3, 4, "a")], &[]),
        ["acknowledged, yet older than what was there"]
    );
    let at_once = [put(1, 4, "b"), put(1, 5, "a"), get(6, 7, "a")];
    assert_eq!(check(&at_once, &[]), ["stale"]);
    assert!(check(&[put(1, 4, "b"), put(1, 5, "a"), get(6, 7, "b")], &[]).is_empty());
    assert!(check(&[put(1, 9, "b"), get(2, 3, "b"), get(4, 5, "")], &[]).is_empty(), "not acknowledged yet");
}

#[test]
fn one_value_has_one_version() {
    let seen = |start, end, version: &str| {
        (start, end, Action::Get, Outcome::Found { value: "a".into(), version: version.into() })
    };
    let history = |between: Line| {
        let write = unknown(1, 9, Action::Put("a".into()));
        check(&[write, seen(1, 2, "a"), between, seen(5, 6, "c")], &[])
    };
    let (twice, again) = (["a write done twice", ERROR[0]], ["a write under two versions", ERROR[0]]);
    assert_eq!(history(get(3, 4, "a")), again);
    assert_eq!(history(put(3, 4, "b")), twice);
    assert_eq!(history(delete(3, 4)), twice);
    assert_eq!(history(delete(3, 6)), again, "it may have come after both");
    assert_eq!(history(put(3, 9, "d")), again);
    assert!(check(&[put(1, 9, "a"), seen(2, 3, "b")], &[]).is_empty(), "only one was seen");
}

#[test]
fn a_condition_fails_for_a_reason() {
    let unjustified = ["refused without a reason"];
    let create = |start, end| (start, end, Action::Create("c".into()), Outcome::Refused);
    assert_eq!(check(&[create(1, 2)], &[]), unjustified);
    assert_eq!(check(&[put(1, 2, "a"), delete(3, 4), create(5, 6)], &[]), unjustified);
    assert!(check(&[put(1, 2, "a"), create(5, 6)], &[]).is_empty());
    assert!(check(&[delete(1, 2), put(5, 9, "a"), create(5, 6)], &[]).is_empty());
    let perhaps = [unknown(1, 2, Action::Put("a".into())), delete(3, 4), create(5, 6)];
    assert_eq!(check(&perhaps, &[]), ERROR, "it may have been done after the delete");
    assert!(check(&[put(1, 2, "a"), delete(3, 6), create(4, 5)], &[]).is_empty(), "before the delete");
    let lend = (1, 2, Action::Lend("a".into(), 1), Outcome::Stored { version: "a".into() });
    assert!(check(&[lend.clone(), create(1002, 1003)], &[]).is_empty());
    assert_eq!(check(&[lend, create(1003, 1004)], &[]), unjustified);

    let replace = |start, end| (start, end, Action::Replace("c".into(), "a".into()), Outcome::Refused);
    assert_eq!(check(&[put(1, 2, "a"), replace(3, 4)], &[]), unjustified);
    assert_eq!(check(&[delete(1, 2), put(3, 4, "a"), replace(5, 6), put(7, 8, "b")], &[]), unjustified);
    for reason in [put(3, 4, "b"), delete(3, 4), put(5, 9, "b"), put(1, 9, "b")] {
        assert!(check(&[put(1, 2, "a"), reason, replace(5, 6)], &[]).is_empty());
    }
    let perhaps = [put(1, 2, "a"), unknown(3, 4, Action::Delete), replace(5, 6)];
    assert_eq!(check(&perhaps, &[]), ERROR);
    let greater = [put(1, 2, "b"), put(3, 4, "a"), replace(5, 6)];
    assert_eq!(check(&greater, &[]), ["acknowledged, yet older than what was there"], "nothing else is said");
    let again = Outcome::Found { value: "a".into(), version: "b".into() };
    let again = [put(1, 2, "a"), replace(3, 4), (5, 6, Action::Get, again)];
    assert_eq!(check(&again, &[]), ["a write under two versions"]);
}

#[test]
fn only_what_is_there_is_replaced() {
    assert!(check(&[put(1, 2, "a"), replace(3, 4, "a", "b"), get(5, 6, "b")], &[]).is_empty());
    let lost_update = [put(1, 2, "a"), replace(3, 4, "a", "b"), replace(5, 6, "a", "c")];
    assert_eq!(check(&lost_update, &[]), ["a lost update"]);
}

#[test]
fn one_crash_excuses_nothing_and_two_excuse_a_loss() {
    let history = [put(1, 2, "a"), put(3, 4, "b"), get(16, 17, "a"), get(18, 19, "")];
    assert_eq!(check(&history, &[CRASH_0]).len(), 2);
    assert!(check(&history, &[CRASH_0, CRASH_1]).is_empty());
    let written_after = [put(16, 17, "a"), get(18, 19, "")];
    assert_eq!(check(&written_after, &[CRASH_0, CRASH_1]), ["acknowledged, yet a miss"]);
}

#[test]
fn a_cut_excuses_stale_reads_until_it_is_settled() {
    let stale = [put(1, 2, "a"), put(3, 4, "b"), get(15, 16, "a")];
    assert!(check(&stale, &[CUT]).is_empty());
    let later = [put(1, 2, "a"), put(3, 4, "b"), get(10_021, 10_022, "a")];
    assert_eq!(check(&later, &[CUT]), ["stale"]);
}

#[test]
fn a_delete_before_a_write_on_another_side_may_undo_it_if_a_clock_was_off() {
    // What is asked of this node may be done on either side.
    let either = (Fault::Filter { node: 0, drops: Traffic::Udp, way: Way::Both }, 10, 20);
    let skew = (Fault::Skew { node: 0, ms: 1 }, 10, 20);
    let refused = (10_021, 10_022, Action::Replace("b".into(), "a".into()), Outcome::Refused);
    for (line, what) in
        [(refused, "refused without a reason"), (get(10_021, 10_022, ""), "acknowledged, yet a miss")]
    {
        let history = [delete(11, 12), put(13, 14, "a"), line];
        assert_eq!(check(&history, std::slice::from_ref(&either)), [what]);
        assert!(check(&history, &[either.clone(), skew.clone()]).is_empty());
    }
}

#[test]
fn an_answer_comes_in_time_unless_its_node_is_down() {
    let late = [unknown(1, 5_001, Action::Delete)];
    assert_eq!(check(&late, &[]), ["no answer in time"]);
    assert_eq!(check(&late, &[CRASH_1]), ["no answer in time"]);
    assert!(check(&late, &[CRASH_0]).is_empty());
}

#[test]
fn an_error_needs_more_than_one_fault() {
    let history = [unknown(12, 13, Action::Get)];
    assert_eq!(check(&history, &[CRASH_1]), ERROR);
    assert!(check(&history, &[CRASH_0]).is_empty(), "its own node is down");
    assert!(check(&history, &[CUT]).is_empty());
    assert!(check(&[unknown(16, 17, Action::Get)], &[CRASH_0, CRASH_1]).is_empty());
}
