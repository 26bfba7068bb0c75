//! The state of a small cluster with one slot and one key, and what a node may conclude from what it knows.
//!
//! Does not change anything: the other files do. Times are ticks that are left, so that two states that differ only in the hour
//! are one. All nodes' clocks run alike. Sets of nodes are bits of a byte.

/// Nodes at most.
pub(crate) const NODES: usize = 4;
/// How many ticks a lease or a promise lasts.
pub(crate) const LEASE: u8 = 2;
/// After how many ticks of silence a member is unheard; a bit less than a lease.
const UNHEARD: u8 = 1;
/// After how many a table no longer waits for it.
pub(crate) const EXCUSED: u8 = 3;
/// The longest sleep.
pub(crate) const SLEEP: u8 = EXCUSED;

pub(crate) type Set = u8;

pub(crate) fn only(node: usize) -> Set {
    1 << node
}

pub(crate) fn has(set: Set, node: usize) -> bool {
    set & only(node) != 0
}

pub(crate) fn each(set: Set) -> impl Iterator<Item = usize> {
    (0..NODES).filter(move |node| has(set, *node))
}

#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub(crate) enum Presence {
    #[default]
    Here,
    /// It has said goodbye and hands over what it holds.
    Leaving,
    Gone,
}

/// What was given to another node: a lease, or a promise.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub(crate) struct Given {
    pub(crate) to: Set,
    pub(crate) table: Set,
    pub(crate) left: u8,
}

#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub(crate) struct Node {
    pub(crate) presence: Presence,
    /// Ticks since it fell asleep or was killed.
    pub(crate) silent: Option<u8>,
    /// The version it holds; zero is none.
    pub(crate) store: u8,
    /// The newest create that gave way here to another, or came too late.
    pub(crate) gave_way: u8,
    /// The version of a create that it has witnessed and does not hold, and who does.
    pub(crate) seen: u8,
    pub(crate) seen_of: Set,
    pub(crate) table: Set,
    /// Members that have left and still hand over.
    pub(crate) departed: Set,
    /// Who may lack what this node holds.
    pub(crate) owes: Set,
    pub(crate) complete: bool,
    /// Who has reported, and who of them says that this node lacks something.
    pub(crate) reported: Set,
    pub(crate) dirty: Set,
    /// By grantor, ticks that are left of the lease.
    pub(crate) lease: [u8; NODES],
    /// By the member that has the lease.
    pub(crate) granted: [Given; NODES],
    pub(crate) promise: Given,
    /// It is about to decide conditions without authority: ticks until no other owner can by a lease from this node.
    pub(crate) fence: Option<u8>,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Put,
    /// Granted only if the key is absent.
    Create,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// With its client's node, which has not sent it, or had it back.
    Idle,
    /// On its way to the primary, or waiting in its socket.
    Sent,
    /// The same with what a gather has found.
    /// `fenced`: the owner's fence stood before it answered, and has stood since.
    Settled {
        fenced: bool,
    },
    /// In the owner's store; `left` are to have a copy, `wait` until a lease is over.
    Copying {
        left: Set,
        wait: u8,
        degraded: bool,
    },
    Acknowledged,
    /// Refused, or nobody knows.
    Failed,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, PartialOrd, Ord)]
