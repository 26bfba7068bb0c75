//! Admission: whether this node may answer for the cluster yet.
//!
//! A node that was told whom to join is *admitted* once an admitted member has granted it a lease: both then go by the same
//! table. It *bootstraps*, which begins a cluster, only if no admitted member can be among those it was told of. This
//! module greets nobody; [`super::join`] does. Invariant: until it is admitted, a node answers no request about a key, and once it is,
//! it stays so, however alone it may be.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::SetOnce;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::info;

use super::{Node, NodeError};
use crate::link::Admission;

/// How long a node that was told of nobody waits to be found: it may have been a member a moment ago. Members probe one
/// another several times in that time, and call once for those that they believe dead.
const PROBED_WITHIN: Duration = Duration::from_secs(1);
/// How long all that a node was told of must have been refused or unanswered before it bootstraps without them. Longer than
/// names take to follow containers that are replaced, in most places; a cluster that is cut off for longer is not waited for.
const UNANSWERED_FOR: Duration = Duration::from_secs(5);
/// Between two looks at what has been found.
const LOOK_PERIOD: Duration = Duration::from_millis(20);

/// What this node has found out so far, and what it makes of that.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Set once the node is admitted.
    admitted: SetOnce<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    round: Option<Arc<Round>>,
    verdict: Verdict,
}

/// What came of greeting everybody that the node was told of, once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Round {
    /// Every address that the names stand for. No greeting if none was needed.
    pub(super) greeted: Vec<(SocketAddr, Option<Greeting>)>,
    /// Names that stand for no address, and why.
    pub(super) unresolved: Vec<String>,
}

/// What came of greeting one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Greeting {
    /// It knows this node now.
    Welcomed,
    /// A node answered, and this node cannot join through it.
    TurnedAway(String),
    /// A node answered over TCP, and datagrams do not pass between it and this node.
    Unheard(String),
    /// Nothing is there, or nothing answers.
    Absent(String),
    /// The address leads back to this node.
    Itself,
}

impl Round {
    /// Why nobody welcomed this node, if nobody did although somebody should have.
    pub(super) fn failure(&self) -> Option<&str> {
        let greetings = || self.greeted.iter().filter_map(|(_, greeting)| greeting.as_ref());
        if greetings().any(|greeting| *greeting == Greeting::Welcomed) {
            return None;
        }
        let turned_away = greetings().find_map(|greeting| match greeting {
            Greeting::TurnedAway(reason) | Greeting::Unheard(reason) => Some(reason),
            _ => None,
        });
        let absent = || {
            greetings().find_map(|greeting| match greeting {
                Greeting::Absent(reason) => Some(reason),
                _ => None,
            })
        };
        turned_away.or_else(absent).or(self.unresolved.first()).map(String::as_str)
    }

    /// Whether datagrams are what keeps this node out.
    pub(super) fn is_unheard(&self) -> bool {
        let is = |wanted: fn(&Greeting) -> bool| {
            self.greeted.iter().any(|(_, greeting)| greeting.as_ref().is_some_and(wanted))
        };
        is(|greeting| matches!(greeting, Greeting::Unheard(_)))
            && !is(|greeting| *greeting == Greeting::Welcomed)
    }
}

/// Decides from one look at the surroundings after the other.
struct Judge {
    was_told: bool,
    /// When this node last knew of a node that is, or may be, an admitted member.
    occupied_at: Instant,
    /// Since when it would bootstrap.
    ready_at: Option<Instant>,
}

/// The surroundings of a node that is not admitted.
struct Surroundings<'a> {
    me: SocketAddr,
    round: Option<&'a Round>,
    /// The live peers, and how far each said it is.
    peers: &'a [(SocketAddr, Option<Admission>)],
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It goes on to join; why it has not joined yet.
    Join(String),
    /// It would bootstrap, and waits for peers that do not know yet whether they would.
    Agree,
    /// It is a cluster of its own, or one of several that begin one together.
    Bootstrap,
}

impl Default for Verdict {
    fn default() -> Verdict {
        Verdict::Join("nobody has been asked yet".into())
    }
}

