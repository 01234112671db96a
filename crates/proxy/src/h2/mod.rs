//! HTTP/2 over the `h2` crate, which has the frames, the header tables and the windows; requests, bodies, interim answers and
//! tunnels are passed on here, in the task of the client's stream (`docs/decisions/http2.md`).

pub mod body;
pub mod client;
pub mod server;
pub mod tunnel;

mod alive;
mod pump;
#[cfg(test)]
mod tests;

use http::{HeaderMap, HeaderName, header};

/// Headers that HTTP/2 has no place for, with `te` but for one value (RFC 9113 section 8.2.2).
static CONNECTION: [HeaderName; 5] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// What one stream may hold of what the peer does not take.
const SEND_BUFFER: usize = 256 << 10;

/// Takes them away. Most messages have none: one look at each name that is there, instead of one for each that might be.
fn fit(headers: &mut HeaderMap, te: bool) {
    if !headers.keys().any(|name| *name == header::TE || CONNECTION.contains(name)) {
        return;
    }
    for name in &CONNECTION {
        headers.remove(name);
    }
    if headers.get(header::TE).is_some_and(|value| !te || value != "trailers") {
        headers.remove(header::TE);
    }
}
