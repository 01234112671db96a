//! Endpoints that no configuration lists: the destination that the client meant.

use std::net::SocketAddr;
use std::sync::Arc;

use engine::endpoint::{EndpointState, HealthStatus};
use engine::{Address, Endpoint, Locality};

/// An endpoint of the moment for an address, with another port where the cluster says so.
pub fn endpoint(address: SocketAddr, port: Option<u16>) -> Arc<Endpoint> {
    let address = SocketAddr::new(address.ip(), port.unwrap_or_else(|| address.port()));
    Arc::new(Endpoint {
        address: Address::Socket(address),
        hostname: Arc::from(""),
        weight: 1,
        health: HealthStatus::Healthy,
        metadata: Arc::default(),
        locality: Arc::new(Locality::default()),
        priority: 0,
        check: None,
        state: Arc::new(EndpointState::default()),
    })
}
