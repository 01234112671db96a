//! The plan: everything the data plane needs, immutable, replaced as a whole and shared in its parts.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hashbrown::HashMap;

use crate::cluster::Cluster;
use crate::discovered::FilterConfig;
use crate::http_manager::{HttpManager, RouteSource};
use crate::jwt::RemoteKeys;
use crate::listener::{Address, Listener};
use crate::routes::RouteTable;
use crate::tls::Secret;

/// Everything the data plane needs at one moment.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Counts up with every change.
    pub generation: u64,
    pub(crate) listeners: HashMap<Arc<str>, Arc<Listener>>,
    pub(crate) by_address: HashMap<SocketAddr, Arc<Listener>>,
    pub(crate) clusters: HashMap<Arc<str>, Arc<Cluster>>,
    pub(crate) routes: HashMap<Arc<str>, Arc<RouteTable>>,
    pub(crate) filters: HashMap<Arc<str>, Arc<FilterConfig>>,
    pub(crate) secrets: HashMap<Arc<str>, Arc<Secret>>,
    pub(crate) remote_keys: Arc<[Arc<RemoteKeys>]>,
}

impl Plan {
    /// All listeners, in no order.
    pub fn listeners(&self) -> impl Iterator<Item = &Arc<Listener>> {
        self.listeners.values()
    }

    /// A listener by name.
    #[must_use]
    pub fn listener(&self, name: &str) -> Option<&Arc<Listener>> {
        self.listeners.get(name)
    }

    /// The listener that an original destination belongs to: that very address, else the wildcard address with its
    /// port. Never one with `use_original_dst` itself.
    #[must_use]
    pub fn listener_for(&self, destination: SocketAddr) -> Option<&Arc<Listener>> {
        let port = destination.port();
        let ip = destination.ip().to_canonical();
        let any_v4 = IpAddr::from([0_u8; 4]);
        let any_v6 = IpAddr::from([0_u16; 8]);
        let wildcards = if ip.is_ipv4() { [any_v4, any_v6] } else { [any_v6, any_v4] };
        let find = |ip: IpAddr| self.by_address.get(&SocketAddr::new(ip, port));
        find(ip).or_else(|| wildcards.into_iter().find_map(find))
    }

    /// All clusters, in no order.
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.clusters.values()
    }

    /// A cluster by name.
    #[must_use]
    pub fn cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.clusters.get(name)
    }

    /// All route tables from RDS, in no order.
    pub fn route_tables(&self) -> impl Iterator<Item = &Arc<RouteTable>> {
        self.routes.values()
    }

    /// A route table from RDS by name.
    #[must_use]
    pub fn route_table(&self, name: &str) -> Option<&Arc<RouteTable>> {
        self.routes.get(name)
    }

    /// The route table of an HTTP manager.
    #[must_use]
    pub fn routes_of<'a>(&'a self, manager: &'a HttpManager) -> Option<&'a Arc<RouteTable>> {
        match &manager.routes {
            RouteSource::Inline(table) => Some(table),
            RouteSource::Named(name) => self.routes.get(name),
        }
    }

    /// A secret by name.
    #[must_use]
    pub fn secret(&self, name: &str) -> Option<&Arc<Secret>> {
        self.secrets.get(name)
    }

    /// Key sets that are fetched, in no order.
    #[must_use]
    pub fn remote_keys(&self) -> &Arc<[Arc<RemoteKeys>]> {
        &self.remote_keys
    }

    pub(crate) fn index_addresses(&mut self) {
        self.by_address.clear();
        for listener in self.listeners.values().filter(|listener| !listener.use_original_dst) {
            let addresses = std::iter::once(&listener.address).chain(&listener.additional_addresses);
            for address in addresses.filter_map(Address::socket) {
                let address = SocketAddr::new(address.ip().to_canonical(), address.port());
                self.by_address.insert(address, listener.clone());
            }
        }
    }
}
