use super::*;

#[test]
fn the_same_seed_gives_the_same_schedule() {
    assert_eq!(Schedule::generate(7, 20_000), Schedule::generate(7, 20_000));
    let all: Vec<_> = (0..200).flat_map(|seed| Schedule::generate(seed, 20_000).events).collect();
    let has = |wanted: &dyn Fn(&Fault) -> bool| all.iter().any(|event| wanted(&event.fault));
    assert!(has(&|fault| matches!(fault, Fault::Leave { .. })) && has(&|fault| fault.is_cut()));
    assert!(has(&|fault| matches!(fault, Fault::Move { .. })));
}

#[test]
fn a_filter_loses_traffic_of_one_node_in_its_way() {
    let ways = |way| {
        let filter = Fault::Filter { node: 1, drops: Traffic::Tcp, way };
        filter.filters(3).map(|(_, ways)| ways).unwrap_or_default()
    };
    assert_eq!(ways(Way::In), [(0, 1), (2, 1)]);
    assert_eq!(ways(Way::Out), [(1, 0), (1, 2)]);
    assert_eq!(ways(Way::Both).len(), 4);
    let pair = |both_ways| Fault::Pair { from: 0, to: 2, drops: Traffic::All, both_ways };
    assert_eq!(pair(false).cuts(3), [(0, 2)]);
    assert_eq!(pair(true).cuts(3), [(0, 2), (2, 0)]);
}
