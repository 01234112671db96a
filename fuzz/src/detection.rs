//! The first bytes of a connection.

use proxy::door::{hello, preface as first, proxy_protocol as header};
use proxy::net::frames::Frames;

/// A TLS ClientHello. What was decided on less is not decided otherwise on more.
pub(crate) fn hello(data: &[u8]) {
    let whole = hello::look(data);
    let cut = data.len() / 2;
    match hello::look(data.get(..cut).unwrap_or_default()) {
        hello::Look::More => {}
        early => assert_eq!(early, whole, "cut at {cut}"),
    }
    if let hello::Look::Tls(hello) = whole {
        assert!(hello.sni.is_none_or(|name| !name.bytes().any(|byte| byte.is_ascii_uppercase())));
    }
}

/// HTTP/1, HTTP/2 or neither.
pub(crate) fn preface(data: &[u8]) {
    let _ = first::guess(data);
    for cut in 0..data.len().min(32) {
        if let Some(early) = first::is_h2(data.get(..cut).unwrap_or_default()) {
            assert_eq!(first::is_h2(data), Some(early), "cut at {cut}");
        }
    }
}

/// A PROXY header, of either version.
pub(crate) fn proxy_protocol(data: &[u8]) {
    match header::read(data) {
        header::Header::Whole { length, .. } => assert!((1..=data.len()).contains(&length), "{length}"),
        header::Header::More => assert!(data.len() < 4096, "waits for ever"),
        header::Header::Absent | header::Header::Broken(_) => {}
    }
}

/// HTTP/2 frames, in pieces.
pub(crate) fn frames(data: &[u8]) {
    let Some((size, data)) = data.split_first() else { return };
    for mut frames in [Frames::of_client(), Frames::of_server()] {
        for chunk in data.chunks(usize::from(*size).max(1)) {
            frames.went(chunk.len());
            if frames.came(chunk).is_err() {
                break;
            }
        }
    }
}
