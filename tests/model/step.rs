//! What may happen next: the rules of the protocol, each of which can be taken out.

use crate::world::{
    EXCUSED, Given, Kind, LEASE, NODES, Node, Op, Phase, Presence, SLEEP, Set, World, each, has, only,
};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Rule {
    /// A lease is granted only while none runs that was granted under another table.
    OneTable,
    /// A write that an owner lacks waits until that owner's lease is over.
    WaitForLease,
    /// After a sleep, or after having been declared dead, a node asks everybody again.
    Wake,
    /// Who acts settled has heard everybody it can hear since it woke or changed its table.
    HearFirst,
    /// And no lease runs that it granted under a former table.
    OldLeases,
    /// A settled claim holds only under the asker's table.
    AskersTable,
    /// Who refuses a connection may be alive.
    RefusedIsNotGone,
    /// A settled owner waits for the others' leases before it decides a condition.
    FenceFirst,
    /// A settled owner decides a condition only by a majority's promise.
    Promise,
    /// An owner that takes a copy sent under another table owes it to the owners of its own, which the sender does not know.
    ForeignCopies,
    /// An owner bound by a lease that it granted under another table says so when it takes a copy, and the write is not
    /// acknowledged without authority: that lease's holder may still answer.
    BoundCopies,
    /// Who takes a sync takes over what is owed to others.
    DebtsTravel,
    /// Conditions are decided only on a conclusive gather.
    Conclusive,
    /// And one is not conclusive by an owner's authority alone: the others may have decided a moment ago.
    OwnersHeard,
    /// A create over which an owner has something newer is not granted.
    NewestAtAck,
    /// A create that not all owners hold is granted only if the fence stands under which it was decided.
    FenceAtAck,
    /// And only if a majority of the members holds it, owners or not: what one node holds is cut off with that node.
    MajorityHolds,
    /// Who has promised the slot to one node tells the others that it is dirty.
    PromiseIsDirty,
    /// Who has promised the slot to another has no authority over it.
    PromiseEndsAuthority,
    /// The gather on which a condition is decided began after the fence stood.
    GatherAfterFence,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fault {
    Sleep,
    CutPair,
    Isolate,
    CutPort,
    Refuse,
    /// Gossip declares a node dead that runs.
    FalseDeath,
    Kill,
    /// Not a fault.
    Leave,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    Tick,
    /// The client's node sends an operation to its primary.
    Send {
        op: usize,
        asker: usize,
    },
    /// The same after a gather, to any owner that answered.
    Settle {
        op: usize,
        asker: usize,
        owner: usize,
    },
    Serve {
        op: usize,
    },
    /// A fenced owner asks all members for their promises.
    Promise {
        from: usize,
    },
    Copy {
        op: usize,
        to: usize,
    },
    /// One node asks another for a lease.
    Ask {
        from: usize,
        to: usize,
    },
    Sync {
        from: usize,
        to: usize,
    },
    Sleep {
        node: usize,
    },
    Wake {
        node: usize,
    },
    CutPair {
        a: usize,
        b: usize,
    },
    Isolate {
        node: usize,
    },
    CutPort {
        node: usize,
    },
    Refuse {
        node: usize,
    },
    Heal,
    Kill {
        node: usize,
    },
    DeclareDead {
        node: usize,
    },
    TakeBack {
        node: usize,
    },
    Leave {
        node: usize,
    },
    Exit {
        node: usize,
    },
    /// A node hears of the change of the view.
    Learn {
        node: usize,
        of: usize,
    },
}

/// A protocol, a cluster and what may befall it.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) nodes: usize,
    pub(crate) copies: usize,
    pub(crate) ops: Vec<Kind>,
    pub(crate) menu: Vec<Fault>,
    pub(crate) faults: u8,
    pub(crate) changes: u8,
    pub(crate) without: Vec<Rule>,
}

impl Model {
    pub(crate) fn first(&self) -> World {
        let mut world = World::new(self.nodes, self.copies, &self.ops, self.faults, self.changes);
        world.promise_ends_authority = self.has(Rule::PromiseEndsAuthority);
        world
    }

    pub(crate) fn has(&self, rule: Rule) -> bool {
        !self.without.contains(&rule)
    }

    pub(crate) fn violation(&self, world: &World) -> Option<String> {
        world.violation(!self.has(Rule::RefusedIsNotGone))
    }

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