impl Judge {
    fn new(was_told: bool, now: Instant) -> Judge {
        Judge { was_told, occupied_at: now, ready_at: None }
    }

    fn judge(&mut self, seen: &Surroundings<'_>, now: Instant) -> Verdict {
        if cfg!(feature = "fault-hasty-bootstrap") {
            return Verdict::Bootstrap;
        }
        if let Some(reason) = occupant(seen) {
            (self.occupied_at, self.ready_at) = (now, None);
            return Verdict::Join(reason);
        }
        let alone_for = now.duration_since(self.occupied_at);
        let Some(round) = seen.round else { return Verdict::default() };
        let is_other = |(address, greeting): &&(SocketAddr, Option<Greeting>)| {
            *address != seen.me && *greeting != Some(Greeting::Itself)
        };
        let others = round.greeted.iter().filter(is_other);
        let missing =
            others.clone().filter(|(address, _)| !seen.peers.iter().any(|(peer, _)| peer == address));
        let all_are_here = round.unresolved.is_empty() && missing.count() == 0;
        // A node that was told only its own address was told of nobody.
        let knows_whom = self.was_told && others.count() > 0;
        let patience = match (all_are_here, knows_whom) {
            (true, true) => Duration::ZERO,
            (true, false) => PROBED_WITHIN,
            (false, _) => UNANSWERED_FOR,
        };
        if alone_for < patience {
            self.ready_at = None;
            let reason = round.failure().unwrap_or("no member is known yet");
            return Verdict::Join(format!(
                "{reason}; this node begins a cluster of its own if nobody answers for {} s",
                patience.as_secs()
            ));
        }
        let ready_at = *self.ready_at.get_or_insert(now);
        // A node that was told of nobody does not wait for peers that were told of somebody.
        let all_agree = !knows_whom
            || seen.peers.iter().all(|(_, admission)| *admission == Some(Admission::Bootstrapping));
        if all_agree || now.duration_since(ready_at) >= UNANSWERED_FOR {
            Verdict::Bootstrap
        } else {
            Verdict::Agree
        }
    }
}

/// A node that is, or may be, an admitted member, and why this node has not joined through it.
fn occupant(seen: &Surroundings<'_>) -> Option<String> {
    let turned_away =
        seen.round.into_iter().flat_map(|round| &round.greeted).find_map(|(address, greeting)| {
            let is_peer = || seen.peers.iter().any(|(peer, _)| peer == address);
            match greeting {
                Some(Greeting::TurnedAway(reason) | Greeting::Unheard(reason)) => Some(reason.clone()),
                Some(Greeting::Welcomed) if !is_peer() => {
                    Some(format!("{address} answers over TCP, and has not been heard over UDP"))
                }
                _ => None,
            }
        });
    let unlike = seen.peers.iter().find_map(|(address, admission)| match admission {
        Some(Admission::Admitted) => {
            Some(format!("{address} is a member and does not go by the same table yet"))
        }
        None => Some(format!("{address} is a member, by its gossip, and has not answered over TCP")),
        Some(Admission::Joining | Admission::Bootstrapping) => None,
    });
    turned_away.or(unlike)
}

/// Looks about until the node is admitted.
pub(super) async fn run(node: &Node) {
    let mut judge = Judge::new(!node.0.config.seeds.is_empty(), Instant::now());
    while !node.is_admitted() {
        let verdict = node.look_about(&mut judge);
        if verdict == Verdict::Bootstrap {
            if judge.was_told {
                let peers = node.members().peers().count();
                info!(peers, "no member answered: this node begins a cluster");
            }
            node.admit();
        }
        node.0.admission.state.lock().verdict = verdict;
        sleep(LOOK_PERIOD).await;
    }
}

impl Progress {
    /// Takes in what came of a round of greetings.
    pub(super) fn note_round(&self, round: Round) {
        self.state.lock().round = Some(Arc::new(round));
    }
}

impl Node {
    /// Whether it may answer for the cluster.
    #[must_use]
    pub fn is_admitted(&self) -> bool {
        self.0.admission.admitted.initialized()
    }

