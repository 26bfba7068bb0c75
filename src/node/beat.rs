//! When which member is asked for a lease: all of them on one beat, out of step only where something is wrong.
//!
//! What is asked and answered is in [`super::lease`]. In the steady state a member is *told* the question, and answers with its
//! own on its next beat. It is *called*, and answers at once, while it is not known to do so. Invariant: a member that is slow or
//! silent delays no other: it is not asked again while a call to it is under way, and nobody waits for that.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

use super::Node;
use super::placement::Placement;
use crate::link::{LeaseReply, LinkError, Reply, Request};
use crate::model::{Ledger, NodeId};

/// Between two beats.
pub(super) const PERIOD: Duration = Duration::from_millis(150);
/// Between two questions to one member while the tables differ, which is over soon.
const IMPATIENT_PERIOD: Duration = Duration::from_millis(25);
/// A member whose last answer was asked for longer ago on a beat is called. It answers on its own beat what was asked up to a
/// period before, so that on this node's beat the question was asked one or two periods ago.
const ANSWERED_WITHIN: Duration = PERIOD.checked_mul(5).expect("short").checked_div(2).expect("not by 0");
/// How long one that has left may be silent before it counts as gone.
const DEPARTED_FOR: Duration = Duration::from_secs(5);

/// Asks the members of whatever table is in force.
pub(super) async fn run(node: Node) {
    loop {
        let placement = node.0.placement.load_full();
        node.0.questions.retain(|member| placement.addresses.contains_key(member));
        node.0.clocks.retain(|member| placement.addresses.contains_key(member));
        ask_all(&node, &placement).await;
    }
}

/// Asks all members until the table changes.
async fn ask_all(node: &Node, placement: &Arc<Placement>) {
    let members: Vec<(&NodeId, SocketAddr)> = placement.others().collect();
    let mut turns = Turns::new(members.len(), Instant::now());
    let mut calls = FuturesUnordered::new();
    loop {
        let now = Instant::now();
        if turns.is_beat(now) {
            node.look_around(placement);
        }
        for place in turns.take_due(now) {
            let member = members[place];
            // A member that does not count this node as one never asks it, so no frame of its own would carry the answer.
            let asks_back = !node.0.reach.is_denied_by(member.0);
            if asks_back
                && !node.0.links.has_detour(member.1)
                && answers_on_its_beat(node, placement, member.0)
                && tell(node, placement, member)
            {
                turns.answered(place, true, now);
            } else {
                calls.push(async move { (place, call(node, placement, member).await) });
            }
        }
        let mut wake_at = turns.next_at();
        if !placement.is_complete() {
            node.reconsider(placement);
            wake_at = wake_at.min(now + IMPATIENT_PERIOD);
        }
        tokio::select! {
            biased;
            () = node.0.table_changed.notified() => return,
            Some((place, answer)) = calls.next(), if !calls.is_empty() => match answer {
                Ok(granted) => turns.answered(place, granted, Instant::now()),
                Err(error) => {
                    let silent_for = turns.failed(place, Instant::now());
                    let (member, _) = members[place];
                    let error = node.doubt_refusal(member, error);
                    let is_gone = matches!(error, LinkError::Refused(_)) || silent_for > DEPARTED_FOR;
                    if is_gone && placement.ring.members().binary_search(member).is_err() {
                        // One that is set apart may come back.
                        if !node.0.reach.apart().contains(member) {
                            turns.dismiss(place);
                        }
                        placement.dismiss(member);
                        node.reconsider(placement);
                    }
                }
            },
            () = sleep_until(wake_at) => {}
        }
    }
}

fn answers_on_its_beat(node: &Node, placement: &Placement, member: &NodeId) -> bool {
    let is_recent = |asked_us| node.uptime_us().saturating_sub(asked_us) < ANSWERED_WITHIN.as_micros() as u64;
    placement.is_complete() && placement.asked_us(member).is_some_and(is_recent)
}

/// False if there is no open connection.
fn tell(node: &Node, placement: &Placement, member: (&NodeId, SocketAddr)) -> bool {
    let (request, slots) = node.ask(placement, member.0, false);
    node.0.links.tell(member, &request, &slots).is_ok()
}

/// True if the member granted a lease.
async fn call(node: &Node, placement: &Placement, member: (&NodeId, SocketAddr)) -> Result<bool, LinkError> {
    let (request, slots) = node.ask(placement, member.0, true);
    let Request::Lease { question, .. } = request else { return Ok(false) };
    let deadline = Instant::now() + Duration::from_millis(Ledger::LEASE_MS);
    let (reply, slots) = node.0.links.call(member, &request, &slots, deadline).await?;
    let Reply::Leased(reply) = reply else { return Ok(false) };
    let LeaseReply { sender, mut answer, question: back } = *reply;
    if sender.node_id != *member.0 {
        return Ok(false);
    }
    node.see_sender(&sender);
    if let Some(back) = back {
        node.answer_at_next_call(&sender, back);
    }
    // Whatever the member says it answers.
    answer.asked_us = question.asked_us;
    Ok(node.hear_answer(placement, &sender, &answer, &slots))
}

