//! What happens by itself: time passes, and whatever can be concluded is.

use crate::rules::{Model, Rule};
use crate::world::{EXCUSED, Given, Kind, NODES, Node, Op, Phase, Presence, SLEEP, World, each, has, only};

pub(crate) fn tick(world: &mut World) -> Option<()> {
    let is_up = |node: &Node| node.presence != Presence::Gone;
    let must_wake = world.nodes.iter().any(|node| is_up(node) && node.silent == Some(SLEEP));
    (!must_wake).then_some(())?;
    for node in &mut world.nodes {
        node.lease.iter_mut().for_each(|left| *left = left.saturating_sub(1));
        for given in node.granted.iter_mut().chain([&mut node.promise]) {
            given.left = given.left.saturating_sub(1);
            if given.left == 0 {
                *given = Given::default();
            }
        }
        node.fence = node.fence.map(|wait| wait.saturating_sub(1));
        node.silent = node
            .silent
            .map(|ticks| (ticks + 1).min(if node.presence == Presence::Gone { EXCUSED } else { SLEEP }));
    }
    if world.cut != [0; NODES] || world.refusing != 0 {
        world.cut_for = (world.cut_for + 1).min(EXCUSED);
    }
    for op in &mut world.ops {
        match &mut op.phase {
            // Answers may be a sixth of a lease old.
            Phase::Settled { .. } => op.phase = Phase::Idle,
            Phase::Copying { wait, .. } => *wait = wait.saturating_sub(1),
            _ => {}
        }
    }
    Some(())
}

impl Model {
    /// What happens as soon as it can.
    pub(crate) fn rest(&self, world: &mut World) {
        for me in each(world.all()).filter(|me| world.is_awake(*me)).collect::<Vec<_>>() {
            let mut missing = each(world.others(me) & !world.nodes[me].reported);
            let all_reported = missing.all(|member| world.is_excused(me, member));
            if all_reported && !world.is_bound_elsewhere(me, None) {
                world.nodes[me].complete = true;
            }
        }
        self.end_fences(world);
        for op in 0..world.ops.len() {
            let Op { owner, phase, kind, version, fenced, .. } = world.ops[op];
            let Phase::Copying { left: 0, wait: 0, degraded } = phase else { continue };
            let is_create = kind == Kind::Create;
            let is_late = is_create && self.has(Rule::NewestAtAck) && world.nodes[owner].store > version;
            let is_alone = is_create && self.has(Rule::FenceAtAck) && degraded && !fenced;
            let members = world.nodes[owner].table;
            let holders = each(members).filter(|member| {
                let node = &world.nodes[*member];
                node.store.max(node.seen) >= version
            });
            let holders = holders.count();
            let is_rare = is_create
                && self.has(Rule::MajorityHolds)
                && degraded
                && 2 * holders <= members.count_ones() as usize;
            if world.is_awake(owner) && (is_late || is_alone || is_rare) {
                world.ops[op].phase = Phase::Failed;
            } else if world.is_awake(owner) {
                world.ops[op].phase = Phase::Acknowledged;
                world.ops[op].in_the_open = world.cut == [0; NODES] && world.refusing == 0;
                let others = each(world.all()).map(|node| &world.nodes[node]);
                let has_moved_on =
                    |node: &Node| node.presence == Presence::Here && node.complete && !has(node.table, owner);
                world.ops[op].by_outsider = others.filter(|node| has_moved_on(node)).count() > 0;
            }
        }
        // What no longer matters must not tell two states apart.
        if self.changes == 0 {
            // There is one table: leases matter among those that need them to act.
            let needed = if world.copies == 1 { world.all() } else { world.owners(world.view) };
            for (me, node) in world.nodes.iter_mut().enumerate() {
                for other in (0..NODES).filter(|other| !has(needed, me) || !has(needed, *other)) {
                    (node.lease[other], node.granted[other]) = (0, Given::default());
                }
            }
        }
        for op in &mut world.ops {
            match op.phase {
                // A create may still be finished.
                Phase::Failed if op.kind == Kind::Create => {
                    *op = Op { owner: 0, table: 0, fenced: false, ..*op }
                }
                Phase::Idle | Phase::Failed => {
                    *op = Op { owner: 0, table: 0, version: 0, fenced: false, ..*op }
                }
                Phase::Acknowledged => *op = Op { owner: 0, table: 0, fenced: false, ..*op },
                _ => {}
            }
        }
    }

    /// A fence falls with the node's promise to itself, and what relied on it with the fence.
    fn end_fences(&self, world: &mut World) {
        let is_over =
            |op: &Op| op.phase == Phase::Acknowledged || op.phase == Phase::Failed && op.version == 0;
        let needs_fence = |op: &Op| op.kind == Kind::Create && !is_over(op);
        let is_needed = world.ops.iter().any(needs_fence);
        for me in 0..NODES {
            let promise = world.nodes[me].promise;
            let keeps = promise.left > 0 && promise.to == only(me) && promise.table == world.nodes[me].table;
            let decided = world.ops.iter().any(|op| op.fenced && op.owner == me);
            if !keeps || !is_needed && !decided {
                world.nodes[me].fence = None;
            }
            let stands = self.stands(world, me);
            for op in world.ops.iter_mut().filter(|op| op.owner == me && !stands) {
                op.fenced = false;
                if let Phase::Settled { fenced } = &mut op.phase {
                    *fenced = false;
                }
            }
        }
    }
}
