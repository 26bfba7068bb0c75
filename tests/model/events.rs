//! What may happen next, and what it does.

use crate::protocol::{learn, receive, take};
use crate::rules::{Event, Fault, Model, Rule};
use crate::tick::tick;
use crate::world::{
    EXCUSED, Given, Kind, LEASE, NODES, Node, Op, Phase, Presence, Set, World, each, has, only,
};

impl Model {
    /// The states that follow, with the event that leads to each.
    pub(crate) fn next(&self, world: &World) -> Vec<(Event, World)> {
        if self.is_over(world) {
            return Vec::new();
        }
        let events = self.events(world);
        let done = events.into_iter().filter_map(|event| {
            let mut next = world.clone();
            self.happen(&mut next, event)?;
            self.rest(&mut next);
            (next != *world).then_some((event, next))
        });
        done.collect()
    }

    /// Whether no second create can be granted any more: one has been refused, or the second finds the first wherever it is decided.
    fn is_over(&self, world: &World) -> bool {
        let is_create = |op: &Op| op.kind == Kind::Create;
        let is_settled =
            world.changes_left == 0 && each(world.all()).all(|node| world.nodes[node].table == world.view);
        let deciders = if is_settled { world.owners(world.view) } else { world.all() };
        let decided = world.ops.iter().filter(|op| op.version != 0).count();
        let is_found = decided < 2 && each(deciders).all(|node| world.nodes[node].store != 0);
        let has_failed = world.ops.iter().any(|op| op.phase == Phase::Failed && op.version == 0);
        world.ops.len() > 1 && world.ops.iter().all(is_create) && (has_failed || is_found)
    }

    fn events(&self, world: &World) -> Vec<Event> {
        let mut events = vec![Event::Tick];
        let awake: Set = each(world.all()).filter(|node| world.is_awake(*node)).map(only).sum();
        for (op, state) in world.ops.iter().enumerate() {
            match state.phase {
                // The operations of one kind are alike: the first begins first.
                Phase::Idle
                    if op > 0
                        && world.ops[op - 1].phase == Phase::Idle
                        && state.kind == world.ops[op - 1].kind => {}
                Phase::Idle => each(awake).for_each(|asker| {
                    events.push(Event::Send { op, asker });
                    let owners = world.owners(world.nodes[asker].table);
                    events.extend(each(owners).map(|owner| Event::Settle { op, asker, owner }));
                }),
                Phase::Sent | Phase::Settled { .. } => events.push(Event::Serve { op }),
                Phase::Copying { left, .. } => {
                    events.extend(each(left).map(|to| Event::Copy { op, to }));
                    events.extend(each(awake).map(|owner| Event::Finish { op, owner }));
                }
                Phase::Failed => events.extend(each(awake).map(|owner| Event::Finish { op, owner })),
                Phase::Acknowledged => {}
            }
        }
        for from in each(awake) {
            events.extend(each(world.others(from)).map(|to| Event::Ask { from, to }));
            if world.nodes[from].fence.is_some() {
                events.push(Event::Promise { from });
            }
            events.extend(each(world.nodes[from].owes).map(|to| Event::Sync { from, to }));
            let news = world.nodes[from].table ^ world.view;
            events.extend(each(news).map(|of| Event::Learn { node: from, of }));
            events.push(Event::Exit { node: from });
        }
        events.extend((0..self.nodes).map(|node| Event::Wake { node }));
        if world.changes_left > 0 {
            events.extend(
                (0..self.nodes).flat_map(|node| [Event::DeclareDead { node }, Event::TakeBack { node }]),
            );
            if self.menu.contains(&Fault::Leave) {
                events.extend(each(awake).map(|node| Event::Leave { node }));
            }
        }
        if world.cut != [0; NODES] || world.refusing != 0 {
            events.push(Event::Heal);
        }
        if world.faults_left > 0 {
            events.extend(each(awake).flat_map(|node| self.faults_of(world, node)));
        }
        events
    }

    fn faults_of(&self, world: &World, node: usize) -> Vec<Event> {
        let is_whole = world.cut == [0; NODES] && world.refusing == 0;
        let mut events = Vec::new();
        for fault in &self.menu {
            match fault {
                Fault::Sleep => events.push(Event::Sleep { node }),
                Fault::Kill => events.push(Event::Kill { node }),
                Fault::CutPair if is_whole => {
                    events.extend((0..node).map(|b| Event::CutPair { a: node, b }));
                }
                Fault::Isolate if is_whole => events.push(Event::Isolate { node }),
                Fault::CutPort if is_whole => events.push(Event::CutPort { node }),
                Fault::Refuse if is_whole => events.push(Event::Refuse { node }),
                _ => {}
            }
        }
        events
    }

