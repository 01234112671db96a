//! Reaching the control plane's and the agent's servers through their clusters.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use engine::{Cluster, Discovery};
use tokio::time::{Instant, sleep};

use crate::net::stream::Stream;
use crate::shared::Shared;
use crate::upstream::reach::connect_endpoint;

/// A cluster that is warming (its secrets are on their way from the agent) is waited for so long, and looked at so often.
const WARMING: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(2);

/// A connection to an endpoint of a cluster, by its own transport.
///
/// # Errors
/// The cluster is unknown, has no endpoint, or cannot be reached.
pub async fn stream(shared: Arc<Shared>, cluster: Arc<str>) -> io::Result<Stream> {
    let cluster = warm(&shared, &cluster).await;
    let cluster =
        cluster.ok_or_else(|| other("its cluster is unknown, or still waits for secrets or names".to_owned()))?;
    let mut last = other(match cluster.config.discovery {
        Discovery::StrictDns | Discovery::LogicalDns => "its name is not resolved yet".to_owned(),
        _ => "it has no endpoint".to_owned(),
    });
    for endpoint in cluster.endpoints.iter() {
        match connect_endpoint(&shared, &cluster, endpoint).await {
            Ok((stream, _)) => return Ok(stream),
            Err(failure) => {
                let said = failure.transport.as_deref().unwrap_or("timeout");
                last = other(format!("{}: {said}", endpoint.address));
            }
        }
    }
    Err(last)
}

async fn warm(shared: &Shared, name: &str) -> Option<Arc<Cluster>> {
    let end = Instant::now() + WARMING;
    loop {
        match shared.plan.load().cluster(name) {
            None if Instant::now() < end => {}
            found => return found.cloned(),
        }
        sleep(LOOK).await;
    }
}

fn other(text: String) -> io::Error {
    io::Error::other(text)
}