pub(crate) struct Op {
    pub(crate) kind: Kind,
    pub(crate) phase: Phase,
    pub(crate) owner: usize,
    /// The asker's, then the one it was decided under.
    pub(crate) table: Set,
    pub(crate) version: u8,
    /// Decided without authority, and nobody else can have decided since.
    pub(crate) fenced: bool,
    /// It was acknowledged while all could call each other.
    pub(crate) in_the_open: bool,
    /// It was acknowledged by one that the others had declared dead.
    pub(crate) by_outsider: bool,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct World {
    pub(crate) nodes: [Node; NODES],
    pub(crate) copies: usize,
    /// Who is a member, as gossip will tell everybody.
    pub(crate) view: Set,
    /// By caller, whom it cannot call; and for how long.
    pub(crate) cut: [Set; NODES],
    pub(crate) cut_for: u8,
    /// Whose port answers with a reset, though the process lives.
    pub(crate) refusing: Set,
    pub(crate) ops: Vec<Op>,
    pub(crate) stamp: u8,
    pub(crate) faults_left: u8,
    pub(crate) changes_left: u8,
    /// A rule of the model.
    pub(crate) promise_ends_authority: bool,
}

/// What one asker finds when it asks all.
pub(crate) struct Gathered {
    pub(crate) answered: Set,
    pub(crate) newest: u8,
    pub(crate) conclusive: bool,
    /// The same without the word of an owner that has authority.
    pub(crate) all_heard: bool,
    /// The newest that was witnessed of a holder that did not answer.
    pub(crate) witnessed: u8,
}

impl World {
    pub(crate) fn new(nodes: usize, copies: usize, ops: &[Kind], faults: u8, changes: u8) -> World {
        let all = (1 << nodes) - 1;
        let mut world = World {
            nodes: Default::default(),
            copies,
            view: all,
            cut: [0; NODES],
            cut_for: 0,
            refusing: 0,
            ops: ops.iter().map(|kind| Op::new(*kind)).collect(),
            stamp: 0,
            faults_left: faults,
            changes_left: changes,
            promise_ends_authority: true,
        };
        for (me, node) in world.nodes.iter_mut().enumerate() {
            if !has(all, me) {
                node.presence = Presence::Gone;
                continue;
            }
            (node.table, node.complete, node.reported) = (all, true, all & !only(me));
            for other in each(all & !only(me)) {
                node.lease[other] = LEASE;
                node.granted[other] = Given { to: only(other), table: all, left: LEASE };
            }
        }
        world
    }

    pub(crate) fn all(&self) -> Set {
        (0..NODES).filter(|node| self.nodes[*node].table != 0).map(only).sum()
    }

    pub(crate) fn owners(&self, table: Set) -> Set {
        each(table).take(self.copies).map(only).sum()
    }

    pub(crate) fn is_awake(&self, node: usize) -> bool {
        self.nodes[node].presence != Presence::Gone && self.nodes[node].silent.is_none()
    }

    /// Whether one node gets an answer from another.
    pub(crate) fn reaches(&self, from: usize, to: usize) -> bool {
        self.is_awake(to) && (from == to || !has(self.cut[from] | self.refusing, to))
    }

    /// For how long one has heard nothing from another.
    fn unheard_for(&self, from: usize, to: usize) -> u8 {
        let silent = self.nodes[to].silent.unwrap_or(0);
        if has(self.cut[from] | self.refusing, to) { silent.max(self.cut_for) } else { silent }
    }

    pub(crate) fn is_excused(&self, from: usize, to: usize) -> bool {
        !self.reaches(from, to) && self.unheard_for(from, to) >= EXCUSED
            || self.nodes[to].presence == Presence::Gone && !has(self.nodes[from].table, to)
    }

    /// Everybody a node asks for reports.
    pub(crate) fn others(&self, me: usize) -> Set {
        (self.nodes[me].table | self.nodes[me].departed) & !only(me)
    }

    pub(crate) fn is_owner(&self, me: usize) -> bool {
        self.nodes[me].presence == Presence::Here && has(self.owners(self.nodes[me].table), me)
    }

    /// Whether a lease that it granted under another table runs, to somebody else than `asker`.
    pub(crate) fn is_bound_elsewhere(&self, me: usize, asker: Option<usize>) -> bool {
        let node = &self.nodes[me];
        let binds = |given: &Given| given.left > 0 && given.table != node.table;
        (0..NODES).any(|other| Some(other) != asker && binds(&node.granted[other]))
    }

    /// As far as it was told, nobody has anything that it lacks.
    pub(crate) fn is_synced(&self, me: usize) -> bool {
        let node = &self.nodes[me];
        self.is_owner(me) && node.complete && node.dirty == 0
    }

    pub(crate) fn has_authority(&self, me: usize) -> bool {
        let node = &self.nodes[me];
        let is_promised = node.promise.left > 0 && node.promise.to != only(me) && self.promise_ends_authority;
        let grantors = if self.copies == 1 { node.table } else { self.owners(node.table) } & !only(me);
        !is_promised && self.is_synced(me) && each(grantors).all(|grantor| node.lease[grantor] > 0)
    }

