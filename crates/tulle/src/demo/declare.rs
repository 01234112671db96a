//! The shop as declarations, and the policies that the demo's steps put beside them.

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use super::cast::{DOMAIN, NAMESPACE, Net, Part, SERVICES, Service, TRUST_DOMAIN, explicit};
use super::place::Place;

/// Mesh settings, services and workloads, as YAML.
pub(crate) fn shop(place: &Place, net: Net, block: u8) -> String {
    let mut documents = vec![mesh()];
    documents.extend((1..).zip(&SERVICES).map(|(number, item)| service(number, item)));
    documents.extend(Part::numbered().map(|(number, part)| workload(number, part, place, net, block)));
    documents.iter().map(proto::json::value_to_yaml).collect::<Vec<_>>().join("---\n")
}

fn mesh() -> Value {
    json!({"apiVersion": "tulle.dev/v1alpha1", "kind": "MeshConfig", "metadata": {"name": "mesh"}, "spec": {
        "trustDomain": TRUST_DOMAIN, "rootNamespace": "istio-system", "accessLogFile": "/dev/stdout",
        "accessLogEncoding": "JSON"}})
}

fn service(number: u8, service: &Service) -> Value {
    let ports = json!([{"name": service.protocol, "port": service.port, "targetPort": service.port}]);
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": service.name, "namespace": NAMESPACE},
        "spec": {"clusterIP": Service::virtual_ip(number).to_string(), "selector": {"app": service.name}, "ports": ports}})
}

fn workload(number: u8, part: &Part, place: &Place, net: Net, block: u8) -> Value {
    let address = Part::address(number, net, block);
    let mut spec = json!({"serviceAccount": part.app, "workload": part.app, "addresses": [address.to_string()],
        "meshed": part.meshed});
    if let Some((_, service)) = part.service() {
        let mut port = json!({"name": service.protocol, "number": service.port});
        if net == Net::Loopback {
            port["app"] = format!("unix:{}", place.of(part.name).join("app.sock").display()).into();
            port["bind"] = format!("{address}:{}", service.port).into();
        }
        spec["ports"] = json!([port]);
    }
    if net == Net::Loopback && part.meshed {
        let outbound: Vec<Value> = part.calls.iter().filter_map(|name| Service::numbered(name)).map(|(at, called)| {
            json!({"host": called.host(), "port": called.port, "bind": explicit(number, at, called, block).to_string()})
        }).collect();
        spec["interception"] = json!({"explicit": {"outbound": outbound}});
    }
    let labels = json!({"app": part.app, "version": part.version});
    json!({"apiVersion": "tulle.dev/v1alpha1", "kind": "Workload",
        "metadata": {"name": part.name, "namespace": NAMESPACE, "labels": labels}, "spec": spec})
}

/// Writes a file of declarations so that the control plane sees it whole or not at all.
pub(crate) fn write(place: &Place, name: &str, text: &str) -> std::io::Result<()> {
    let target = place.config().join(name);
    let hidden = place.config().join(format!(".{name}.new"));
    let mut file = std::fs::File::create(&hidden)?;
    file.write_all(text.as_bytes())?;
    std::fs::rename(hidden, target)
}

/// Takes a file of declarations away again.
pub(crate) fn remove(place: &Place, name: &str) -> std::io::Result<()> {
    let path: &Path = &place.config().join(name);
    std::fs::remove_file(path)
}

/// Where the catalog's requests go: `split` is the share of v2 in percent.
pub(crate) fn catalog_routes(split: u8, amy_to_v2: bool, cure: bool) -> String {
    let host = format!("catalog.{NAMESPACE}.svc.{DOMAIN}");
    let destination =
        |subset: &str, weight: u8| json!({"destination": {"host": host, "subset": subset}, "weight": weight});
    let mut http = vec![json!({"name": "split", "route": [destination("v1", 100 - split), destination("v2", split)]})];
    if amy_to_v2 {
        let amy = json!({"headers": {"x-user": {"exact": "amy"}}});
        http.insert(0, json!({"name": "amy", "match": [amy], "route": [destination("v2", 100)]}));
    }
    for rule in http.iter_mut().filter(|_| cure) {
        rule["retries"] = json!({"attempts": 7, "perTryTimeout": "0.3s", "retryOn": "5xx,reset,connect-failure"});
        rule["timeout"] = "3s".into();
    }
    documents(&[
        json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": "catalog", "namespace": NAMESPACE}, "spec": {"hosts": ["catalog"], "http": http}}),
        json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
            "metadata": {"name": "catalog", "namespace": NAMESPACE}, "spec": {"host": "catalog", "subsets": [
                {"name": "v1", "labels": {"version": "v1"}}, {"name": "v2", "labels": {"version": "v2"}}]}}),
    ])
}

/// Pricing's sick instances are left out after five failures in a row.
pub(crate) fn pricing_ejection() -> String {
    documents(&[json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
        "metadata": {"name": "pricing", "namespace": NAMESPACE}, "spec": {"host": "pricing", "trafficPolicy": {
            "outlierDetection": {"consecutive5xxErrors": 5, "interval": "1s", "baseEjectionTime": "30s",
                "maxEjectionPercent": 50}}}})])
}

/// A call of pricing that breaks off, because an instance fell, is made again elsewhere.
pub(crate) fn pricing_retries() -> String {
    let retries = json!({"attempts": 3, "retryOn": "connect-failure,refused-stream,reset,unavailable"});
    documents(&[json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "pricing", "namespace": NAMESPACE}, "spec": {"hosts": ["pricing"], "http": [
            {"retries": retries, "route": [{"destination": {"host": "pricing"}}]}]}})])
}

/// Whoever comes without an identity would be refused: only counted.
pub(crate) fn strict_rehearsal() -> String {
    documents(&[json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "no-plaintext", "namespace": NAMESPACE, "annotations": {"istio.io/dry-run": "true"}},
        "spec": {"action": "DENY", "rules": [{"from": [{"source": {"notPrincipals": ["*"]}}]}]}})])
}

/// Only mTLS is accepted.
pub(crate) fn strict() -> String {
    documents(&[json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "default", "namespace": NAMESPACE}, "spec": {"mtls": {"mode": "STRICT"}}})])
}

/// Only the cart may charge.
pub(crate) fn payments_guard() -> String {
    let cart = format!("{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/cart");
    documents(&[json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "payments-callers", "namespace": NAMESPACE}, "spec": {
            "selector": {"matchLabels": {"app": "payments"}}, "action": "DENY",
            "rules": [{"from": [{"source": {"notPrincipals": [cart]}}]}]}})])
}

fn documents(values: &[Value]) -> String {
    values.iter().map(proto::json::value_to_yaml).collect::<Vec<_>>().join("---\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_declared_is_understood() {
        let place = Place::at("/run/demo".into());
        let shops = [Net::Loopback, Net::Userns].map(|net| shop(&place, net, 0));
        let policies = [
            catalog_routes(10, true, true),
            pricing_ejection(),
            pricing_retries(),
            strict_rehearsal(),
            strict(),
            payments_guard(),
        ];
        for text in shops.iter().chain(&policies) {
            let parsed = resources::parse(text, &resources::ParseOptions::default());
            let worst: Vec<_> = parsed.diagnostics.iter().map(|found| found.message.clone()).collect();
            assert!(worst.is_empty(), "{worst:?}\n{text}");
            assert!(!parsed.entries.is_empty());
        }
    }
}
