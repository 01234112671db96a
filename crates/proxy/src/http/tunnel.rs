//! Upgraded connections: after `101 Switching Protocols` both sides are raw bytes.

use std::time::Duration;

use bytes::Bytes;
use engine::reply::Flags;
use http::{Response, StatusCode, response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::attempt::Clock;
use super::exchange::Exchange;
use super::respond::DownBody;
use crate::net::relay::{End, Moved, relay};

/// Both ends of an upgrade that was agreed.
pub struct Tunnel {
    client: OnUpgrade,
    server: OnUpgrade,
}

/// The tunnel that this answer begins, if it does.
pub fn begin(parts: &mut response::Parts, client: Option<OnUpgrade>) -> Option<Tunnel> {
    if parts.status != StatusCode::SWITCHING_PROTOCOLS {
        return None;
    }
    let server = parts.extensions.remove::<OnUpgrade>()?;
    Some(Tunnel { client: client?, server })
}

/// Answers the client and carries bytes until the tunnel ends; the exchange is reported then.
pub fn run(exchange: Box<Exchange>, parts: response::Parts, tunnel: Tunnel, clock: &Clock) -> Response<DownBody> {
    let idle = clock.idle;
    tokio::task::spawn_local(carry(exchange, tunnel, idle));
    Response::from_parts(parts, DownBody::local(Bytes::new()))
}

async fn carry(mut exchange: Box<Exchange>, tunnel: Tunnel, idle: Option<Duration>) {
    let Ok((client, server)) = tokio::try_join!(tunnel.client, tunnel.server) else { return };
    let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
    let moved = Moved::default();
    let end = relay(&mut client, &mut server, idle, &moved).await;
    exchange.record.bytes_received += moved.received.get();
    exchange.record.bytes_sent += moved.sent.get();
    exchange.record.complete = true;
    if let End::Idle = end {
        exchange.record.flags = exchange.record.flags.with(Flags::STREAM_IDLE_TIMEOUT);
    }
}
