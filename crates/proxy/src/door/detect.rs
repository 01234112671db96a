//! Listener filters: what a connection tells before a filter chain is chosen.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use engine::listener::{Listener, ListenerFilterKind};
use tokio::time::timeout;

use super::{hello, preface, proxy_protocol};
use crate::net::stream::{Raw, Socket};
use crate::net::{canonical, listen};

/// What the listener filters found.
#[derive(Debug, Default)]
pub struct Found {
    /// The destination before the kernel redirected the connection, where it was.
    pub original: Option<SocketAddr>,
    /// Source and destination that a trusted PROXY header names.
    pub proxied: Option<proxy_protocol::Proxied>,
    /// The connection begins with a TLS ClientHello.
    pub tls: bool,
    /// The server name in it, lower case.
    pub server_name: Option<Arc<str>>,
    /// Protocols offered by ALPN, or what the HTTP inspector saw.
    pub application_protocols: Vec<Arc<str>>,
    /// The client said too little in time; the connection goes on without knowing more.
    pub timed_out: bool,
}

/// Why a connection is closed before any filter chain saw it.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The filters needed more bytes than came in time.
    #[error("no decision within listener_filters_timeout")]
    Timeout,
    /// The PROXY header is missing or broken.
    #[error("PROXY protocol: {0}")]
    ProxyProtocol(proxy_protocol::Broken),
    /// The client left while its first bytes were awaited.
    #[error("closed by the client before its protocol was known")]
    Closed,
    /// The socket broke.
    #[error("reading the first bytes: {0}")]
    Io(#[from] io::Error),
}

/// Runs the listener's filters in order, within `listener_filters_timeout`.
///
/// # Errors
/// [`Refusal`], when the connection must be closed.
pub async fn detect(raw: &mut Raw, listener: &Listener, found: &mut Found) -> Result<(), Refusal> {
    if listener.listener_filters.is_empty() && !listener.use_original_dst {
        return Ok(());
    }
    if listener.use_original_dst {
        restore_destination(raw, found);
    }
    let Some(limit) = listener.listener_filters_timeout else { return run_filters(raw, listener, found).await };
    if let Ok(result) = timeout(limit, run_filters(raw, listener, found)).await {
        return result;
    }
    found.timed_out = true;
    if listener.continue_on_timeout { Ok(()) } else { Err(Refusal::Timeout) }
}

async fn run_filters(raw: &mut Raw, listener: &Listener, found: &mut Found) -> Result<(), Refusal> {
    for filter in &listener.listener_filters {
        let port = found.original.or_else(|| raw.local()).map_or(0, |address| address.port());
        if filter.disabled.holds(port) {
            continue;
        }
        match filter.kind {
            ListenerFilterKind::OriginalDst => restore_destination(raw, found),
            ListenerFilterKind::ProxyProtocol { allow_without } => read_proxy_header(raw, found, allow_without).await?,
            ListenerFilterKind::TlsInspector => inspect_tls(raw, found).await?,
            ListenerFilterKind::HttpInspector => inspect_http(raw, found).await?,
        }
    }
    Ok(())
}

fn restore_destination(raw: &Raw, found: &mut Found) {
    if let Socket::Tcp(tcp) = raw.socket() {
        found.original = listen::original_destination(tcp).or(found.original);
    }
}

async fn read_proxy_header(raw: &mut Raw, found: &mut Found, allow_without: bool) -> Result<(), Refusal> {
    loop {
        match proxy_protocol::read(raw.ahead()) {
            proxy_protocol::Header::Whole { length, proxied } => {
                raw.discard(length);
                found.proxied = proxied.map(|proxied| proxy_protocol::Proxied {
                    source: canonical(proxied.source),
                    destination: canonical(proxied.destination),
                });
                return Ok(());
            }
            proxy_protocol::Header::Absent if allow_without => return Ok(()),
            proxy_protocol::Header::Absent => return Err(Refusal::ProxyProtocol(proxy_protocol::Broken::Missing)),
            proxy_protocol::Header::Broken(broken) => return Err(Refusal::ProxyProtocol(broken)),
            proxy_protocol::Header::More => {
                if raw.read_ahead().await? == 0 {
                    return Err(Refusal::Closed);
                }
            }
        }
    }
}

async fn inspect_tls(raw: &mut Raw, found: &mut Found) -> Result<(), Refusal> {
    loop {
        match hello::look(raw.ahead()) {
            hello::Look::NotTls => return Ok(()),
            hello::Look::Tls(hello) => {
                found.tls = true;
                found.server_name = hello.sni.map(Arc::from);
                found.application_protocols = hello.alpn.into_iter().map(Arc::from).collect();
                return Ok(());
            }
            hello::Look::More => {
                if raw.read_ahead().await? == 0 {
                    return if raw.ahead().is_empty() { Err(Refusal::Closed) } else { Ok(()) };
                }
            }
        }
    }
}

async fn inspect_http(raw: &mut Raw, found: &mut Found) -> Result<(), Refusal> {
    if found.tls {
        return Ok(());
    }
    loop {
        match preface::guess(raw.ahead()) {
            preface::Guess::More => {
                if raw.read_ahead().await? == 0 {
                    return if raw.ahead().is_empty() { Err(Refusal::Closed) } else { Ok(()) };
                }
            }
            guess => {
                found.application_protocols.extend(guess.application_protocol().map(Arc::from));
                return Ok(());
            }
        }
    }
}
