//! Upgraded connections, and those that CONNECT asked for: once the server has agreed, both sides are raw bytes.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use engine::Forward;
use engine::circuit;
use engine::reply::Flags;
use engine::routes::Priority;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header, response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use super::arrive::CONNECT;
use super::attempt::{Clock, Limits, limited};
use super::body::Incoming;
use super::exchange::Exchange;
use super::respond::{DownBody, via_upstream};
use crate::h2;
use crate::net::relay::{End, Moved, relay};
use crate::net::stream::{Ahead, Stream};
use crate::upstream::failure::{Failure, Kind};
use crate::upstream::reach::{Via, Way, connect_endpoint};

/// The client's end of a tunnel to come.
#[derive(Debug)]
pub enum Side {
    /// An HTTP/2 stream, handed over when its answer is written.
    Http2(oneshot::Receiver<h2::tunnel::Tunnel>),
    /// An HTTP/1 connection, handed over when its answer is written; with what was read of it already.
    Coming(oneshot::Receiver<(Stream, BytesMut)>),
}

/// The server's end.
enum Server {
    /// A connection, and what was read of it already.
    Bytes(Ahead),
    /// An HTTP/2 stream.
    Http2(h2::tunnel::Tunnel),
}

/// Both ends of an upgrade that was agreed.
pub struct Tunnel {
    client: Side,
    server: Server,
}

/// The tunnel that this answer begins, if it does: `101` to an upgrade, any success to CONNECT, and to extended CONNECT
/// (RFC 8441), which is what an upgrade is in HTTP/2. The answer becomes what the client's protocol has for it. `client` is the
/// client's side and the upgrade's name; `connect`: the client asked by CONNECT.
pub fn begin(
    parts: &mut response::Parts,
    body: &mut Incoming,
    way: &Way,
    client: Option<(Side, String)>,
    connect: bool,
) -> Option<Tunnel> {
    let (client, name) = client?;
    let switched = parts.status == StatusCode::SWITCHING_PROTOCOLS;
    // To an upgrade of HTTP/1 a success is an answer like any other: nothing was agreed.
    let agreed = match &way.via {
        Via::H1(_) => switched || (name == CONNECT && parts.status.is_success()),
        Via::H2(_) => parts.status.is_success(),
    };
    if !agreed {
        return None;
    }
    let server = match &way.via {
        Via::H1(h1) => h1.client.take_stream().map(|(stream, ahead)| Server::Bytes(Ahead::of(stream, ahead)))?,
        Via::H2(_) => body.take_tunnel().map(Server::Http2)?,
    };
    if connect && switched {
        parts.status = StatusCode::OK;
    } else if !connect && !switched {
        parts.status = StatusCode::SWITCHING_PROTOCOLS;
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(header::UPGRADE, HeaderValue::try_from(name).ok()?);
    }
    Some(Tunnel { client, server })
}

/// Answers the client and carries bytes until the tunnel ends; the exchange is reported then.
pub fn run(
    exchange: Box<Exchange>,
    parts: response::Parts,
    tunnel: Tunnel,
    way: Way,
    clock: &Clock,
) -> Response<DownBody> {
    let idle = clock.idle;
    let Tunnel { client, server } = tunnel;
    tokio::task::spawn_local(async move {
        match server {
            Server::Bytes(server) => carry(exchange, client, server, idle).await,
            Server::Http2(server) => carry(exchange, client, server, idle).await,
        }
        // Until here the connection counts as open.
        drop(way);
    });
    Response::from_parts(parts, DownBody::local(Bytes::new()))
}

impl Exchange {
    /// CONNECT ends here: an endpoint of the cluster is connected, and what follows the answer goes there as bytes.
    pub(super) async fn terminate(mut self: Box<Self>, forward: &Forward, client: Option<Side>) -> Response<DownBody> {
        self.record.upstream.cluster = Some(std::sync::Arc::clone(&forward.cluster));
        let (server, client) = match (self.connect(forward).await, client) {
            (Ok(server), Some(client)) => (server, client),
            (Err(failure), _) => return self.fail(&failure),
            (Ok(_), None) => return self.fail(&Kind::Protocol.into()),
        };
        let mut headers = HeaderMap::new();
        self.decorate(&mut headers);
        self.record.status = Some(StatusCode::OK);
        self.record.details = Some(via_upstream());
        let idle = forward.idle_timeout;
        tokio::task::spawn_local(carry(self, client, server, idle));
        let mut response = Response::new(DownBody::local(Bytes::new()));
        *response.headers_mut() = headers;
        response
    }

    async fn connect(&mut self, forward: &Forward) -> Result<Stream, Failure> {
        let clock = self.clock(forward);
        let priority = self.record.matched.as_ref().and_then(|m| m.forward()).map_or(Priority::Default, |a| a.priority);
        let cluster = &forward.cluster;
        let now = self.shared.worker.shared.at(self.now);
        self.slot = circuit::request(&cluster.state, cluster.config.limits(priority), priority, now);
        if self.slot.is_none() {
            return Err(Kind::Overflow.into());
        }
        let endpoint = self.pick(forward, None, &[]).ok_or(Kind::NoHealthyUpstream)?;
        self.record.upstream.attempts = 1;
        self.occupy(&endpoint);
        let worker = self.shared.worker.clone();
        let connecting = connect_endpoint(&worker.shared, cluster, &endpoint);
        let (stream, link) = limited(connecting, Limits::NONE, &clock).await??;
        self.note_connection(&link);
        Ok(stream)
    }
}

async fn carry<S>(mut exchange: Box<Exchange>, client: Side, mut server: S, idle: Option<Duration>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let moved = Moved::default();
    let end = match client {
        Side::Http2(client) => {
            let Ok(mut client) = client.await else { return };
            relay(&mut client, &mut server, idle, &moved).await
        }
        Side::Coming(client) => {
            let Ok((stream, ahead)) = client.await else { return };
            relay(&mut Ahead::of(stream, ahead), &mut server, idle, &moved).await
        }
    };
    exchange.record.bytes_received += moved.received.get();
    exchange.record.bytes_sent += moved.sent.get();
    exchange.record.complete = true;
    if let End::Idle = end {
        exchange.record.flags = exchange.record.flags.with(Flags::STREAM_IDLE_TIMEOUT);
    }
}
