use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn id(number: usize) -> NodeId {
    NodeId::parse(&format!("n{number}")).unwrap()
}

fn apart(members: usize, faults: &[(usize, usize)]) -> Vec<NodeId> {
    let both = faults.iter().flat_map(|(a, b)| [(id(*a), id(*b)), (id(*b), id(*a))]).collect();
    set_apart(&(1..=members).map(id).collect(), &both).into_iter().collect()
}

#[test]
fn who_has_a_fault_with_most_of_the_others_is_set_apart_and_a_pair_is_not() {
    assert_eq!(apart(3, &[(1, 2)]), []);
    assert_eq!(apart(3, &[(1, 2), (1, 3)]), [id(1)]);
    assert_eq!(apart(5, &[(5, 2), (5, 3), (5, 4)]), [id(5)], "it reaches one");
    assert_eq!(apart(5, &[(5, 3), (5, 4)]), [], "it reaches half");
    assert_eq!(apart(2, &[(1, 2)]), [], "whose word would count?");
    assert_eq!(apart(4, &[(1, 3), (1, 4), (2, 3), (2, 4)]), [], "halves are a split");
}

proptest! {
    #[test]
    fn never_are_half_of_the_members_set_apart_nor_anybody_by_one_word(
        members in 1_usize..9,
        faults in prop::collection::vec((1_usize..9, 1_usize..9), 0..40),
    ) {
        let apart = apart(members, &faults);
        prop_assert!(2 * apart.len() < members.max(1));
        for member in apart {
            let with: BTreeSet<_> = faults
                .iter()
                .flat_map(|(a, b)| [(id(*a), id(*b)), (id(*b), id(*a))])
                .filter(|(one, other)| *one == member && *other != member)
                .collect();
            prop_assert!(with.len() >= 2);
        }
    }
}

#[test]
fn a_member_is_accused_after_a_while_and_cleared_later_each_time() {
    let mut path = Path::default();
    assert!(!path.look(1, 1199 * MS, true, 0));
    assert!(path.look(1, 1200 * MS, true, 1));
    assert!(!path.look(1, 10 * MS, true, 1000) && path.is_accused);
    assert!(!path.look(1, 10 * MS, true, 5999));
    assert!(path.look(1, 10 * MS, true, 6000) && !path.is_accused);
    assert!(path.look(1, 1200 * MS, true, 9000));
    assert!(
        !path.look(1, 10 * MS, true, 10_000) && !path.look(1, 500 * MS, true, 15_000),
        "it was lost again"
    );
    assert!(!path.look(1, 10 * MS, true, 16_000) && !path.look(1, 10 * MS, true, 25_999));
    assert!(path.look(1, 10 * MS, true, 26_000));
}

#[test]
fn a_suspect_is_left_to_gossip() {
    let mut path = Path::default();
    assert!(!path.look(1, 9000 * MS, false, 0) && !path.is_accused);
    assert!(path.look(1, 9100 * MS, true, 100), "it was not declared dead");
}

#[test]
fn a_new_process_starts_with_a_clean_record() {
    let mut path = Path::default();
    path.look(1, 1200 * MS, true, 0);
    path.look(2, Duration::ZERO, true, 10);
    assert!(!path.is_accused && path.accusations == 0);
}

#[test]
fn a_node_believes_most_of_the_others_that_it_is_no_member_after_a_while() {
    let reach = Reach::default();
    let others = [id(2), id(3), id(4)];
    let all_say = |denying: &[usize], now_ms| {
        for number in 2..=4 {
            reach.hear(&id(number), &[], now_ms);
            reach.hear_membership(&id(number), !denying.contains(&number), now_ms);
        }
        reach.is_denied(others.iter(), now_ms)
    };
    assert!(!all_say(&[2, 3], 0) && !all_say(&[2, 3], 999) && all_say(&[2, 3], 1000));
    assert!(!reach.is_denied(others.iter(), 2001), "they have fallen silent");
    assert!(!all_say(&[2], 2001), "one word");
    assert!(!all_say(&[2, 3], 2002), "from now on anew");
}

#[test]
fn a_detour_leads_through_a_member_that_says_it_reaches_the_other() {
    let reach = Reach::default();
    let cut = |number| Unreached { node_id: id(number), is_accused: false };
    reach.hear(&id(3), &[cut(2)], 0);
    reach.hear(&id(4), &[], 0);
    let (id3, id4, id5) = (id(3), id(4), id(5));
    let reached = [&id3, &id4, &id5];
    assert_eq!(reach.relay(&id(2), &reached, 0), Some(id(4)));
    assert_eq!(reach.relay(&id(2), &reached, 1001), None, "that was a while ago");
    assert_eq!(reach.relay(&id(2), &[&id5], 0), None, "it has said nothing");
}
