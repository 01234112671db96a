//! Limits of connections: of a listener, and of a chain's filter.

use std::sync::Arc;
use std::time::Duration;

use engine::listener::ConnectionLimit;
use tokio::io::AsyncReadExt;

use crate::net::stream::Stream;

/// Counts a connection while it lives.
#[derive(Debug)]
pub struct Counted(Arc<ConnectionLimit>);

impl Counted {
    /// Counts one more; true if it is within the limit.
    pub fn begin(limit: &Arc<ConnectionLimit>) -> (Self, bool) {
        let within = limit.enter();
        (Self(Arc::clone(limit)), within)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// Holds a connection that is refused, so that who tries again and again is slowed down; it ends early with the client.
pub async fn hold(mut stream: Stream, time: Duration) {
    let mut thrown_away = [0; 1024];
    let gone = async { while matches!(stream.read(&mut thrown_away).await, Ok(1..)) {} };
    // Nothing is left to do either way.
    let _ = tokio::time::timeout(time, gone).await;
}
