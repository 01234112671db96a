//! Upgraded connections: after `101 Switching Protocols` both sides are raw bytes.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use engine::reply::Flags;
use http::{Response, StatusCode, response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;

use super::attempt::Clock;
use super::exchange::Exchange;
use super::respond::DownBody;
use crate::net::relay::{End, Moved, relay};
use crate::net::stream::{Ahead, Stream};
use crate::upstream::reach::{Via, Way};

/// The client's end of a tunnel to come.
#[derive(Debug)]
pub enum Side {
    /// An HTTP/2 stream.
    Http2(OnUpgrade),
    /// An HTTP/1 connection, handed over when its answer is written; with what was read of it already.
    Coming(oneshot::Receiver<(Stream, BytesMut)>),
}

/// Both ends of an upgrade that was agreed.
pub struct Tunnel {
    client: Side,
    server: Ahead,
}

/// The tunnel that this answer begins, if it does.
pub fn begin(parts: &mut response::Parts, way: &Way, client: Option<Side>) -> Option<Tunnel> {
    if parts.status != StatusCode::SWITCHING_PROTOCOLS {
        return None;
    }
    let Via::H1(h1) = &way.via else { return None };
    let client = client?;
    let (stream, ahead) = h1.client.take_stream()?;
    Some(Tunnel { client, server: Ahead::of(stream, ahead) })
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
    tokio::task::spawn_local(async move {
        carry(exchange, tunnel, idle).await;
        // Until here the connection counts as open.
        drop(way);
    });
    Response::from_parts(parts, DownBody::local(Bytes::new()))
}

async fn carry(mut exchange: Box<Exchange>, tunnel: Tunnel, idle: Option<Duration>) {
    let mut server = tunnel.server;
    let moved = Moved::default();
    let end = match tunnel.client {
        Side::Http2(client) => {
            let Ok(client) = client.await else { return };
            relay(&mut TokioIo::new(client), &mut server, idle, &moved).await
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
