//! What keeps strangers out: the cluster's secret, TLS, the keys of clients, the token of who runs the cluster.
//!
//! Reads them, keeps them, takes them from their files again when told to, and says whether something shown is right. Does
//! not know who asks: datagrams, links and HTTP are the affair of `gossip`, `link` and `http`. Invariant: a reload that fails
//! anywhere changes nothing.

mod api_key;
mod files;
mod handshake;
mod proof;
mod replay;
mod seal;
mod secret;
mod session;
mod stream;
mod tls;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tracing::info;

pub use self::api_key::{ApiKeys, Grant, Right};
use self::files::Access;
pub use self::files::FileError;
pub use self::handshake::{End, Handshake, Terms};
pub use self::proof::{Call, Hash, PROOF_HEADER, ProofError, bytes, hash, text};
pub use self::replay::{Replays, Stale, WINDOW_MS};
pub use self::seal::{NotSealed, Opener, Sealer, TAG_BYTES};
pub use self::secret::{KeyId, Keyring, Keys, Secret, SecretError};
pub use self::session::Session;
pub use self::stream::Stream;
pub use self::tls::{ClientTls, FIRST_BYTE, Tls, TlsConfig, TlsFailure};

/// The secrets in use, now and whenever they change; none if the cluster has none, which does not change.
pub type SharedKeyring = Option<watch::Receiver<Arc<Keyring>>>;

/// A token shorter than this could be guessed.
const TOKEN_CHARS_MIN: usize = 20;

/// Where the cluster's secret comes from.
#[derive(Clone, Debug)]
pub enum SecretSource {
    /// A file, which only its owner may read.
    File(PathBuf),
    /// A credential that the service manager passed on, which it guards itself.
    Credential(PathBuf),
    /// The environment, which does not change.
    Environment(Arc<Keyring>),
}

/// Where everything comes from.
#[derive(Clone, Debug, Default)]
pub struct SecurityConfig {
    /// Of the cluster; without it any node of the same cluster name is let in.
    pub secret: Option<SecretSource>,
    /// For TLS instead of plain TCP.
    pub tls: Option<TlsConfig>,
    /// The file of the clients' keys; without it any client is let in.
    pub api_keys: Option<PathBuf>,
    /// The file of the token for `/admin` and `/metrics`; without it those are for this machine only.
    pub admin_token: Option<PathBuf>,
}

/// What is in force.
pub struct Security {
    config: SecurityConfig,
    keyring: Option<watch::Sender<Arc<Keyring>>>,
    tls: Option<Arc<Tls>>,
    api_keys: Option<Arc<ArcSwap<ApiKeys>>>,
    admin_token: Option<Arc<ArcSwap<Hash>>>,
}

impl fmt::Debug for Security {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.config.fmt(out)
    }
}

impl Security {
    /// Reads everything from where it is.
    ///
    /// # Errors
    /// When a file is unusable.
    pub fn load(config: SecurityConfig) -> Result<Security, FileError> {
        let keyring = config.secret.as_ref().map(keyring).transpose()?;
        Ok(Security {
            keyring: keyring.map(watch::Sender::new),
            tls: config.tls.clone().map(Tls::load).transpose()?.map(Arc::new),
            api_keys: config.api_keys.as_deref().map(api_keys).transpose()?.map(shared),
            admin_token: config.admin_token.as_deref().map(token).transpose()?.map(shared),
            config,
        })
    }

    /// Reads everything again: what is new is in force from now on.
    ///
    /// # Errors
    /// When a file is unusable; then everything is as it was.
    pub fn reload(&self) -> Result<(), FileError> {
        let new_keyring = self.config.secret.as_ref().map(keyring).transpose()?;
        let new_keys = self.config.api_keys.as_deref().map(api_keys).transpose()?;
        let new_token = self.config.admin_token.as_deref().map(token).transpose()?;
        let store_tls = self.tls.as_ref().map(|tls| tls.reload()).transpose()?;
        if let Some(store) = store_tls {
            store();
        }
        if let (Some(sender), Some(keyring)) = (&self.keyring, new_keyring) {
            let ids: Vec<String> = keyring.ids().map(|id| id.to_string()).collect();
            info!(secrets = ids.join(","), "the cluster's secrets were read again; the first one seals");
            sender.send_replace(keyring);
        }
        if let (Some(keys), Some(new)) = (&self.api_keys, new_keys) {
            keys.store(Arc::new(new));
        }
        if let (Some(token), Some(new)) = (&self.admin_token, new_token) {
            token.store(Arc::new(new));
        }
        Ok(())
    }

    /// The secrets of the cluster.
    #[must_use]
    pub fn keyring(&self) -> SharedKeyring {
        self.keyring.as_ref().map(watch::Sender::subscribe)
    }

    /// TLS, if that is spoken.
    #[must_use]
    pub fn tls(&self) -> Option<Arc<Tls>> {
        self.tls.clone()
    }

    /// The keys of clients, if those are asked for.
    #[must_use]
    pub fn api_keys(&self) -> Option<Arc<ArcSwap<ApiKeys>>> {
        self.api_keys.clone()
    }

    /// Tells whether something is the token for `/admin`, if there is one.
    #[must_use]
    pub fn admin_token(&self) -> Option<AdminToken> {
        self.admin_token.clone().map(AdminToken)
    }
}

/// Knows the token for `/admin` when it sees it.
#[derive(Clone)]
pub struct AdminToken(Arc<ArcSwap<Hash>>);

/// The token that was the right one at some time.
#[derive(Clone)]
pub struct Issued(Arc<Hash>);

impl AdminToken {
    /// The one that is right now.
    #[must_use]
    pub fn issued(&self) -> Issued {
        Issued(self.0.load_full())
    }

    /// Whether that is still the one.
    #[must_use]
    pub fn is_still(&self, issued: &Issued) -> bool {
        *issued.0 == **self.0.load()
    }

    /// Whether this is it.
    #[must_use]
    pub fn is(&self, shown: &str) -> bool {
        proof::is_same(&hash(shown.as_bytes()), &self.0.load())
    }
}

fn shared<T>(value: T) -> Arc<ArcSwap<T>> {
    Arc::new(ArcSwap::from_pointee(value))
}

/// The keyring that comes from there.
///
/// # Errors
/// When a file is unusable.
pub fn keyring(source: &SecretSource) -> Result<Arc<Keyring>, FileError> {
    let (path, access) = match source {
        SecretSource::Environment(keyring) => return Ok(keyring.clone()),
        SecretSource::File(path) => (path, Access::Private),
        SecretSource::Credential(path) => (path, Access::Guarded),
    };
    let text = files::read(path, access)?;
    Keyring::parse(&text).map(Arc::new).map_err(|error| FileError::contents(path, error))
}

fn api_keys(path: &Path) -> Result<ApiKeys, FileError> {
    let text = files::read(path, Access::Public)?;
    ApiKeys::parse(&text).map_err(|reason| FileError::contents(path, reason))
}

/// The text of a token, as a client has to show it.
///
/// # Errors
/// When the file is unusable.
pub fn token_text(path: &Path) -> Result<String, FileError> {
    let text = files::read(path, Access::Private)?;
    let token = text.trim();
    if token.len() < TOKEN_CHARS_MIN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let reason = format!(
            "it must hold one line of at least {TOKEN_CHARS_MIN} printable ASCII characters without spaces; \
             what `shoal secret` prints will do"
        );
        return Err(FileError::contents(path, reason));
    }
    Ok(token.to_string())
}

fn token(path: &Path) -> Result<Hash, FileError> {
    Ok(hash(token_text(path)?.as_bytes()))
}
