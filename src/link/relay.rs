//! Requests that take a detour: through another node, one hop, where the one that is called cannot be called directly.
//!
//! Knows neither why nor through whom; it is told by [`Pool::set_detours`]. A relay is a slow wire: the deadline, and whatever
//! the request says about its sender, stay as they are. Invariant: what came over a relay is never relayed again, and that
//! a relay finds nobody listening says nothing to the node that asked.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::client::{is_bulk, is_patient};
use super::connection::Replied;
use super::message::{Refusal, Relayed, Reply, Request};
use super::party::Called;
use super::{LinkError, Pool, frame};
use crate::model::NodeId;

/// By the address that is called: the node to go through, and where that is.
pub(super) type Detours = BTreeMap<SocketAddr, (NodeId, SocketAddr)>;

impl Pool {
    /// Has requests to the members at these addresses go through others, and all other requests directly.
    pub fn set_detours(&self, detours: BTreeMap<SocketAddr, (NodeId, SocketAddr)>) {
        if **self.detours.load() != detours {
            self.detours.store(Arc::new(detours));
        }
    }

    /// Whether requests to that address take a detour.
    pub fn has_detour(&self, address: SocketAddr) -> bool {
        self.detours.load().contains_key(&address)
    }

    pub(super) async fn call_through(
        &self,
        (relay, at): &(NodeId, SocketAddr),
        called: Called<'_>,
        request: &Request,
        values: &[Bytes],
        deadline: Instant,
    ) -> Result<Replied, LinkError> {
        let (Some(to), Some(bytes)) = (called.node_id, frame::encode_head(request)) else {
            return Err(LinkError::TooLong);
        };
        let how = Relayed {
            to: to.clone(),
            is_bulk: is_bulk(request),
            is_patient: is_patient(request),
            is_repeatable: request.is_repeatable(),
        };
        let relayed = Request::Relay { how, request: bytes };
        self.metrics.link_relayed.inc();
        match self.call_directly((relay, *at), &relayed, values, deadline).await {
            Ok((Reply::NotRelayed { may_be_done: true }, _)) => Err(LinkError::Silent(called.address)),
            Ok((Reply::NotRelayed { may_be_done: false }, _)) => {
                Err(LinkError::unreachable(called.address, format!("nor does {relay} reach it")))
            }
            Ok(replied) => {
                self.hear_through(called.address);
                Ok(replied)
            }
            Err(error @ (LinkError::Refused(_) | LinkError::Rejected { .. } | LinkError::Itself(_))) => {
                Err(LinkError::unreachable(called.address, error.to_string()))
            }
            Err(error) => Err(error),
        }
    }

    /// Sends a request on to a member, for another node that cannot call it.
    pub async fn relay(
        &self,
        called: (&NodeId, SocketAddr),
        request: &[u8],
        value: Bytes,
        deadline: Instant,
    ) -> (Reply, Vec<Bytes>) {
        let request = match frame::decode_head::<Request>(request) {
            Ok(request) if !matches!(request, Request::Relay { .. } | Request::CallBack { .. }) => request,
            _ => return (Reply::Refused(Refusal::Invalid("it cannot be relayed".into())), Vec::new()),
        };
        let values = if value.is_empty() { Vec::new() } else { vec![value] };
        match self.call_directly(called, &request, &values, deadline).await {
            Ok((reply, value)) => (reply, if value.is_empty() { Vec::new() } else { vec![value] }),
            Err(LinkError::Overloaded(_)) => (Reply::Refused(Refusal::Overloaded), Vec::new()),
            Err(error) => {
                let may_be_done =
                    matches!(error, LinkError::Broken(_) | LinkError::Silent(_) | LinkError::Late(_));
                (Reply::NotRelayed { may_be_done }, Vec::new())
            }
        }
    }
}
