//! All that is known about a connection and a request when a decision is asked for. Facts are gathered once.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderMap;

use crate::limit::ConnectionBuckets;
use crate::metadata::Metadata;

/// What is known since the connection was accepted; it does not change from request to request.
#[derive(Debug, Clone)]
pub struct ConnectionFacts {
    /// Who opened the socket: the TCP peer, before any PROXY header.
    pub direct_remote: SocketAddr,
    /// The peer after a PROXY header was believed; else equal to `direct_remote`.
    pub remote: SocketAddr,
    /// Where the peer meant to go: the original destination if it was restored, else the socket's own address.
    pub local: SocketAddr,
    /// The TLS server name the client asked for, in lower case.
    pub server_name: Option<Arc<str>>,
    /// Whether the transport is TLS that this proxy terminates (or, before the chain is chosen, sees).
    pub tls: bool,
    /// Protocols the client offers: ALPN names, or what the HTTP inspector found (`http/1.0`, `http/1.1`, `h2c`).
    pub application_protocols: Vec<Arc<str>>,
    /// The ALPN protocol that was agreed.
    pub negotiated_protocol: Option<Arc<str>>,
    /// The client's certificate, if it presented one.
    pub peer: Option<Arc<Peer>>,
    /// TLS version and cipher as Envoy prints them (`TLSv1.3`, `TLS_AES_256_GCM_SHA384`).
    pub tls_version: Option<&'static str>,
    /// See `tls_version`.
    pub tls_cipher: Option<&'static str>,
    /// Number of the connection in this process.
    pub id: u64,
    /// Buckets of its own, where a filter limits the requests of each connection.
    pub buckets: ConnectionBuckets,
}

impl ConnectionFacts {
    /// A plain connection of which only its ends and its number are known.
    #[must_use]
    pub fn between(remote: SocketAddr, local: SocketAddr, id: u64) -> Self {
        Self {
            direct_remote: remote,
            remote,
            local,
            server_name: None,
            tls: false,
            application_protocols: Vec::new(),
            negotiated_protocol: None,
            peer: None,
            tls_version: None,
            tls_cipher: None,
            id,
            buckets: ConnectionBuckets::default(),
        }
    }
}

/// What a client's certificate says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// Subject alternative names of the kind URI, in the certificate's order (SPIFFE IDs are here).
    pub uri_sans: Vec<Arc<str>>,
    /// Subject alternative names of the kind DNS.
    pub dns_sans: Vec<Arc<str>>,
    /// The subject in RFC 2253 form.
    pub subject: Arc<str>,
    /// The issuer in RFC 2253 form.
    pub issuer: Arc<str>,
    /// Serial number, hex without separators.
    pub serial: Arc<str>,
    /// SHA-256 of the DER certificate, hex.
    pub sha256: Arc<str>,
    /// Whether the chain was verified against the trust bundle.
    pub validated: bool,
    /// The certificate itself as URL-encoded PEM, kept only where it is told on.
    pub certificate: Option<Arc<str>>,
    /// The chain that the client sent, in the same form, the certificate first; kept only where it is told on.
    pub chain: Option<Arc<str>>,
}

/// The HTTP version of a request or of a hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
    /// HTTP/2
    Http2,
}

impl Protocol {
    /// The name as `%PROTOCOL%` prints it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }
}

/// All that is known about one request, after [`crate::path::canonical`] and before any change by routes.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The connection it came on.
    pub connection: &'a ConnectionFacts,
    /// The method as sent.
    pub method: &'a str,
    /// Path and query as sent (after normalisation): the value of `:path`.
    pub path: &'a str,
    /// The value of `:authority` or `Host`, as sent (after port and dot stripping).
    pub authority: &'a str,
    /// `http` or `https`: what the client used or a trusted proxy said.
    pub scheme: &'a str,
    /// All other headers. A `host` header, where still present, is ignored in favour of `authority`.
    pub headers: &'a HeaderMap,
    /// HTTP version of the downstream hop.
    pub protocol: Protocol,
    /// The client as Envoy's "remote address": the peer, or what trusted `x-forwarded-for` entries say.
    pub remote: IpAddr,
    /// Wall clock when the request's head was complete.
    pub started: SystemTime,
    /// Dynamic metadata set by earlier steps (JWT claims and the like); `None` costs nothing.
    pub metadata: Option<&'a Metadata>,
}

impl<'a> Facts<'a> {
    /// The path without its query.
    #[must_use]
    pub fn path_only(&self) -> &'a str {
        self.path.split_once('?').map_or(self.path, |(path, _)| path)
    }

    /// The query without its question mark.
    #[must_use]
    pub fn query(&self) -> Option<&'a str> {
        self.path.split_once('?').map(|(_, query)| query)
    }

    /// Whether the content type says gRPC: `application/grpc` or `application/grpc+...`.
    #[must_use]
    pub fn is_grpc(&self) -> bool {
        self.headers
            .get(http::header::CONTENT_TYPE)
            .and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"))
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+')))
    }
}