    /// Why it does not answer for the cluster; none if it does.
    #[must_use]
    pub fn why_not_admitted(&self) -> Option<String> {
        (!self.is_admitted()).then(|| match &self.0.admission.state.lock().verdict {
            Verdict::Join(reason) => reason.clone(),
            Verdict::Agree | Verdict::Bootstrap => "it is about to begin a cluster with its peers".into(),
        })
    }

    /// How far it is, for its peers.
    pub(super) fn admission(&self) -> Admission {
        if self.is_admitted() {
            return Admission::Admitted;
        }
        match self.0.admission.state.lock().verdict {
            Verdict::Join(_) => Admission::Joining,
            Verdict::Agree | Verdict::Bootstrap => Admission::Bootstrapping,
        }
    }

    /// It is a member from now on.
    pub(super) fn admit(&self) {
        // Fails when it was before.
        let _ = self.0.admission.admitted.set(());
    }

    /// An error unless it is admitted. A node that was told of nobody is about to be, and is waited for.
    pub(super) async fn check_admitted(&self, deadline: Instant) -> Result<(), NodeError> {
        if !self.is_admitted() && self.0.config.seeds.is_empty() {
            // Too late for this request: then it is refused.
            let _ = timeout_at(deadline, self.0.admission.admitted.wait()).await;
        }
        self.check_admitted_now()
    }

    /// An error unless it is admitted.
    pub(super) fn check_admitted_now(&self) -> Result<(), NodeError> {
        self.why_not_admitted().map_or(Ok(()), |reason| {
            Err(NodeError::Joining(format!("this node has not joined a cluster yet: {reason}")))
        })
    }

