//! The flags that keep strangers out. Secrets come from files or the environment, never from a flag: others can read those.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use clap::builder::BoolishValueParser;
use rustls::pki_types::ServerName;
use tokio_rustls::rustls;

use super::{ConfigError, bad};
use crate::security::{Keyring, SecretSource, SecurityConfig, TlsConfig};

/// Holds the secrets themselves, one a line.
pub(crate) const SECRET_VARIABLE: &str = "SHOAL_CLUSTER_SECRET";
/// Set by systemd where a unit has `LoadCredential=`.
const CREDENTIALS_VARIABLE: &str = "CREDENTIALS_DIRECTORY";
/// The name of the credential.
const CREDENTIAL: &str = "shoal-cluster-secret";

/// Who is let in.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Security")]
pub struct SecurityArgs {
    /// File of the cluster's secret, as `shoal secret` prints it; of several, one a line, the first one seals.
    /// SHOAL_CLUSTER_SECRET holds the secret itself; the systemd credential shoal-cluster-secret is found by its name
    #[arg(long, value_name = "FILE", env = "SHOAL_CLUSTER_SECRET_FILE")]
    pub cluster_secret_file: Option<PathBuf>,
    /// Listen on an address that others can reach without a cluster secret: for a network that nobody else is in
    #[arg(long, env = "SHOAL_INSECURE", value_parser = BoolishValueParser::new())]
    pub insecure: bool,
    /// Certificate for TLS, PEM, with those between it and its authority
    #[arg(long, value_name = "FILE", env = "SHOAL_TLS_CERT")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", env = "SHOAL_TLS_KEY")]
    pub tls_key: Option<PathBuf>,
    /// Authorities that the certificates of the other nodes are from, PEM
    #[arg(long, value_name = "FILE", env = "SHOAL_TLS_CA")]
    pub tls_ca: Option<PathBuf>,
    /// Authorities that certificates of clients, and of nodes as clients, have to be from, PEM [default: none are asked for]
    #[arg(long, value_name = "FILE", env = "SHOAL_TLS_CLIENT_CA")]
    pub tls_client_ca: Option<PathBuf>,
    /// The name that the certificate of every node has [default: the address that it is reached at]
    #[arg(long, value_name = "NAME", env = "SHOAL_TLS_SERVER_NAME")]
    pub tls_server_name: Option<String>,
    /// Keys of clients, one a line, as `shoal key` prints them [default: no key is asked for]
    #[arg(long, value_name = "FILE", env = "SHOAL_API_KEYS_FILE")]
    pub api_keys_file: Option<PathBuf>,
    /// Further name by which clients call this node where no credential is asked for, as of a load balancer; repeatable or
    /// comma-separated [default: any IP address, localhost, and the names in --listen, --advertise and --tls-server-name]
    #[arg(long, value_name = "NAME", env = "SHOAL_ALLOW_HOST", value_delimiter = ',')]
    pub allow_host: Vec<String>,
    /// File of the token for /admin and /metrics [default: they are for this machine only]
    #[arg(long, value_name = "FILE", env = "SHOAL_ADMIN_TOKEN_FILE")]
    pub admin_token_file: Option<PathBuf>,
}

impl SecurityArgs {
    pub(super) fn resolve(&self, listen: SocketAddr) -> Result<SecurityConfig, ConfigError> {
        let secret = self.secret()?;
        check_is_path("--admin-token-file", self.admin_token_file.as_ref())?;
        if secret.is_none() && !self.insecure && !listen.ip().is_loopback() {
            let reason = "others can reach that address, and this cluster has no secret: make one with `shoal secret` and \
                          give its file to every node with --cluster-secret-file, or add --insecure on a network that \
                          nobody else is in";
            return Err(bad("listen", &listen.to_string(), reason));
        }
        if let (Some(path), None) = (&self.api_keys_file, &secret) {
            let reason = "without a cluster secret /internal and the link would stand open beside the keys: make one with \
                          `shoal secret` and give its file to every node with --cluster-secret-file";
            return Err(bad("api-keys-file", &path.display().to_string(), reason));
        }
        Ok(SecurityConfig {
            secret,
            tls: self.tls()?,
            api_keys: self.api_keys_file.clone(),
            admin_token: self.admin_token_file.clone(),
        })
    }

