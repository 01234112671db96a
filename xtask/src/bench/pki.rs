//! Certificates of the two sidecars, and a client that shows one of them.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use testkit::issue::Authority;
use tokio_rustls::TlsConnector;

/// Writes a root and a leaf each for `client` and `server` into a directory.
pub(crate) fn write(directory: &Path) -> Result<()> {
    let authority = Authority::new("bench")?;
    for name in ["client", "server"] {
        let folder = directory.join(name);
        authority.write_named(
            &folder,
            &format!("spiffe://mesh.test/ns/bench/sa/{name}"),
            name,
            &format!("{name}.mesh"),
        )?;
        let both = [std::fs::read(folder.join("cert-chain.pem"))?, std::fs::read(folder.join("key.pem"))?].concat();
        std::fs::write(folder.join("both.pem"), both)?;
    }
    Ok(())
}

/// TLS 1.3 as the client's sidecar, with X25519 alone (what every proxy here has), and a full handshake each time.
pub(crate) fn client(directory: &Path) -> Result<TlsConnector> {
    let folder = directory.join("client");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("root-cert.pem")).context("root-cert.pem")?)?;
    let chain = CertificateDer::pem_file_iter(folder.join("cert-chain.pem"))?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(folder.join("key.pem")).context("key.pem")?;
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
    provider.cipher_suites.retain(|suite| suite.suite() == rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}