    /// Whether no second create can be granted any more: one has failed, or the second finds the first wherever it is decided.
    fn is_over(&self, world: &World) -> bool {
        let is_create = |op: &Op| op.kind == Kind::Create;
        let is_settled =
            world.changes_left == 0 && each(world.all()).all(|node| world.nodes[node].table == world.view);
        let deciders = if is_settled { world.owners(world.view) } else { world.all() };
        let decided = world.ops.iter().filter(|op| op.version != 0).count();
        let is_found = decided < 2 && each(deciders).all(|node| world.nodes[node].store != 0);
        let has_failed = world.ops.iter().any(|op| op.phase == Phase::Failed);
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
                }
                Phase::Acknowledged | Phase::Failed => {}
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
                let store = &mut world.nodes[owner].store;
                *store = found.newest.max(*store);
                let is_create = world.ops[op].kind == Kind::Create;
                let fenced = is_create && self.stands(world, owner);
                let phase = Phase::Settled { fenced };
                world.ops[op] = Op { phase, owner, table, ..world.ops[op] };
            }
            Event::Serve { op } => self.serve(world, op)?,
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
                world.nodes[node].store = 0;
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

    fn serve(&self, world: &mut World, op: usize) -> Option<()> {
        let Op { owner, phase, table, kind, .. } = world.ops[op];
        world.is_awake(owner).then_some(())?;
        let node = &world.nodes[owner];
        let goes_by_mine = table == node.table;
        let authority = goes_by_mine && world.has_authority(owner);
        match phase {
            Phase::Sent if authority => decide(world, op, false),
            Phase::Settled { fenced } => {
                let unheard_of = each(world.others(owner) & !node.reported);
                let mut missing = unheard_of.filter(|member| world.reaches(owner, *member));
                // An only owner has nobody to copy to who could object, so what it heard must be as fresh as a lease.
                let is_stale = |member: usize| world.reaches(owner, member) && node.lease[member] == 0;
                let is_alone = world.copies == 1 && each(world.others(owner)).any(is_stale);
                let may_act = !is_alone || !self.has(Rule::HearFirst);
                let is_bound = self.has(Rule::OldLeases) && world.is_bound_elsewhere(owner, None);
                let may_act =
                    may_act && !is_bound && (!self.has(Rule::HearFirst) || missing.next().is_none());
                let by_table = goes_by_mine || !self.has(Rule::AskersTable);
                if !(world.is_owner(owner) && may_act && by_table) {
                    world.ops[op].phase = Phase::Idle;
                } else if kind == Kind::Put || self.may_decide(world, owner, fenced) {
                    decide(world, op, kind == Kind::Create);
                    self.copy_to_all(world, op);
                } else {
                    begin_fence(world, owner);
                    world.ops[op].phase = Phase::Idle;
                }
            }
            _ => world.ops[op].phase = Phase::Idle,
        }
        Some(())
    }

    /// Whether nobody else can decide a condition, as far as the rules see to it.
    fn stands(&self, world: &World, owner: usize) -> bool {
        (!self.has(Rule::FenceFirst) || world.fence_stands(owner))
            && (!self.has(Rule::Promise) || world.has_majority(owner))
    }

    fn may_decide(&self, world: &World, owner: usize, fenced: bool) -> bool {
        self.stands(world, owner) && (!self.has(Rule::GatherAfterFence) || fenced)
    }

    /// Members that own nothing of the slot hold a fenced create, too.
    fn copy_to_all(&self, world: &mut World, op: usize) {
        let Op { owner, fenced, .. } = world.ops[op];
        let table = world.nodes[owner].table;
        if let Phase::Copying { left, .. } = &mut world.ops[op].phase
            && fenced
            && self.has(Rule::MajorityHolds)
        {
            *left |= table & !only(owner);
        }
    }

    fn copy(&self, world: &mut World, op: usize, to: usize) -> Option<()> {
        let Op { owner, phase, table, version, kind, .. } = world.ops[op];
        let Phase::Copying { left, wait, degraded } = phase else { return None };
        world.is_awake(owner).then_some(())?;
        let left = left & !only(to);
        let is_owner = has(world.owners(world.nodes[owner].table), to);
        let mut phase = Phase::Copying { left, wait, degraded };
        if world.reaches(owner, to) {
            let is_stale = world.nodes[to].store > version;
            let is_bound = self.has(Rule::BoundCopies) && world.is_bound_elsewhere(to, Some(owner));
            let is_elsewhere = (world.nodes[to].table != table || is_bound) && is_owner;
            receive(world, to, version);
            if world.nodes[to].table != table && self.has(Rule::ForeignCopies) {
                world.nodes[to].owes |= world.owners(world.nodes[to].table) & !only(to);
            }
            let is_doubtful = (is_stale || is_elsewhere) && !world.has_authority(owner);
            if is_doubtful || is_stale && kind == Kind::Create && self.has(Rule::NewestAtAck) {
                phase = Phase::Failed;
            }
        } else {
            let refuses = world.nodes[to].presence == Presence::Gone
                || has(world.refusing, to) && !self.has(Rule::RefusedIsNotGone);
            let until = if refuses || !self.has(Rule::WaitForLease) {
                0
            } else {
                world.nodes[owner].granted[to].left
            };
            phase = Phase::Copying { left, wait: wait.max(until), degraded: degraded || is_owner };
            if is_owner {
                world.nodes[owner].owes |= only(to);
            }
        }
        world.ops[op].phase = phase;
        Some(())
    }

    fn ask(&self, world: &mut World, from: usize, to: usize) -> Option<()> {
        (world.reaches(from, to)).then_some(())?;
        let asker = &world.nodes[from];
        // Who is not an owner has no use for leases once it has heard everybody.
        (world.is_owner(from) || !asker.complete).then_some(())?;
        let table = asker.table;
        if world.nodes[to].granted[from].table != table {
            world.nodes[to].granted[from] = Given::default();
        }
        let promised = world.nodes[to].promise;
        let is_promised = promised.left > 0 && promised.to != only(from) && self.has(Rule::PromiseIsDirty);
        let is_bound = self.has(Rule::OneTable) && world.is_bound_elsewhere(to, Some(from));
        if world.nodes[to].table != table || is_bound {
            return Some(());
        }
        world.nodes[to].granted[from] = Given { to: only(from), table, left: LEASE };
        let is_dirty = has(world.nodes[to].owes, from) || is_promised;
        let asker = &mut world.nodes[from];
        asker.lease[to] = LEASE;
        asker.reported |= only(to);
        asker.dirty = asker.dirty & !only(to) | if is_dirty { only(to) } else { 0 };
        Some(())
    }

    /// What happens as soon as it can.
    fn rest(&self, world: &mut World) {
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
            let holders = each(members).filter(|member| world.nodes[*member].store >= version).count();
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
                Phase::Idle | Phase::Failed => {
                    *op = Op { owner: 0, table: 0, version: 0, fenced: false, ..*op }
                }
                Phase::Acknowledged => *op = Op { owner: 0, table: 0, fenced: false, ..*op },
                _ => {}
            }
        }
    }
}