    /// Where the cluster's secret is; a credential that the service manager passed on gives way to what was asked for.
    ///
    /// # Errors
    /// When it is in two places, or the environment holds something else. Nothing that was meant as a secret counts as none.
    pub fn secret(&self) -> Result<Option<SecretSource>, ConfigError> {
        check_is_path("--cluster-secret-file", self.cluster_secret_file.as_ref())?;
        match (&self.cluster_secret_file, std::env::var_os(SECRET_VARIABLE)) {
            (Some(path), Some(_)) => Err(bad(
                "cluster-secret-file",
                &path.display().to_string(),
                format!("{SECRET_VARIABLE} is set as well; give the secret in one of them"),
            )),
            (Some(path), None) => Ok(Some(SecretSource::File(path.clone()))),
            (None, Some(text)) => {
                let text = text.into_string().map_err(|_| "it is not UTF-8".to_string());
                let keyring = text.and_then(|text| Keyring::parse(&text).map_err(|error| error.to_string()));
                let keyring = keyring.map_err(|reason| ConfigError::unrepeated(SECRET_VARIABLE, reason))?;
                Ok(Some(SecretSource::Environment(Arc::new(keyring))))
            }
            (None, None) => {
                let folder = std::env::var_os(CREDENTIALS_VARIABLE).map(PathBuf::from);
                // One that is there and cannot be read is an error soon.
                let credential = folder
                    .map(|folder| folder.join(CREDENTIAL))
                    .filter(|path| !matches!(path.try_exists(), Ok(false)));
                Ok(credential.map(SecretSource::Credential))
            }
        }
    }

    fn tls(&self) -> Result<Option<TlsConfig>, ConfigError> {
        let all = [
            ("tls-cert", &self.tls_cert),
            ("tls-key", &self.tls_key),
            ("tls-ca", &self.tls_ca),
            ("tls-client-ca", &self.tls_client_ca),
        ];
        let given = all.iter().find_map(|(flag, path)| Some((*flag, path.as_ref()?.display().to_string())));
        let (Some(cert), Some(key), Some(ca)) = (&self.tls_cert, &self.tls_key, &self.tls_ca) else {
            return match given {
                None => Ok(None),
                Some((flag, path)) => {
                    let missing: Vec<String> = all[..3]
                        .iter()
                        .filter(|(_, path)| path.is_none())
                        .map(|(flag, _)| format!("--{flag}"))
                        .collect();
                    Err(bad(flag, &path, format!("TLS takes {} as well", missing.join(" and "))))
                }
            };
        };
        let server_name = self.tls_server_name.as_deref().map(|name| {
            ServerName::try_from(name.to_string())
                .map_err(|_| bad("tls-server-name", name, "must be a host name or an IP address"))
        });
        Ok(Some(TlsConfig {
            cert: cert.clone(),
            key: key.clone(),
            ca: ca.clone(),
            client_ca: self.tls_client_ca.clone(),
            server_name: server_name.transpose()?,
        }))
    }
}

/// A secret in place of its file's path would be repeated in the error that there is no such file.
fn check_is_path(flag: &str, path: Option<&PathBuf>) -> Result<(), ConfigError> {
    let is_secret = path.is_some_and(|path| Keyring::parse(&path.to_string_lossy()).is_ok());
    let reason = "this is a secret; it takes the path of a file that holds one. Others may have seen it in the list of \
                  processes: make a new one with `shoal secret`";
    if is_secret { Err(ConfigError::unrepeated(flag, reason)) } else { Ok(()) }
}