/// Whose turn it is to be asked.
struct Turns {
    beat_at: Instant,
    members: Vec<Turn>,
}

struct Turn {
    heard_at: Instant,
    next: Next,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    OnBeat,
    At(Instant),
    /// When the call that is under way has ended.
    AfterCall,
    Never,
}

impl Turns {
    /// All are due at once.
    fn new(members: usize, now: Instant) -> Turns {
        let turn = || Turn { heard_at: now, next: Next::OnBeat };
        Turns { beat_at: now, members: (0..members).map(|_| turn()).collect() }
    }

    /// When somebody is due next.
    fn next_at(&self) -> Instant {
        let early = self.members.iter().filter_map(|turn| match turn.next {
            Next::At(at) => Some(at),
            _ => None,
        });
        early.fold(self.beat_at, Instant::min)
    }

    fn is_beat(&self, now: Instant) -> bool {
        now >= self.beat_at
    }

    /// Those that are due, for each of which a call is under way from now on. On the beat, those that are due before the next one
    /// for another reason come along.
    fn take_due(&mut self, now: Instant) -> Vec<usize> {
        let is_beat = self.is_beat(now);
        if is_beat {
            // A beat that was missed is not made up for.
            self.beat_at = (self.beat_at + PERIOD).max(now + PERIOD / 2);
        }
        let is_due = |turn: &Turn| match turn.next {
            Next::OnBeat => is_beat,
            Next::At(at) => is_beat || at <= now,
            Next::AfterCall | Next::Never => false,
        };
        let due = self.members.iter_mut().enumerate().filter(|(_, turn)| is_due(turn));
        due.map(|(place, turn)| {
            turn.next = Next::AfterCall;
            place
        })
        .collect()
    }

    fn answered(&mut self, place: usize, granted: bool, now: Instant) {
        let next = if granted { Next::OnBeat } else { Next::At(now + IMPATIENT_PERIOD) };
        self.members[place] = Turn { heard_at: now, next };
    }

    /// Gives how long it has not answered.
    fn failed(&mut self, place: usize, now: Instant) -> Duration {
        self.members[place].next = Next::OnBeat;
        now.duration_since(self.members[place].heard_at)
    }

    fn dismiss(&mut self, place: usize) {
        self.members[place].next = Next::Never;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn all_are_asked_on_one_beat_and_a_slow_one_delays_no_other() {
        let start = Instant::now();
        let mut turns = Turns::new(3, start);
        assert_eq!(turns.take_due(start), [0, 1, 2]);
        turns.answered(0, true, start + MS);
        turns.answered(2, true, start + 2 * MS);
        assert_eq!(turns.next_at(), start + PERIOD);
        assert!(turns.take_due(start + PERIOD - MS).is_empty());
        assert_eq!(turns.take_due(start + PERIOD), [0, 2], "one has not answered yet");
        turns.answered(0, true, start + PERIOD);
        turns.answered(2, true, start + PERIOD);
        assert_eq!(turns.failed(1, start + PERIOD + 7 * MS), PERIOD + 7 * MS);
        assert_eq!(turns.take_due(start + 2 * PERIOD), [0, 1, 2]);
    }

    #[test]
    fn one_that_does_not_grant_is_asked_again_soon_and_alone() {
        let start = Instant::now();
        let mut turns = Turns::new(2, start);
        turns.take_due(start);
        turns.answered(0, true, start);
        turns.answered(1, false, start);
        assert_eq!(turns.next_at(), start + IMPATIENT_PERIOD);
        assert_eq!(turns.take_due(start + IMPATIENT_PERIOD), [1]);
        turns.answered(1, true, start + IMPATIENT_PERIOD);
        assert_eq!(turns.next_at(), start + PERIOD);
        turns.dismiss(1);
        assert_eq!(turns.take_due(start + PERIOD), [0]);
    }

    #[test]
    fn a_late_beat_is_not_made_up_for() {
        let start = Instant::now();
        let mut turns = Turns::new(1, start);
        turns.take_due(start);
        turns.answered(0, true, start);
        let late = start + 10 * PERIOD;
        assert_eq!(turns.take_due(late), [0]);
        turns.answered(0, true, late);
        assert!(turns.take_due(late + MS).is_empty());
        assert!(turns.next_at() > late + PERIOD / 3);
    }
}