impl Model {
    /// A fence falls with the node's promise to itself, and what relied on it with the fence.
    fn end_fences(&self, world: &mut World) {
        let needs_fence = |op: &Op| op.kind == Kind::Create && op.version == 0 && op.phase != Phase::Failed;
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

impl Node {
    /// After a sleep, or a change of the table, nothing that it was told counts.
    fn forget(&mut self) {
        (self.complete, self.reported, self.dirty, self.lease) = (false, 0, 0, [0; NODES]);
    }
}

fn tick(world: &mut World) -> Option<()> {
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

/// An owner looks at its own store and writes.
fn decide(world: &mut World, op: usize, fenced: bool) {
    let Op { owner, kind, .. } = world.ops[op];
    let node = &world.nodes[owner];
    if kind == Kind::Create && node.store != 0 {
        world.ops[op].phase = Phase::Failed;
        return;
    }
    let also_told = if node.complete { 0 } else { world.others(owner) & !node.reported };
    let left = (world.owners(node.table) | also_told) & !only(owner);
    let phase = Phase::Copying { left, wait: 0, degraded: false };
    world.stamp += 1;
    world.ops[op] = Op { phase, version: world.stamp, table: node.table, fenced, ..world.ops[op] };
    world.nodes[owner].store = world.stamp;
}

/// From now on no other owner gets a clean lease.
fn begin_fence(world: &mut World, owner: usize) {
    let others = world.owners(world.nodes[owner].table) & !only(owner);
    let node = &mut world.nodes[owner];
    if node.fence.is_none() && (node.promise.left == 0 || node.promise.to == only(owner)) {
        node.promise = Given { to: only(owner), table: node.table, left: LEASE };
        node.fence = each(others).map(|other| node.granted[other].left).max();
    }
}

/// A record arrives; who does not own the slot passes it on.
fn receive(world: &mut World, to: usize, version: u8) {
    let owners = world.owners(world.nodes[to].table);
    let node = &mut world.nodes[to];
    node.store = node.store.max(version);
    if !has(owners, to) || node.presence == Presence::Leaving {
        node.owes |= owners & !only(to);
    }
}

/// A node takes up a change of the view.
fn learn(world: &mut World, me: usize, of: usize) -> Option<()> {
    (of != me || world.nodes[me].presence == Presence::Leaving).then_some(())?;
    let is_leaving = world.nodes[of].presence == Presence::Leaving;
    let old = world.owners(world.nodes[me].table);
    let table = world.nodes[me].table ^ only(of);
    let new = world.owners(table);
    let node = &mut world.nodes[me];
    node.departed &= !only(of);
    if is_leaving && of != me {
        node.departed |= only(of);
    }
    node.table = table;
    let stays = has(new, me);
    node.owes = node.owes & new | if stays { new & !old } else { new } & !only(me);
    node.forget();
    Some(())
}
