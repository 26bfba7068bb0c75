use super::*;
use crate::schedule::{Event, Fault};

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
    let violations = history.check(&Schedule { nodes: 4, copies: 2, events });
    violations.into_iter().map(|violation| violation.what.split(':').next().unwrap().to_string()).collect()
}

fn put(start: u64, end: u64, value: &str) -> Line {
    (start, end, Action::Put(value.into()), Outcome::Stored { version: value.into() })
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
const CUT: (Fault, u64, u64) = (Fault::OneAgainstAll { node: 1 }, 10, 20);

#[test]
fn a_read_may_return_the_last_write_or_one_under_way() {
    assert!(check(&[put(1, 2, "a"), put(3, 9, "b"), get(4, 5, "a"), get(6, 7, "b")], &[]).is_empty());
    assert_eq!(check(&[put(1, 2, "a"), put(3, 4, "b"), get(5, 6, "a")], &[]), ["stale"]);
}

#[test]
fn a_read_never_returns_what_nobody_wrote_even_during_a_cut() {
    assert_eq!(check(&[get(12, 13, "x")], &[CUT]), ["a value that was never written"]);
    assert_eq!(check(&[get(1, 2, "x"), put(3, 4, "x")], &[]), ["a value from the future"]);
    let refused = (1, 2, Action::Create("x".into()), Outcome::Refused);
    assert_eq!(check(&[refused, get(3, 4, "x")], &[]), ["a value whose writing was refused"]);
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
    assert!(check(&[lend.clone(), get(1005, 1006, "b")], &[skewed]).is_empty());
}

#[test]
fn a_write_of_unknown_outcome_may_come_at_any_time() {
    let late = [unknown(1, 2, Action::Put("a".into())), put(3, 4, "b"), get(5, 6, "b"), get(7, 8, "a")];
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
    let both = [put(1, 9, "a"), put(1, 9, "b")];
    assert!(check(&[both[0].clone(), both[1].clone(), read(2, "a"), read(4, "a")], &[]).is_empty());
    let torn = check(&[both[0].clone(), both[1].clone(), read(2, "a"), read(4, "b")], &[]);
    assert_eq!(torn, ["two values of one version, the other is Some(\"a\")"]);
}

#[test]
fn only_what_is_missing_is_created() {
    let create =
        |start, end| (start, end, Action::Create("c".into()), Outcome::Stored { version: "c".into() });
    assert!(check(&[put(1, 2, "a"), delete(3, 4), create(5, 6)], &[]).is_empty());
    assert_eq!(check(&[put(1, 2, "a"), create(5, 6)], &[]), ["acknowledged, yet a miss"]);
}

#[test]
fn only_what_is_there_is_replaced() {
    let replace = |start, end, old: &str, new: &str| {
        (start, end, Action::Replace(new.into(), old.into()), Outcome::Stored { version: new.into() })
    };
    assert!(check(&[put(1, 2, "a"), replace(3, 4, "a", "b"), get(5, 6, "b")], &[]).is_empty());
    let lost_update = [put(1, 2, "a"), replace(3, 4, "a", "b"), replace(5, 6, "a", "c")];
    assert_eq!(check(&lost_update, &[]), ["stale"]);
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
