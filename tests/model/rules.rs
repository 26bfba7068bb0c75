//! The rules of the protocol, each of which can be taken out, and what may befall a cluster.

use crate::world::{Kind, World};

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
    /// Who acts settled has granted no lease under a former table that still runs.
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
    /// A gather for a condition is not conclusive by an owner's authority alone: the others may have decided a moment ago.
    OwnersHeard,
    /// A create over which an owner has something newer is not granted.
    NewestAtAck,
    /// A create is not granted if an owner that takes its copy had an older one, which its decider did not see.
    OlderAtAck,
    /// A create that not all owners hold is granted only if the fence stands under which it was decided.
    FenceAtAck,
    /// Such a create is granted only if a majority of the members holds it or has witnessed it: what one node holds is cut
    /// off with that node.
    MajorityHolds,
    /// Who has promised the slot to one node tells the others that it is dirty.
    PromiseIsDirty,
    /// Who has promised the slot to another has no authority over it.
    PromiseEndsAuthority,
    /// The gather on which a condition is decided began after the fence stood.
    GatherAfterFence,
    /// A majority of the members has answered that gather.
    MajorityAnswers,
    /// What another owner decided is granted by a fenced one only if nobody has anything else.
    FinishAlone,
    /// The same if nobody had anything else either: who takes a record notes what gave way to it, and what came too late.
    FinishUnseen,
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
    /// An owner sees to a create that another one decided and did not answer.
    Finish {
        op: usize,
        owner: usize,
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
}
