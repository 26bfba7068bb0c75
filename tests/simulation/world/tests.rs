//! That the hands break what they mean to break, and nothing else.

use std::collections::BTreeSet;

use super::*;
use crate::client::Client;
use crate::operation::{Action, Outcome};

/// What `strike` does a second after two nodes have started; it is undone a second later. The outcomes of asking each node
/// 100 ms after either, and after how many milliseconds they came.
fn outcomes(strike: fn(&mut World, bool)) -> [[(Outcome, u64); 2]; 2] {
    let mut world = World::new(1, 2, 2);
    (0..2).for_each(|node| world.start(node, 2));
    let (found, nodes) = (Rc::new(RefCell::new(Vec::new())), world.addresses());
    for start_ms in [1_100, 2_100] {
        for (node, &address) in nodes.iter().enumerate() {
            let found = found.clone();
            let ask = async move {
                tokio::time::sleep(Duration::from_millis(start_ms)).await;
                let outcome = Client::new(Access::new(1, false)).perform(address, 0, &Action::Get).await;
                let took = turmoil::sim_elapsed().unwrap().as_millis() as u64 - start_ms;
                found.borrow_mut().push((start_ms, node, outcome, took));
                Ok(())
            };
            world.sim.client(format!("client-{start_ms}-{node}"), ask);
        }
    }
    let clients: Vec<_> =
        [1_100, 2_100].iter().flat_map(|ms| (0..2).map(move |n| format!("client-{ms}-{n}"))).collect();
    world.clients = world.sim.lookup(clients[0].as_str());
    for now in 1.. {
        match now {
            1_000 => strike(&mut world, true),
            2_000 => strike(&mut world, false),
            _ => {}
        }
        if world.step().unwrap() {
            break;
        }
    }
    let mut found = found.take();
    found.sort_by_key(|(start_ms, node, ..)| (*start_ms, *node));
    let mut found = found.into_iter().map(|(.., outcome, took)| (outcome, took));
    std::array::from_fn(|_| std::array::from_fn(|_| found.next().unwrap()))
}

fn is_quick(answer: &(Outcome, u64)) -> bool {
    answer.0 == Outcome::Missing && answer.1 < 500
}

#[test]
fn a_paused_node_answers_when_it_goes_on() {
    let [during, after] = outcomes(|world, begins| world.pause(0, begins));
    assert_eq!(during[0].0, Outcome::Missing);
    assert!(during[0].1 >= 900, "{during:?}");
    assert!(is_quick(&during[1]) && after.iter().all(is_quick), "{during:?} {after:?}");
}

#[test]
fn a_killed_node_refuses_at_once_and_starts_again_on_its_address() {
    let [during, after] = outcomes(|world, begins| if begins { world.kill(0) } else { world.start(0, 2) });
    assert_eq!(during[0].0, Outcome::NotSent);
    assert!(during[0].1 < 20, "{during:?}");
    assert!(is_quick(&during[1]) && after.iter().all(is_quick), "{during:?} {after:?}");
}

#[test]
fn a_node_that_moves_leaves_nobody_at_its_old_address() {
    let [during, after] = outcomes(|world, begins| {
        world.kill(0);
        if !begins {
            world.relocate(0);
            world.start(0, 2);
        }
    });
    assert_eq!([&during[0].0, &after[0].0], [&Outcome::NotSent; 2]);
    assert!(is_quick(&during[1]) && is_quick(&after[1]), "{during:?} {after:?}");
}

#[test]
fn a_silent_machine_says_nothing_until_it_is_back() {
    let [during, after] = outcomes(|world, begins| {
        let silent = if begins { BTreeSet::from([0]) } else { BTreeSet::new() };
        world.set_cuts(Cuts { silent, ..Cuts::default() });
    });
    assert!(during[0].1 >= 900, "{during:?}");
    assert!(is_quick(&during[1]) && after.iter().all(is_quick), "{during:?} {after:?}");
}

#[test]
fn a_cut_between_nodes_leaves_their_clients_alone() {
    let [during, after] = outcomes(|world, begins| {
        let pairs = if begins { BTreeSet::from([(0, 1), (1, 0)]) } else { BTreeSet::new() };
        world.set_cuts(Cuts { pairs, ..Cuts::default() });
    });
    assert!(during.iter().chain(&after).all(|answer| answer.1 < 2_500), "{during:?} {after:?}");
    assert!(after.iter().all(is_quick), "{after:?}");
}
