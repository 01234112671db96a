//! TLS contexts as plain data. rustls lives in `identity` and `proxy`; nothing here knows of it.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::matcher::StringMatcher;

/// How a filter chain ends TLS from clients.
#[derive(Debug, Clone, PartialEq)]
pub struct DownstreamTls {
    /// What both directions have in common.
    pub common: TlsCommon,
    /// Refuse a client without a certificate. Default false.
    pub require_client_certificate: bool,
    /// Refuse a client without a server name. Default false.
    pub require_sni: bool,
    /// No session tickets. Default false.
    pub disable_stateless_resumption: bool,
    /// No session cache. Default false.
    pub disable_stateful_resumption: bool,
}

/// How connections to a cluster begin TLS.
#[derive(Debug, Clone, PartialEq)]
pub struct UpstreamTls {
    /// What both directions have in common.
    pub common: TlsCommon,
    /// The server name to ask for; `None`: none is sent.
    pub sni: Option<Arc<str>>,
    /// Take the server name from the endpoint's host name, where it has one. Default false.
    pub auto_host_sni: bool,
    /// Take the server name from the request's authority (the cluster's `auto_sni`). Default false.
    pub auto_sni: bool,
    /// Check the server's certificate against the server name sent. Default false.
    pub auto_sni_san_validation: bool,
    /// How many sessions are kept to be resumed; 0: every handshake is a full one. Default 64 (Envoy's is 1, of all
    /// servers of the cluster together, which few connections find).
    pub max_session_keys: usize,
}

/// The shared half of a TLS context.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TlsCommon {
    /// Lowest version; `None`: TLS 1.2.
    pub min_version: Option<TlsVersion>,
    /// Highest version; `None`: TLS 1.3 downstream, and upstream too (Envoy's own default upstream is 1.2 with
    /// BoringSSL's older rule; ours is the safe one).
    pub max_version: Option<TlsVersion>,
    /// Cipher suites by OpenSSL name, in order; empty: the library's.
    pub cipher_suites: Vec<Arc<str>>,
    /// Key exchange groups by name, in order; empty: the library's, X25519MLKEM768 first.
    pub curves: Vec<Arc<str>>,
    /// Protocols offered or accepted, in order of preference.
    pub alpn: Vec<Arc<str>>,
    /// Our own certificates; several are chosen between by server name.
    pub certificates: Vec<CertificateSource>,
    /// How the peer is verified; `None`: not at all.
    pub validation: Option<Validation>,
}

/// A version of TLS that we speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2
    V1_2,
    /// TLS 1.3
    V1_3,
}

/// Where a certificate with its key comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum CertificateSource {
    /// Named here, delivered by the secret discovery service.
    Secret(SecretRef),
    /// Written in the resource itself.
    Inline(Arc<Certificate>),
}

/// A certificate chain and its private key.
#[derive(Clone, PartialEq)]
pub struct Certificate {
    /// PEM, leaf first.
    pub chain: DataSource,
    /// PEM, PKCS#8 or SEC1 or PKCS#1.
    pub key: DataSource,
    /// A directory whose replacement means that the files changed.
    pub watched_directory: Option<Arc<Path>>,
}

impl std::fmt::Debug for Certificate {
    /// Never prints inline key material.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate").field("chain", &self.chain).field("key", &"<redacted>").finish_non_exhaustive()
    }
}

/// A secret by name and the place that delivers it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SecretRef {
    /// `default`, `ROOTCA`, ...
    pub name: Arc<str>,
    /// Who delivers it.
    pub source: SecretSource,
}

/// Who delivers a secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SecretSource {
    /// The bootstrap's own list of secrets ([`crate::Plan::secret`]).
    Static,
    /// The ADS stream ([`crate::Plan::secret`] once it arrived).
    Ads,
    /// A gRPC SDS service behind this cluster.
    Grpc {
        /// Name of the cluster.
        cluster: Arc<str>,
    },
    /// A file that holds a DiscoveryResponse.
    Path(Arc<Path>),
}

/// How a peer's certificate is judged.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Validation {
    /// A secret of the kind validation context that adds to (and gives the roots of) what is written here.
    pub secret: Option<SecretRef>,
    /// Trusted roots written here.
    pub roots: Option<DataSource>,
    /// Trusted roots by SPIFFE trust domain: a certificate is judged by the roots of its own domain alone.
    pub trust_domains: Vec<(Arc<str>, DataSource)>,
    /// Directory whose replacement means that the roots changed.
    pub watched_directory: Option<Arc<Path>>,
    /// At least one must match a subject alternative name; empty: any name of a trusted chain.
    pub sans: Vec<SanMatcher>,
    /// SHA-256 of the whole certificate, hex (colons allowed); one must match if any is given.
    pub certificate_hashes: Vec<Arc<str>>,
    /// SHA-256 of the public key info, base64; one must match if any is given.
    pub spki_hashes: Vec<Arc<str>>,
    /// Revocation lists, PEM.
    pub crl: Option<DataSource>,
    /// Check revocation of the leaf alone. Default false.
    pub only_leaf_crl: bool,
    /// Take a chain that does not lead to a root (the facts then say `validated: false`). Default false.
    pub accept_untrusted: bool,
    /// Use the system's roots. Default false.
    pub system_roots: bool,
    /// The longest chain; `None`: the library's limit.
    pub max_depth: Option<u32>,
}

/// A rule about one kind of subject alternative name.
#[derive(Debug, Clone, PartialEq)]
pub struct SanMatcher {
    /// Which names it looks at; `None`: all kinds (old, untyped matchers).
    pub kind: Option<SanKind>,
    /// What they must be.
    pub matcher: StringMatcher,
}

/// Kinds of subject alternative names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SanKind {
    /// rfc822Name
    Email,
    /// dNSName
    Dns,
    /// uniformResourceIdentifier
    Uri,
    /// iPAddress, compared in text form
    Ip,
}

/// Bytes, or where to find them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataSource {
    /// A file.
    File(Arc<Path>),
    /// Here they are.
    Inline(Bytes),
    /// An environment variable of the proxy.
    Environment(Arc<str>),
}

/// A secret that came in a resource.
#[derive(Debug, Clone, PartialEq)]
pub enum Secret {
    /// A certificate with its key.
    Certificate(Arc<Certificate>),
    /// Roots and rules for peers.
    Validation(Arc<Validation>),
}