    fn look_about(&self, judge: &mut Judge) -> Verdict {
        let members = self.members();
        let peers: Vec<_> = members
            .peers()
            .map(|peer| (peer.address, self.contact(&peer.node_id).and_then(|contact| contact.admission)))
            .collect();
        let round = self.0.admission.state.lock().round.clone();
        let seen = Surroundings { me: self.0.address, round: round.as_deref(), peers: &peers };
        judge.judge(&seen, Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node's first moments, with what it sees and when.
    struct Start {
        judge: Judge,
        began: Instant,
        round: Option<Round>,
        peers: Vec<(SocketAddr, Option<Admission>)>,
    }

    fn address(last: u8) -> SocketAddr {
        ([10, 0, 0, last], 8001).into()
    }

    const ME: u8 = 9;

    impl Start {
        fn told(was_told: bool) -> Start {
            let began = Instant::now();
            Start {
                judge: Judge::new(was_told, began),
                began,
                round: Some(Round::default()),
                peers: Vec::new(),
            }
        }

        fn greeted(mut self, greeted: &[(u8, Option<Greeting>)]) -> Start {
            let greeted = greeted.iter().map(|(last, greeting)| (address(*last), greeting.clone())).collect();
            self.round = Some(Round { greeted, unresolved: Vec::new() });
            self
        }

        fn peers(&mut self, peers: &[(u8, Option<Admission>)]) {
            self.peers = peers.iter().map(|(last, admission)| (address(*last), *admission)).collect();
        }

        fn at(&mut self, ms: u64) -> Verdict {
            let seen = Surroundings { me: address(ME), round: self.round.as_ref(), peers: &self.peers };
            self.judge.judge(&seen, self.began + Duration::from_millis(ms))
        }

        #[track_caller]
        fn joins_until(&mut self, ms: u64) {
            for at in [0, ms / 2, ms - 1] {
                assert!(matches!(self.at(at), Verdict::Join(_)), "at {at} ms: {:?}", self.at(at));
            }
        }
    }

    fn absent() -> Option<Greeting> {
        Some(Greeting::Absent("nothing listens there".into()))
    }

    fn turned_away() -> Option<Greeting> {
        Some(Greeting::TurnedAway("this node's name is still taken".into()))
    }

    #[test]
    fn a_node_that_was_told_of_nobody_waits_a_second_to_be_found() {
        let mut first = Start::told(false);
        first.joins_until(1000);
        assert_eq!(first.at(1000), Verdict::Bootstrap);
        let mut of_itself = Start::told(true).greeted(&[(ME, None), (1, Some(Greeting::Itself))]);
        of_itself.joins_until(1000);
        assert_eq!(of_itself.at(1000), Verdict::Bootstrap);
    }

    #[test]
    fn a_first_node_is_not_held_up_by_those_that_join_it() {
        let mut first = Start::told(false);
        first.peers(&[(1, Some(Admission::Joining))]);
        first.joins_until(1000);
        assert_eq!(first.at(1000), Verdict::Bootstrap);
    }

    #[test]
    fn a_node_that_nobody_answers_begins_after_five_seconds() {
        let mut early = Start::told(true).greeted(&[(1, absent()), (2, absent())]);
        early.joins_until(5000);
        assert_eq!(early.at(5000), Verdict::Bootstrap);
        let mut nameless = Start::told(true);
        nameless.round = Some(Round { greeted: Vec::new(), unresolved: vec!["no such name".into()] });
        nameless.joins_until(5000);
        assert_eq!(nameless.at(5000), Verdict::Bootstrap);
    }

    #[test]
    fn a_node_that_a_member_turns_away_never_begins_by_itself() {
        let mut double = Start::told(true).greeted(&[(1, turned_away()), (2, absent())]);
        double.joins_until(3_600_000);
        // The member is gone, too: five seconds from then.
        let mut double = double.greeted(&[(1, absent()), (2, absent())]);
        assert!(matches!(double.at(3_604_998), Verdict::Join(_)));
        assert_eq!(double.at(3_604_999), Verdict::Bootstrap);
    }

    #[test]
    fn a_node_whose_datagrams_do_not_pass_stays_outside_and_says_so() {
        let unheard = Some(Greeting::Unheard("UDP does not arrive".into()));
        let mut closed = Start::told(true).greeted(&[(1, unheard), (2, absent())]);
        assert!(closed.round.as_ref().unwrap().is_unheard());
        closed.joins_until(3_600_000);
        assert_eq!(closed.at(0), Verdict::Join("UDP does not arrive".into()));
    }

    #[test]
    fn a_node_with_a_peer_that_is_a_member_or_has_not_said_so_never_begins_by_itself() {
        for admission in [Some(Admission::Admitted), None] {
            let mut found = Start::told(false);
            found.peers(&[(1, admission), (2, Some(Admission::Joining))]);
            found.joins_until(3_600_000);
        }
    }

    #[test]
    fn a_node_that_is_welcomed_and_not_heard_of_again_waits() {
        let mut unheard = Start::told(true).greeted(&[(1, Some(Greeting::Welcomed))]);
        let Verdict::Join(reason) = unheard.at(60_000) else { panic!("{:?}", unheard.at(60_000)) };
        assert!(reason.contains("UDP"), "{reason}");
    }

    #[test]
    fn nodes_that_were_told_of_each_other_alone_begin_as_soon_as_all_agree() {
        let mut one = Start::told(true).greeted(&[(1, Some(Greeting::Welcomed)), (2, absent()), (ME, None)]);
        one.peers(&[(1, Some(Admission::Joining))]);
        assert!(matches!(one.at(100), Verdict::Join(_)), "the second has not come yet");
        one.peers(&[(1, Some(Admission::Joining)), (2, Some(Admission::Joining))]);
        assert_eq!(one.at(200), Verdict::Agree);
        one.peers(&[(1, Some(Admission::Bootstrapping)), (2, Some(Admission::Bootstrapping))]);
        assert_eq!(one.at(300), Verdict::Bootstrap);
    }

    #[test]
    fn a_peer_that_never_makes_up_its_mind_holds_the_others_for_five_seconds() {
        let mut one = Start::told(true).greeted(&[(1, Some(Greeting::Welcomed))]);
        one.peers(&[(1, Some(Admission::Joining))]);
        assert_eq!(one.at(0), Verdict::Agree);
        assert_eq!(one.at(4999), Verdict::Agree);
        assert_eq!(one.at(5000), Verdict::Bootstrap);
    }

    #[test]
    fn before_the_first_round_of_greetings_nothing_is_known() {
        let mut start = Start::told(true);
        start.round = None;
        start.joins_until(10_000);
    }
}
