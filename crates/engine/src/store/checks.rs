//! What a resource must be beside others: called what it is called, and naming only what there is.

use std::sync::Arc;

use hashbrown::HashMap;

use super::ClusterEntry;
use crate::build::Context;
use crate::cluster::{ClusterConfig, Discovery};
use crate::endpoint::EndpointSet;
use crate::listener::Address;
use crate::routes::{ClusterChoice, RouteAction, RouteTable};

/// A resource goes by the name that it gives itself.
pub(super) fn check_name(cx: &mut Context<'_>, wanted: &str, found: &str) {
    if wanted != found {
        cx.fault(format!("the resource calls itself {found:?}"));
    }
}

/// Only DNS clusters may have names for addresses.
pub(super) fn check_names(cx: &mut Context<'_>, config: &ClusterConfig, inline: &EndpointSet) {
    if matches!(config.discovery, Discovery::StrictDns | Discovery::LogicalDns) {
        return;
    }
    for endpoint in inline.iter() {
        if let Address::Name { host, .. } = &endpoint.address {
            cx.field("load_assignment", |cx| {
                cx.fault(format!("{host:?} is not an IP address; a name needs the type STRICT_DNS or LOGICAL_DNS"));
            });
        }
    }
}

/// Where a table asks for it, every cluster it names must exist.
pub(super) fn check_clusters(cx: &mut Context<'_>, table: &RouteTable, known: &HashMap<Arc<str>, ClusterEntry>) {
    if !table.validate_clusters {
        return;
    }
    for (at, host) in table.virtual_hosts.iter().enumerate() {
        for (place, route) in host.routes.iter().enumerate() {
            let RouteAction::Forward(action) = &route.action else { continue };
            let names: Vec<&Arc<str>> = match &action.clusters {
                ClusterChoice::One(name) => vec![name],
                ClusterChoice::Header(_) => Vec::new(),
                ClusterChoice::Weighted(several) => {
                    several.clusters.iter().filter_map(|cluster| cluster.cluster.as_ref().ok()).collect()
                }
            };
            for name in names.into_iter().filter(|name| !known.contains_key(*name)) {
                cx.item("virtual_hosts", at, |cx| {
                    cx.item("routes", place, |cx| {
                        cx.fault(format!("there is no cluster {name:?} (validate_clusters: false allows this)"));
                    });
                });
            }
        }
    }
}