    /// How many members of its table have promised it the slot.
    pub(crate) fn has_majority(&self, me: usize) -> bool {
        let table = self.nodes[me].table;
        let count = each(table).filter(|member| self.has_promised(*member, me)).count();
        2 * count > table.count_ones() as usize
    }

    /// Whether no other owner can act by itself: each has promised the slot to this node, or has no clean lease from it.
    pub(crate) fn fence_stands(&self, me: usize) -> bool {
        let node = &self.nodes[me];
        let promised = |other: usize| self.promise_ends_authority && self.has_promised(other, me);
        let others = self.owners(node.table) & !only(me);
        node.fence == Some(0) || node.fence.is_some() && each(others).all(promised)
    }

    pub(crate) fn has_promised(&self, member: usize, me: usize) -> bool {
        let given = self.nodes[member].promise;
        given.left > 0 && given.to == only(me) && given.table == self.nodes[me].table
    }

    /// `refused_is_gone`: who refuses the connection counts as settled.
    pub(crate) fn gather(&self, me: usize, refused_is_gone: bool) -> Gathered {
        let table = self.nodes[me].table;
        let asked = self.others(me) | only(me);
        let answered: Set = each(asked).filter(|to| self.reaches(me, *to)).map(only).sum();
        let is_settled = |member: usize, everybody: bool| {
            let is_gone = self.nodes[member].presence == Presence::Gone
                || refused_is_gone && has(self.refusing, member);
            let unheard = || each(answered).all(|one| self.unheard_for(one, member) >= UNHEARD);
            has(answered, member) || is_gone || everybody && unheard()
        };
        let knows = |member: usize| self.nodes[member].table == table && has(answered, member);
        let owners = self.owners(table);
        let all_heard = each(owners).any(|owner| knows(owner) && self.is_synced(owner))
            && each(owners).all(|owner| is_settled(owner, true))
            || each(asked).all(|member| is_settled(member, true));
        let conclusive = all_heard || each(owners).any(|owner| knows(owner) && self.has_authority(owner));
        let newest = each(answered).map(|one| self.nodes[one].store).max().unwrap_or(0);
        let is_witness = |one: &usize| self.nodes[*one].seen_of & answered == 0;
        let witnessed = each(answered).filter(is_witness).map(|one| self.nodes[one].seen).max().unwrap_or(0);
        Gathered { answered, newest, conclusive, all_heard, witnessed }
    }

    /// What no schedule may lead to.
    pub(crate) fn violation(&self, refused_is_gone: bool) -> Option<String> {
        let acknowledged = || self.ops.iter().filter(|op| op.phase == Phase::Acknowledged);
        if acknowledged().filter(|op| op.kind == Kind::Create).count() > 1 {
            return Some("two creates granted".into());
        }
        acknowledged().next()?;
        for reader in each(self.all()).filter(|reader| self.is_awake(*reader)) {
            let here = self.nodes[reader].store;
            let by_authority = self.has_authority(reader).then_some((here, "with authority"));
            let gathered = self.gather(reader, refused_is_gone);
            let settled = gathered.conclusive.then_some((gathered.newest, "settled"));
            for (answer, how) in by_authority.into_iter().chain(settled) {
                if let Some(op) = acknowledged().find(|op| op.version > answer && self.binds(op, reader)) {
                    return Some(format!("{reader} reads {answer} {how}, {} is acknowledged", op.version));
                }
            }
        }
        None
    }

    /// Whether a reader has to know of a write: it counts as a member, and can call, a node that has it. That a node falsely
    /// declared dead had it alone is a loss, but it must not have acknowledged it after that. A split serves on both sides.
    fn binds(&self, op: &Op, reader: usize) -> bool {
        each(self.all()).any(|holder| {
            let is_member = has(self.nodes[reader].table, holder)
                && (op.in_the_open || has(self.nodes[holder].table, reader));
            self.nodes[holder].store >= op.version
                && self.reaches(reader, holder)
                && (is_member || op.in_the_open && op.by_outsider)
        })
    }
}

impl Op {
    fn new(kind: Kind) -> Op {
        Op {
            kind,
            phase: Phase::Idle,
            owner: 0,
            table: 0,
            version: 0,
            fenced: false,
            in_the_open: false,
            by_outsider: false,
        }
    }
}
