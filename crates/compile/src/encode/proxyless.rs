//! What a gRPC program without a proxy gets when it dials `xds:///HOST:PORT`.
//!
//! gRPC's client knows a part of xDS: an API listener, routes, EDS clusters balanced in turn. Transport security
//! is the program's own (its channel credentials), so clusters carry none.

use model::Service;
use model::service::Protocol;
use proto::envoy::config::cluster::v3::{Cluster, cluster::LbPolicy};
use proto::envoy::config::listener::v3::{ApiListener, Listener};
use proto::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
use proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, Rds, http_connection_manager::RouteSpecifier,
};

use super::cluster::ads;
use super::{EncodeOptions, Encoder, Snapshot, filters, resources, wire};
use crate::host;
use crate::mesh::{Mesh, WorkloadKey};

/// Everything that a proxyless workload may dial: a listener `HOST:PORT` for each HTTP port of each service it sees,
/// under the full and the short names, and what belongs to it. Empty for a workload that is not declared.
pub fn proxyless(mesh: &Mesh, key: &WorkloadKey) -> Snapshot {
    let Some(workload) = mesh.workload(key) else { return Snapshot::default() };
    let options = EncodeOptions::default();
    let mut encoder = Encoder::new(mesh, workload, &options);
    for service in mesh.visible_services(&workload.namespace) {
        for port in &service.ports {
            if port.protocol.is_http() || port.protocol == Protocol::Auto {
                encoder.dialled(service, port.number);
            }
        }
    }
    encoder.finish_proxyless()
}

fn api_listener(name: &str, routes: &str) -> Listener {
    let manager = HttpConnectionManager {
        stat_prefix: name.to_owned(),
        http_filters: vec![filters::fault(), filters::router()],
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(ads()),
            route_config_name: routes.to_owned(),
        })),
        ..HttpConnectionManager::default()
    };
    Listener {
        name: name.to_owned(),
        api_listener: Some(ApiListener { api_listener: Some(wire::any(&manager, &wire::MANAGER)) }),
        ..Listener::default()
    }
}

impl Encoder<'_> {
    fn dialled(&mut self, service: &Service, port: u16) {
        let hostname = service.hostname.as_str();
        let Some((routes, _)) = self.host_routes(hostname, Some(service), port) else { return };
        let name = format!("outbound|{port}||{hostname}");
        let configuration = RouteConfiguration {
            name: name.clone(),
            virtual_hosts: vec![VirtualHost {
                name: format!("{hostname}:{port}"),
                domains: vec!["*".to_owned()],
                routes,
                ..VirtualHost::default()
            }],
            ..RouteConfiguration::default()
        };
        self.routes.insert(name.clone(), configuration);
        let domain = &self.mesh.config().cluster_domain;
        let caller = &self.workload.namespace;
        let short = host::aliases(hostname, &service.name, &service.namespace, domain, caller);
        for dialled in std::iter::once(hostname.to_owned()).chain(short) {
            let listener = api_listener(&format!("{dialled}:{port}"), &name);
            self.listeners.insert(listener.name.clone(), listener);
        }
    }

    fn finish_proxyless(mut self) -> Snapshot {
        let mut endpoints = std::collections::BTreeMap::new();
        for target in std::mem::take(&mut self.wanted) {
            let Some((cluster, Some(assignment))) = self.service_cluster(&target) else { continue };
            endpoints.insert(cluster.name.clone(), assignment);
            let bare = Cluster {
                name: cluster.name.clone(),
                cluster_discovery_type: cluster.cluster_discovery_type,
                eds_cluster_config: cluster.eds_cluster_config,
                connect_timeout: cluster.connect_timeout,
                circuit_breakers: cluster.circuit_breakers,
                outlier_detection: cluster.outlier_detection,
                metadata: cluster.metadata,
                lb_policy: LbPolicy::RoundRobin.into(),
                ..Cluster::default()
            };
            self.clusters.insert(bare.name.clone(), bare);
        }
        Snapshot {
            listeners: resources(self.listeners, &wire::LISTENER),
            routes: resources(self.routes, &wire::ROUTES),
            clusters: resources(self.clusters, &wire::CLUSTER),
            endpoints: resources(endpoints, &wire::ASSIGNMENT),
        }
    }
}