    /// None if it cannot happen.
    fn happen(&self, world: &mut World, event: Event) -> Option<()> {
        match event {
            Event::Tick => tick(world)?,
            Event::Send { op, asker } => {
                let table = world.nodes[asker].table;
                let owner = each(world.owners(table)).next()?;
                // It may wait in the socket of one that sleeps.
                let is_sent = owner == asker || !has(world.cut[asker] | world.refusing, owner);
                (is_sent && world.nodes[owner].presence != Presence::Gone).then_some(())?;
                world.ops[op] = Op { phase: Phase::Sent, owner, table, ..world.ops[op] };
            }
            Event::Settle { op, asker, owner } => {
                let found = world.gather(asker, !self.has(Rule::RefusedIsNotGone));
                let is_enough = world.ops[op].kind == Kind::Put
                    || !self.has(Rule::Conclusive)
                    || found.all_heard
                    || found.conclusive && !self.has(Rule::OwnersHeard);
                (has(found.answered, owner) && is_enough).then_some(())?;
                let table = world.nodes[asker].table;
                let is_create = world.ops[op].kind == Kind::Create;
                let witnessed = if is_create { found.witnessed } else { 0 };
                take(world, owner, found.newest.max(witnessed));
                let fenced = is_create && self.stands(world, owner) && self.is_of_majority(&found, table);
                let phase = Phase::Settled { fenced };
                world.ops[op] = Op { phase, owner, table, ..world.ops[op] };
            }
            Event::Serve { op } => self.serve(world, op)?,
            Event::Finish { op, owner } => self.finish(world, op, owner)?,
            Event::Promise { from } => {
                let table = world.nodes[from].table;
                for to in each(table).filter(|to| world.reaches(from, *to)).collect::<Vec<_>>() {
                    let given = world.nodes[to].promise;
                    let is_free = given.left == 0 || given.to == only(from);
                    if world.nodes[to].table == table && is_free {
                        world.nodes[to].promise = Given { to: only(from), table, left: LEASE };
                    }
                }
            }
            Event::Copy { op, to } => self.copy(world, op, to)?,
            Event::Ask { from, to } => self.ask(world, from, to)?,
            Event::Sync { from, to } => {
                world.reaches(from, to).then_some(())?;
                let (store, owes) = (world.nodes[from].store, world.nodes[from].owes & !only(to));
                world.nodes[from].owes = owes;
                receive(world, to, store);
                if self.has(Rule::DebtsTravel) {
                    world.nodes[to].owes |= owes;
                }
            }
            Event::Sleep { node } => {
                world.faults_left -= 1;
                world.nodes[node].silent = Some(0);
            }
            Event::Wake { node } => {
                (world.nodes[node].presence != Presence::Gone).then_some(())?;
                world.nodes[node].silent.take()?;
                if self.has(Rule::Wake) {
                    world.nodes[node].forget();
                }
            }
            Event::CutPair { a, b } => {
                world.faults_left -= 1;
                world.cut[a] |= only(b);
                world.cut[b] |= only(a);
            }
            Event::Isolate { node } => {
                world.faults_left -= 1;
                let others = world.all() & !only(node);
                world.cut[node] |= others;
                each(others).for_each(|other| world.cut[other] |= only(node));
            }
            Event::CutPort { node } => {
                world.faults_left -= 1;
                each(world.all() & !only(node)).for_each(|other| world.cut[other] |= only(node));
            }
            Event::Refuse { node } => {
                world.faults_left -= 1;
                world.refusing = only(node);
            }
            Event::Heal => (world.cut, world.refusing, world.cut_for) = ([0; NODES], 0, 0),
            Event::Kill { node } => {
                world.faults_left -= 1;
                world.nodes[node].silent = Some(0);
                world.nodes[node].presence = Presence::Gone;
                let node = &mut world.nodes[node];
                (node.store, node.seen, node.gave_way) = (0, 0, 0);
            }
            Event::DeclareDead { node } => {
                has(world.view, node).then_some(())?;
                let is_silent = world.nodes[node].silent.is_some_and(|ticks| ticks >= EXCUSED);
                let others = world.all() & !only(node);
                let is_cut =
                    world.cut_for >= EXCUSED && each(others).all(|other| has(world.cut[other], node));
                if !is_silent && !is_cut {
                    (self.menu.contains(&Fault::FalseDeath) && world.faults_left > 0).then_some(())?;
                    world.faults_left -= 1;
                }
                world.changes_left -= 1;
                world.view &= !only(node);
            }
            Event::TakeBack { node } => {
                let may = !has(world.view, node)
                    && world.is_awake(node)
                    && world.nodes[node].presence == Presence::Here;
                may.then_some(())?;
                world.changes_left -= 1;
                world.view |= only(node);
                // It hears that it was declared dead.
                world.nodes[node].owes |= world.owners(world.nodes[node].table) & !only(node);
                if self.has(Rule::Wake) {
                    world.nodes[node].forget();
                }
            }
            Event::Leave { node } => {
                (world.nodes[node].presence == Presence::Here && has(world.view, node)).then_some(())?;
                world.changes_left -= 1;
                world.view &= !only(node);
                world.nodes[node].presence = Presence::Leaving;
            }
            Event::Exit { node } => {
                let me = &world.nodes[node];
                let may = me.presence == Presence::Leaving && !has(me.table, node);
                let has_paid = each(me.owes).all(|member| !world.reaches(node, member));
                (may && has_paid).then_some(())?;
                let (store, owes) = (me.store, me.owes);
                let table = me.table;
                if self.has(Rule::DebtsTravel) && owes != 0 {
                    let heirs = each(world.owners(table)).filter(|heir| world.reaches(node, *heir));
                    let heirs: Vec<_> = heirs.collect();
                    // An heir's lease to one that is owed something still says that it lacks nothing: it has to end first.
                    let misleads =
                        |heir: &usize| each(owes).any(|owed| world.nodes[*heir].granted[owed].left > 0);
                    (!heirs.iter().any(misleads)).then_some(())?;
                    for heir in heirs {
                        receive(world, heir, store);
                        world.nodes[heir].owes |= owes & !only(heir);
                    }
                }
                world.nodes[node] =
                    Node { presence: Presence::Gone, silent: Some(EXCUSED), table, ..Node::default() };
            }
            Event::Learn { node, of } => learn(world, node, of)?,
        }
        Some(())
    }
}
