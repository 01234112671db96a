//! Endpoints.

use std::sync::Arc;

use hashbrown::HashMap;
use proto::envoy::config::core::v3 as core;
use proto::envoy::config::endpoint::v3 as xds;

use super::Context;
use super::value::{address, fraction};
use crate::endpoint::{Endpoint, EndpointGroup, EndpointSet, EndpointState, HealthStatus, Locality};
use crate::listener::Address;
use crate::metadata::Metadata;

/// Envoy's limit; more than this is surely a mistake.
const MAX_PRIORITY: u32 = 128;

/// Builds a set of endpoints. `known`: running state to go on with, by address.
pub(crate) fn endpoints(
    cx: &mut Context<'_>,
    message: &xds::ClusterLoadAssignment,
    known: &HashMap<Address, Arc<EndpointState>>,
) -> Option<EndpointSet> {
    let policy = message.policy.clone().unwrap_or_default();
    let mut metadata = Vec::new();
    let groups = cx.list("endpoints", &message.endpoints, |cx, group| endpoint_group(cx, group, known, &mut metadata));
    let overprovisioning = super::number(policy.overprovisioning_factor.as_ref(), 140);
    if overprovisioning == 0 {
        cx.field("policy.overprovisioning_factor", |cx| cx.fault("must be at least 1"));
    }
    let drops = cx.field("policy", |cx| {
        cx.list("drop_overloads", &policy.drop_overloads, |cx, drop| {
            let share = cx.required("drop_percentage", drop.drop_percentage.as_ref(), fraction)?;
            Some((cx.needed("category", &drop.category)?, share))
        })
    });
    Some(EndpointSet {
        groups,
        overprovisioning,
        weighted_priority_health: policy.weighted_priority_health,
        drops,
        version: cx.hash,
    })
}

fn endpoint_group(
    cx: &mut Context<'_>,
    message: &xds::LocalityLbEndpoints,
    known: &HashMap<Address, Arc<EndpointState>>,
    shared: &mut Vec<Arc<Metadata>>,
) -> Option<EndpointGroup> {
    if message.priority > MAX_PRIORITY {
        return cx.field("priority", |cx| cx.refuse(format!("must be at most {MAX_PRIORITY}")));
    }
    if message.lb_config.is_some() {
        return cx.refuse("only lb_endpoints is implemented");
    }
    let locality = Arc::new(message.locality.as_ref().map_or_else(Locality::default, |place| locality(cx, place)));
    let endpoints = cx.list("lb_endpoints", &message.lb_endpoints, |cx, message| {
        let mut endpoint = endpoint(cx, message, known, shared)?;
        endpoint.locality = locality.clone();
        Some(endpoint)
    });
    let with_priority = endpoints.into_iter().map(|mut endpoint| {
        endpoint.priority = message.priority;
        Arc::new(endpoint)
    });
    let mut endpoints: Vec<_> = with_priority.collect();
    // Collected in the place of the endpoints themselves, which is twelve times too large for pointers to them.
    endpoints.shrink_to_fit();
    Some(EndpointGroup {
        endpoints,
        weight: message.load_balancing_weight.as_ref().map(|weight| weight.value),
        priority: message.priority,
        locality,
    })
}

fn locality(cx: &mut Context<'_>, message: &core::Locality) -> Locality {
    Locality { region: cx.share(&message.region), zone: cx.share(&message.zone), sub_zone: cx.share(&message.sub_zone) }
}

fn endpoint(
    cx: &mut Context<'_>,
    message: &xds::LbEndpoint,
    known: &HashMap<Address, Arc<EndpointState>>,
    shared: &mut Vec<Arc<Metadata>>,
) -> Option<Endpoint> {
    let Some(xds::lb_endpoint::HostIdentifier::Endpoint(host)) = &message.host_identifier else {
        return cx.refuse("endpoint is required");
    };
    let address = cx.field("endpoint", |cx| {
        cx.required("address", host.address.as_ref(), |cx, message| address(cx, message, true))
    })?;
    let weight = super::number(message.load_balancing_weight.as_ref(), 1);
    if weight == 0 {
        return cx.field("load_balancing_weight", |cx| cx.refuse("must be at least 1"));
    }
    // Endpoints of a set mostly carry the same labels: one copy serves them.
    let own = Metadata::from_proto(message.metadata.as_ref());
    let metadata = match shared.iter().rev().take(8).find(|known| ***known == own) {
        Some(known) => known.clone(),
        None => {
            let new = Arc::new(own);
            shared.push(new.clone());
            new
        }
    };
    Some(Endpoint {
        hostname: cx.share(&host.hostname),
        weight,
        health: match message.health_status {
            2 | 4 => HealthStatus::Unhealthy,
            3 => HealthStatus::Draining,
            5 => HealthStatus::Degraded,
            _ => HealthStatus::Healthy,
        },
        metadata,
        locality: Arc::default(),
        priority: 0,
        check: cx.field("endpoint", |cx| {
            cx.optional("health_check_config", host.health_check_config.as_ref(), super::health::endpoint)
        }),
        state: known.get(&address).cloned().unwrap_or_default(),
        address,
    })
}
