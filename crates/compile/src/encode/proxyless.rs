//! What a gRPC program without a proxy gets when it dials `xds:///HOST:PORT`.
//!
//! gRPC's client knows a part of xDS: an API listener, routes, EDS clusters balanced in turn. Transport security
//! is the program's own (its channel credentials), so clusters carry none.

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

/// The resources for one name that a proxyless workload dials: `HOST:PORT`, the host full or short. `None` when
/// the workload does not see such a service and port. The listener has the name as it was given.
pub fn proxyless(mesh: &Mesh, key: &WorkloadKey, target: &str) -> Option<Snapshot> {
    let workload = mesh.workload(key)?;
    let (written, port) = target.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    let options = EncodeOptions::default();
    let mut encoder = Encoder::new(mesh, workload, &options);
    let hostname = dialled(mesh, written, &workload.namespace)?;
    let service =
        encoder.service(&hostname).filter(|service| service.ports.iter().any(|known| known.number == port))?;
    let routes = match mesh.table(encoder.caller(), &hostname) {
        Some(table) => {
            let rules = mesh.http_rules(table, encoder.caller(), port);
            if rules.is_empty() { vec![encoder.default_route(service, port)] } else { encoder.routes(&rules, port) }
        }
        None => match mesh.split(&hostname) {
            Some(split) => vec![encoder.split_route(split, port)],
            None => vec![encoder.default_route(service, port)],
        },
    };
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
    encoder.routes.insert(name.clone(), configuration);
    encoder.listeners.insert(target.to_owned(), api_listener(target, &name));
    Some(encoder.finish_proxyless())
}

/// The full host of a name as gRPC programs write it: short, with the namespace, or full.
fn dialled(mesh: &Mesh, written: &str, namespace: &str) -> Option<String> {
    let full = mesh.resolve_host(written, namespace);
    if mesh.service(&full, namespace).is_some() {
        return Some(full);
    }
    let domain = &mesh.config().cluster_domain;
    let known = mesh.visible_services(namespace).find(|service| {
        let names = host::aliases(&service.hostname, &service.name, &service.namespace, domain, namespace);
        names.contains(&full)
    });
    known.map(|service| service.hostname.clone())
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
