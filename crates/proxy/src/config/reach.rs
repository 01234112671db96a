//! Reaching the control plane's and the agent's servers through their clusters.

use std::io;
use std::sync::Arc;

use engine::Discovery;

use crate::net::stream::Stream;
use crate::shared::Shared;
use crate::upstream::reach::connect_endpoint;

/// A connection to an endpoint of a cluster, by its own transport.
///
/// # Errors
/// The cluster is unknown, has no endpoint, or cannot be reached.
pub async fn stream(shared: Arc<Shared>, cluster: Arc<str>) -> io::Result<Stream> {
    let plan = shared.plan.load_full();
    let cluster = plan.cluster(&cluster).ok_or_else(|| other(format!("there is no cluster `{cluster}`")))?;
    let mut last = other(match cluster.config.discovery {
        Discovery::StrictDns | Discovery::LogicalDns => "its name is not resolved yet".to_owned(),
        _ => "it has no endpoint".to_owned(),
    });
    for endpoint in cluster.endpoints.iter() {
        match connect_endpoint(&shared, cluster, endpoint).await {
            Ok((stream, _)) => return Ok(stream),
            Err(failure) => {
                let said = failure.transport.as_deref().unwrap_or("timeout");
                last = other(format!("{}: {said}", endpoint.address));
            }
        }
    }
    Err(last)
}

fn other(text: String) -> io::Error {
    io::Error::other(text)
}
