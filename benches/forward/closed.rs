//! Nodes with a secret, and nodes under TLS.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use shoal::client::{Access, Client, ClientTls, PutOptions};

use super::common::{Result, SHOAL, wait_until};
use super::{Pair, VALUE_BYTES, start_nodes};

/// What the nodes read.
pub(crate) struct Files {
    secret: String,
    tls: [String; 3],
}

impl Files {
    pub(crate) fn new() -> Result<Files> {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let write = |name: &str, text: &str| -> Result<String> {
            let path: PathBuf = folder.join(name);
            fs::write(&path, text)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            Ok(path.display().to_string())
        };
        let secret = Command::new(SHOAL).arg("secret").output()?;
        let mut params = CertificateParams::new([])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let (issuer_key, key) = (KeyPair::generate()?, KeyPair::generate()?);
        let ca = params.self_signed(&issuer_key)?.pem();
        let cert = CertificateParams::new(["127.0.0.1".to_string()])?;
        let cert = cert.signed_by(&key, &Issuer::new(params, issuer_key))?.pem();
        Ok(Files {
            secret: write("secret", &String::from_utf8(secret.stdout)?)?,
            tls: [write("cert.pem", &cert)?, write("key.pem", &key.serialize_pem())?, write("ca.pem", &ca)?],
        })
    }

    pub(crate) fn secret_flags(&self) -> [&str; 2] {
        ["--cluster-secret-file", &self.secret]
    }

    fn tls_flags(&self) -> [&str; 6] {
        let [cert, key, ca] = &self.tls;
        ["--tls-cert", cert, "--tls-key", key, "--tls-ca", ca]
    }
}

/// Two nodes with a secret and TLS, and the same key as `other`: their names, and so their ring, are the same.
#[tokio::main]
pub(crate) async fn start_tls(files: &Files, other: &Pair) -> Result<Pair> {
    let nodes = start_nodes(SHOAL, &[&files.secret_flags()[..], &files.tls_flags()].concat())?;
    let tls = ClientTls::load(Path::new(&files.tls[2]), None, None)?;
    let client =
        Client::with_access(nodes[1].address.to_string(), Access { tls: Some(tls), ..Access::default() });
    let runtime = tokio::runtime::Handle::current();
    let whole = || {
        let cluster = tokio::task::block_in_place(|| runtime.block_on(client.cluster()));
        let serves = || tokio::task::block_in_place(|| runtime.block_on(client.health()));
        cluster.is_ok_and(|cluster| cluster.cluster_status.healthy_nodes == 2)
            && serves().is_ok_and(|health| health.status == "healthy")
    };
    wait_until("two nodes under TLS see each other", whole)?;
    let options =
        PutOptions { content_type: Some("text/plain; charset=utf-8".into()), ..PutOptions::default() };
    client.put(&other.key, "v".repeat(VALUE_BYTES), &options).await?;
    let answer = super::Answer { etag: other.answer.etag.clone(), body: other.answer.body.clone() };
    Ok(Pair { nodes, scheme: "https", key: other.key.clone(), answer })
}
