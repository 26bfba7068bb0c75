//! What a node does: it serves an operation, copies what it wrote, asks for a lease, takes up a table.

use crate::rules::{Model, Rule};
use crate::world::{
    Gathered, Given, Kind, LEASE, NODES, Node, Op, Phase, Presence, Set, World, each, has, only,
};

impl Model {
    pub(crate) fn serve(&self, world: &mut World, op: usize) -> Option<()> {
        let Op { owner, phase, table, kind, .. } = world.ops[op];
        world.is_awake(owner).then_some(())?;
        let node = &world.nodes[owner];
        let goes_by_mine = table == node.table;
        let authority = goes_by_mine && world.has_authority(owner);
        match phase {
            Phase::Sent if authority => decide(world, op, false),
            Phase::Settled { fenced } => {
                let by_table = goes_by_mine || !self.has(Rule::AskersTable);
                if !(self.may_act_settled(world, owner) && by_table) {
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

    fn may_act_settled(&self, world: &World, owner: usize) -> bool {
        let node = &world.nodes[owner];
        let unheard_of = each(world.others(owner) & !node.reported);
        let mut missing = unheard_of.filter(|member| world.reaches(owner, *member));
        // An only owner has nobody to copy to who could object, so what it heard must be as fresh as a lease.
        let is_stale = |member: usize| world.reaches(owner, member) && node.lease[member] == 0;
        let is_alone = world.copies == 1 && each(world.others(owner)).any(is_stale);
        let has_heard = !is_alone && missing.next().is_none() || !self.has(Rule::HearFirst);
        let is_bound = self.has(Rule::OldLeases) && world.is_bound_elsewhere(owner, None);
        world.is_owner(owner) && has_heard && !is_bound
    }

    /// From then on the create is this owner's, as if it had been decided now. What its former owner does yet brings it only
    /// to more nodes.
    pub(crate) fn finish(&self, world: &mut World, op: usize, owner: usize) -> Option<()> {
        let Op { kind, version, owner: former, phase, .. } = world.ops[op];
        let is_left = phase == Phase::Failed || former != owner;
        (kind == Kind::Create && version != 0 && is_left).then_some(())?;
        self.may_act_settled(world, owner).then_some(())?;
        if !self.stands(world, owner) {
            begin_fence(world, owner);
            return Some(());
        }
        let found = world.gather(owner, !self.has(Rule::RefusedIsNotGone));
        let stores: Vec<u8> = each(found.answered).map(|one| world.nodes[one].store).collect();
        let mut all = stores.iter().copied().chain([found.witnessed]);
        let is_alone = all.all(|found| found == 0 || found == version) || !self.has(Rule::FinishAlone);
        let is_unseen = each(found.answered).any(|one| world.nodes[one].gave_way != 0);
        let is_clear = is_alone && !(is_unseen && self.has(Rule::FinishUnseen));
        let is_sure = found.all_heard && self.is_of_majority(&found, world.nodes[owner].table);
        (is_sure && stores.contains(&version) && is_clear).then_some(())?;
        take(world, owner, version);
        let phase = Phase::Copying { left: left_of(world, owner), wait: 0, degraded: false };
        let table = world.nodes[owner].table;
        world.ops[op] = Op { phase, owner, table, fenced: true, ..world.ops[op] };
        self.copy_to_all(world, op);
        Some(())
    }

    pub(crate) fn is_of_majority(&self, found: &Gathered, table: Set) -> bool {
        2 * (found.answered & table).count_ones() > table.count_ones() || !self.has(Rule::MajorityAnswers)
    }

    /// Whether nobody else can decide a condition, as far as the rules see to it.
    pub(crate) fn stands(&self, world: &World, owner: usize) -> bool {
        (!self.has(Rule::FenceFirst) || world.fence_stands(owner))
            && (!self.has(Rule::Promise) || world.has_majority(owner))
    }

    fn may_decide(&self, world: &World, owner: usize, fenced: bool) -> bool {
        self.stands(world, owner) && (!self.has(Rule::GatherAfterFence) || fenced)
    }

    /// Members that own nothing of the slot witness a fenced create.
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

    pub(crate) fn copy(&self, world: &mut World, op: usize, to: usize) -> Option<()> {
        let Op { owner, phase, table, version, kind, .. } = world.ops[op];
        let Phase::Copying { left, wait, degraded } = phase else { return None };
        world.is_awake(owner).then_some(())?;
        let left = left & !only(to);
        let is_owner = has(world.owners(world.nodes[owner].table), to);
        let mut phase = Phase::Copying { left, wait, degraded };
        if world.reaches(owner, to) {
            let had = world.nodes[to].store;
            let is_stale = had > version;
            let is_bound = self.has(Rule::BoundCopies) && world.is_bound_elsewhere(to, Some(owner));
            let is_elsewhere = (world.nodes[to].table != table || is_bound) && is_owner;
            let reported = world.nodes[owner].complete || has(world.nodes[owner].reported, to);
            if is_owner || !reported {
                receive(world, to, version);
                if is_owner && had != 0 && had < version {
                    note(world, owner, had);
                }
            } else if world.nodes[to].seen <= version {
                (world.nodes[to].seen, world.nodes[to].seen_of) = (version, only(owner));
            }
            if world.nodes[to].table != table && self.has(Rule::ForeignCopies) {
                world.nodes[to].owes |= world.owners(world.nodes[to].table) & !only(to);
            }
            let is_doubtful = (is_stale || is_elsewhere) && !world.has_authority(owner);
            // A create is decided where there is nothing: its decider has seen none that is older.
            let is_over_older = is_owner && !is_stale && had != 0 && had != version;
            let is_create = kind == Kind::Create;
            let is_overtaken = is_stale && is_create && self.has(Rule::NewestAtAck);
            if is_doubtful || is_overtaken || is_over_older && is_create && self.has(Rule::OlderAtAck) {
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

    pub(crate) fn ask(&self, world: &mut World, from: usize, to: usize) -> Option<()> {
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
}

impl Node {
    /// After a sleep, or a change of the table, nothing that it was told counts.
    pub(crate) fn forget(&mut self) {
        (self.complete, self.reported, self.dirty, self.lease) = (false, 0, 0, [0; NODES]);
    }
}

/// An owner looks at its own store and writes.
fn decide(world: &mut World, op: usize, fenced: bool) {
    let Op { owner, kind, .. } = world.ops[op];
    let node = &world.nodes[owner];
    if kind == Kind::Create && node.store != 0 {
        world.ops[op].phase = Phase::Failed;
        return;
    }
    let phase = Phase::Copying { left: left_of(world, owner), wait: 0, degraded: false };
    world.stamp += 1;
    world.ops[op] = Op { phase, version: world.stamp, table: node.table, fenced, ..world.ops[op] };
    world.nodes[owner].store = world.stamp;
}

/// Who is to have a copy of what an owner writes.
fn left_of(world: &World, owner: usize) -> Set {
    let node = &world.nodes[owner];
    let also_told = if node.complete { 0 } else { world.others(owner) & !node.reported };
    (world.owners(node.table) | also_told) & !only(owner)
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

/// A record gets into a node's store, unless that has a newer one.
pub(crate) fn take(world: &mut World, at: usize, version: u8) {
    let had = world.nodes[at].store;
    if had != 0 && version != 0 && had != version {
        note(world, at, had.min(version));
    }
    world.nodes[at].store = had.max(version);
}

/// Only what happens to creates asks for it.
fn note(world: &mut World, at: usize, gave_way: u8) {
    if world.ops.iter().all(|op| op.kind == Kind::Create) {
        let node = &mut world.nodes[at];
        node.gave_way = node.gave_way.max(gave_way);
    }
}

/// A record arrives; who does not own the slot passes it on.
pub(crate) fn receive(world: &mut World, to: usize, version: u8) {
    let owners = world.owners(world.nodes[to].table);
    take(world, to, version);
    let node = &mut world.nodes[to];
    if !has(owners, to) || node.presence == Presence::Leaving {
        node.owes |= owners & !only(to);
    }
}

/// A node takes up a change of the view.
pub(crate) fn learn(world: &mut World, me: usize, of: usize) -> Option<()> {
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
