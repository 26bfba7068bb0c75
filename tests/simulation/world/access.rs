//! What the clients of a simulated cluster have to show, and how their values travel.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rand::SeedableRng;
use rand::rngs::StdRng;
use shoal::security::{Keyring, Secret};

/// For `/admin`, which the clients' host asks from outside.
pub(crate) const TOKEN: &str = "token-of-the-simulation";
/// Bytes of the values where there is little room.
const PADDED_BYTES: std::ops::Range<usize> = 20_000..60_000;

/// What clients have to show. `/admin` takes the token from other hosts; the rest takes something only with a keyring.
#[derive(Clone)]
pub(crate) struct Access {
    pub(crate) keyring: Option<Arc<Keyring>>,
    /// Whether values are made long on their way, see [`Access::pad`].
    pub(crate) pads: bool,
    pub(super) token_file: PathBuf,
}

impl Access {
    /// As the nodes and clients of one simulation have it.
    pub(crate) fn new(seed: u64, is_sealed: bool) -> Access {
        static TOKEN_FILE: OnceLock<PathBuf> = OnceLock::new();
        let token_file = TOKEN_FILE.get_or_init(|| {
            let path = std::env::temp_dir().join(format!("shoal-simulation-{}", std::process::id()));
            let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
            file.and_then(|mut file| file.write_all(TOKEN.as_bytes())).expect("a file can be written");
            path
        });
        let keyring = is_sealed.then(|| {
            let secret = Secret::generate(&mut StdRng::seed_from_u64(seed));
            Arc::new(Keyring::parse(&secret.to_text()).expect("it is a secret"))
        });
        Access { keyring, pads: false, token_file: token_file.clone() }
    }

    /// A value as it is sent: so long that few fit a small memory, each of another length.
    pub(crate) fn pad(&self, value: &str) -> String {
        if !self.pads {
            return value.to_string();
        }
        let number = value.bytes().fold(7_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let bytes = PADDED_BYTES.start + number % PADDED_BYTES.len();
        format!("{value}{:>1$}", "", bytes - value.len())
    }

    /// The value of which that was made; what was not made like that stays as it is.
    pub(crate) fn unpad(&self, sent: &[u8]) -> String {
        let sent = String::from_utf8_lossy(sent);
        let value = sent.trim_end();
        if self.pads && self.pad(value) == sent { value.to_string() } else { sent.into_owned() }
    }
}
