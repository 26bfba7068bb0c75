//! Who may ask for what: the proof of a member, the key of a client, the token of who runs the cluster.
//!
//! Decides by path before anything else of a request is looked at. Invariant: a path is open only if it is named here as open.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use hyper::header::{AUTHORIZATION, ORIGIN};
use hyper::{HeaderMap, Request};
use parking_lot::Mutex;

use super::PREFIX;
use super::error::ApiError;
use super::host::{Host, Hosts};
use super::request::shown;
use crate::model::{Key, NodeId};
use crate::node::Node;
use crate::security::{
    AdminToken, ApiKeys, Call, Grant, Hash, PROOF_HEADER, Replays, Right, Security, SharedKeyring,
};

/// Where a client's key may stand besides `Authorization: Bearer`.
pub(super) const KEY_HEADER: &str = "x-api-key";
/// What browsers say of the page that asks.
pub(super) const FETCH_SITE: &str = "sec-fetch-site";

/// What is asked of those who call.
pub(super) struct Gate {
    cluster: String,
    node_id: NodeId,
    hosts: Hosts,
    keyring: SharedKeyring,
    replays: Mutex<Replays>,
    api_keys: Option<Arc<ArcSwap<ApiKeys>>>,
    admin_token: Option<AdminToken>,
}

/// What somebody was let in for.
#[derive(Clone, Debug)]
pub(super) enum Pass {
    /// Everything the path offers.
    Whole,
    /// What a client was granted.
    Client(Arc<Grant>),
    /// A call of a member, if this is its body's hash.
    Proved(Hash),
}

impl Gate {
    /// `hosts` are the names that the node goes by where no credential is asked for.
    pub(super) fn new(security: &Security, cluster: &str, node_id: &NodeId, hosts: Hosts) -> Gate {
        Gate {
            cluster: cluster.into(),
            node_id: node_id.clone(),
            hosts,
            keyring: security.keyring(),
            replays: Mutex::default(),
            api_keys: security.api_keys(),
            admin_token: security.admin_token(),
        }
    }

    /// Whether the caller at `peer` may send this to `host`.
    ///
    /// # Errors
    /// 401 without credentials or with wrong ones, 403 where others would do.
    pub(super) fn admit<B>(
        &self,
        request: &Request<B>,
        host: Option<Host<'_>>,
        peer: IpAddr,
        node: &Node,
    ) -> Result<Pass, ApiError> {
        let path = request.uri().path();
        if path.starts_with(PREFIX) {
            self.admit_client(request.headers(), host)
        } else if path == "/api/v1/health" || path == crate::link::PATH {
            // A link proves itself in its own handshake.
            Ok(Pass::Whole)
        } else if path.starts_with("/internal/") {
            self.admit_member(request, host, node.wall_ms())
        } else if path.starts_with("/admin/") || path == "/metrics" {
            self.admit_operator(request.headers(), host, peer)
        } else {
            self.admit_client(request.headers(), host)
        }
    }

    /// Who runs the cluster, as of now, for what goes on after its request was admitted: the answer tells whether they still
    /// do.
    pub(super) fn operator(&self) -> impl Fn() -> bool + Send + Sync + use<> {
        let token = self.admin_token.clone();
        let issued = token.as_ref().map(AdminToken::issued);
        move || token.as_ref().zip(issued.as_ref()).is_none_or(|(token, issued)| token.is_still(issued))
    }

    fn admit_member<B>(
        &self,
        request: &Request<B>,
        host: Option<Host<'_>>,
        now_ms: u64,
    ) -> Result<Pass, ApiError> {
        let Some(keyring) = &self.keyring else { return self.admit_anybody(request.headers(), host) };
        let keyring = keyring.borrow().clone();
        let header = request.headers().get(PROOF_HEADER).and_then(|value| value.to_str().ok());
        let call = Call {
            cluster: &self.cluster,
            node: &self.node_id,
            method: request.method().as_str(),
            target: request.uri().path_and_query().map_or("/", |target| target.as_str()),
        };
        let checked = call.check(&keyring, header, &mut self.replays.lock(), now_ms);
        checked.map(Pass::Proved).map_err(|error| ApiError::unauthorized(error.to_string()))
    }

