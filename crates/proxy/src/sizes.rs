//! What a connection holds while nothing happens on it: the sizes of the futures that it waits in. They are pinned, because
//! one more local variable across an `await` is paid by every connection there is.

use std::future::{Future, Ready};

fn size<A, B, C, F: Future>(_: impl FnOnce(A, B, C) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn an_idle_connection_is_small() {
    let connection = size(crate::door::connection::serve);
    assert!(connection <= 128, "{connection} bytes for a connection");
    let limits = size(crate::http::serve::run_h1::<Ready<Result<(), crate::h1::Fault>>>);
    assert!(limits <= 576, "{limits} bytes for the limits of a connection");
    let http1 = size(crate::h1::server::serve);
    assert!(http1 <= 128, "{http1} bytes for an HTTP/1 connection");
}

#[test]
fn an_exchange_is_not_large() {
    let exchange = size(crate::http::exchange::exchange);
    assert!(exchange <= 8 * 1024, "{exchange} bytes for an exchange");
}