    fn admit_operator(
        &self,
        headers: &HeaderMap,
        host: Option<Host<'_>>,
        peer: IpAddr,
    ) -> Result<Pass, ApiError> {
        match (&self.admin_token, bearer(headers)) {
            (None, _) if peer.to_canonical().is_loopback() => self.admit_anybody(headers, host),
            (None, _) => Err(ApiError::forbidden(
                "without --admin-token-file this is answered only to callers on the node's own machine",
            )),
            (Some(token), Some(shown)) if token.is(shown) => Ok(Pass::Whole),
            (Some(_), Some(_)) => Err(ApiError::unauthorized("that is not the admin token")),
            (Some(_), None) => {
                Err(ApiError::unauthorized("this takes the admin token, as `Authorization: Bearer TOKEN`"))
            }
        }
    }

    fn admit_client(&self, headers: &HeaderMap, host: Option<Host<'_>>) -> Result<Pass, ApiError> {
        let Some(api_keys) = &self.api_keys else { return self.admit_anybody(headers, host) };
        let shown = bearer(headers).or_else(|| headers.get(KEY_HEADER)?.to_str().ok());
        let shown = shown.ok_or_else(|| {
            ApiError::unauthorized(
                "this takes an API key, as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
            )
        })?;
        let grant = api_keys.load().grant(shown);
        grant.map(Pass::Client).ok_or_else(|| ApiError::unauthorized("the API key is not known"))
    }

    /// Admits every request but those of other sites' pages in a browser. Such a page reaches whatever the browser's machine
    /// can reach, without the user's knowledge. Its request names another host than the node, or another origin.
    fn admit_anybody(&self, headers: &HeaderMap, host: Option<Host<'_>>) -> Result<Pass, ApiError> {
        if let Some(host) = host.filter(|host| !self.hosts.admit(*host)) {
            return Err(ApiError::forbidden(format!(
                "this node asks for no credential, so Host must be one of: {}; it is {}. Start the node with --allow-host to \
                 add another name",
                self.hosts.accepted(),
                shown(host.text)
            )));
        }
        if is_of_another_site(headers, host) {
            return Err(ApiError::forbidden(
                "a page of another site asks for this, and this node asks for no credential; only its own pages are answered then",
            ));
        }
        Ok(Pass::Whole)
    }
}

impl Pass {
    /// Whether it is good for this, with this key of the cache.
    ///
    /// # Errors
    /// 403, naming what was granted instead.
    pub(super) fn check(&self, right: Right, key: &Key) -> Result<(), ApiError> {
        match self {
            Pass::Client(grant) if !grant.allows(right, key.as_str()) => Err(refused(grant, right)),
            _ => Ok(()),
        }
    }

    /// Whether it is good for this at all.
    ///
    /// # Errors
    /// 403, naming what was granted instead.
    pub(super) fn check_any(&self, right: Right) -> Result<(), ApiError> {
        match self {
            Pass::Client(grant) if !grant.has(right) => Err(refused(grant, right)),
            _ => Ok(()),
        }
    }
}

/// Whether a browser says that the request comes from a page that this node did not serve: by the header of the Fetch
/// Metadata specification (W3C) where it sends that, else by the page's origin (RFC 6454). Nobody else sends these.
fn is_of_another_site(headers: &HeaderMap, host: Option<Host<'_>>) -> bool {
    if let Some(site) = headers.get(FETCH_SITE) {
        return site != "same-origin" && site != "none";
    }
    headers.get(ORIGIN).is_some_and(|origin| {
        let authority = origin.to_str().ok().and_then(|origin| Some(origin.split_once("://")?.1));
        authority.is_none() || authority != host.map(|host| host.text)
    })
}

fn refused(grant: &Grant, right: Right) -> ApiError {
    let name = &grant.name;
    let message = match grant.has(right) {
        true => format!("{name:?} may {right} only keys that begin with {:?}", grant.prefix),
        false => format!("{name:?} may not {right}"),
    };
    ApiError::forbidden(message)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, shown) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(shown.trim())
}
