//! `tulle run --service`: a workload that declares itself, for as long as it runs.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::Ipv4Addr;
use std::path::PathBuf;

use compile::WorkloadKey;
use control::api::{ApplyRequest, DeleteRequest, ObjectName};
use control::client::{Client, ClientError};
use identity::agent::Material;
use serde_json::{Value, json};

use crate::output::Exit;
use crate::verbs::connection::refuse;

/// Where a proxy listens when the program may listen on every address at its own port.
const INBOUND: u16 = 15006;
/// Where a proxy listens for a service that its program calls.
const OUTBOUND: u16 = 15001;

/// Marks a workload that a program declared for itself. If its `tulle run` was killed, the next one declares it anew.
const OWN_WORD: &str = "tulle.dev/declared-by";

/// What the program offers.
pub(super) struct Offer {
    pub(super) service: String,
    pub(super) port: u16,
    pub(super) protocol: String,
    /// The file of the network namespace that the program has to itself.
    pub(super) pocket: Option<PathBuf>,
}

/// A workload that was declared here and goes when its program has ended.
pub(super) struct Declared {
    client: Client,
    name: ObjectName,
}

/// Declares the workload, and its service unless there is one. `None`: the workload is declared already, and that counts.
pub(super) async fn declare(
    client: Client,
    workload: &WorkloadKey,
    offer: &Offer,
    material: &Material,
) -> Result<Option<Declared>, Exit> {
    match write(&client, workload, offer, material).await {
        Ok(false) => Ok(None),
        Ok(true) => {
            let (namespace, name) = (workload.namespace.clone(), workload.name.clone());
            let name = ObjectName { kind: "Workload".to_owned(), namespace, name, resource_version: None };
            Ok(Some(Declared { client, name }))
        }
        Err(error) => Err(refuse(&error)),
    }
}

impl Declared {
    /// Takes the workload out again, so that nobody calls a program that has ended.
    pub(super) async fn withdraw(self) {
        if let Err(error) = self.client.delete(&DeleteRequest { objects: vec![self.name], wait_ms: None }).await {
            eprintln!("note: the workload stays declared: {error}");
        }
    }
}

async fn write(
    client: &Client,
    workload: &WorkloadKey,
    offer: &Offer,
    material: &Material,
) -> Result<bool, ClientError> {
    let (namespace, name) = (Some(workload.namespace.as_str()), Some(workload.name.as_str()));
    if client.objects(Some("Workload"), namespace, name).await?.iter().any(|found| !is_own_word(&found.object)) {
        return Ok(false);
    }
    let services: Vec<Value> =
        client.objects(Some("Service"), None, None).await?.into_iter().map(|found| found.object).collect();
    let mut documents = Vec::new();
    let metadata = |object: &Value, field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    let own = |object: &&Value| {
        metadata(object, "name") == offer.service && metadata(object, "namespace") == workload.namespace
    };
    if !services.iter().any(|object| own(&object)) {
        let taken = services.iter().filter_map(|object| object["spec"]["clusterIP"].as_str()?.parse().ok()).collect();
        documents.push(service(workload, offer, &taken));
    }
    let others = services.iter().filter(|object| !own(object)).flat_map(|object| {
        let host = format!("{}.{}.svc.cluster.local", metadata(object, "name"), metadata(object, "namespace"));
        let ports = object["spec"]["ports"].as_array().cloned().unwrap_or_default();
        ports.into_iter().filter_map(move |port| Some((host.clone(), u16::try_from(port["port"].as_u64()?).ok()?)))
    });
    let outbound: Vec<Value> = others
        .map(|(host, port)| {
            let address = loopback(&(workload, &host, port), 128);
            json!({"host": host, "port": port, "bind": format!("{address}:{OUTBOUND}")})
        })
        .collect();
    documents.push(self_description(workload, offer, material, &outbound));
    let manifest = documents.iter().map(proto::json::value_to_yaml).collect::<Vec<_>>().join("---\n");
    client.apply(&ApplyRequest { manifest, file: Some("tulle run".to_owned()), ..ApplyRequest::default() }).await?;
    Ok(true)
}

/// Whether a workload was declared by its own program.
pub(super) fn is_own_word(workload: &Value) -> bool {
    workload["metadata"]["annotations"].get(OWN_WORD).is_some()
}

fn service(workload: &WorkloadKey, offer: &Offer, taken: &HashSet<Ipv4Addr>) -> Value {
    // An address of its own tells it from others where nothing that is spoken does.
    let mut address = virtual_address(&format!("{}.{}.svc.cluster.local", offer.service, workload.namespace));
    while taken.contains(&address) {
        let [.., c, d] = address.octets();
        address = virtual_block(u16::from_be_bytes([c, d]).wrapping_add(1).to_be_bytes());
    }
    let ports = json!([{"name": offer.protocol, "port": offer.port, "targetPort": offer.port}]);
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": offer.service, "namespace": workload.namespace},
        "spec": {"selector": {"app": offer.service}, "clusterIP": address.to_string(), "ports": ports}})
}

fn self_description(workload: &WorkloadKey, offer: &Offer, material: &Material, outbound: &[Value]) -> Value {
    let address = loopback(&workload, 64);
    let port = json!({"name": offer.protocol, "number": offer.port, "app": format!("127.0.0.1:{}", offer.port),
        "bind": format!("{address}:{INBOUND}")});
    let interception = match &offer.pocket {
        Some(file) => json!({"namespace": file.display().to_string()}),
        None => json!({"explicit": {"outbound": outbound}}),
    };
    json!({"apiVersion": "tulle.dev/v1alpha1", "kind": "Workload",
        "metadata": {"name": workload.name, "namespace": workload.namespace, "labels": {"app": offer.service},
            "annotations": {OWN_WORD: "tulle run"}},
        "spec": {"serviceAccount": material.identity.service_account(), "addresses": [address.to_string()],
            "meshed": true, "ports": [port], "interception": interception}})
}

/// An address that stands for a service without one, in a block that nobody routes (as Istio's).
pub(super) fn virtual_address(host: &str) -> Ipv4Addr {
    let mut hasher = DefaultHasher::new();
    host.hash(&mut hasher);
    let [a, b, ..] = hasher.finish().to_be_bytes();
    virtual_block([a, b])
}

fn virtual_block([c, d]: [u8; 2]) -> Ipv4Addr {
    Ipv4Addr::new(240, 240, c, d.clamp(1, 254))
}

/// A loopback address of its own for each thing: 127.FIRST.0.1 to 127.(FIRST + 63).255.254.
fn loopback(thing: &impl Hash, first: u8) -> Ipv4Addr {
    let mut hasher = DefaultHasher::new();
    thing.hash(&mut hasher);
    let [a, b, c, ..] = hasher.finish().to_be_bytes();
    Ipv4Addr::new(127, first + a % 64, b, c.clamp(1, 254))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_loopback_and_differ() {
        let all: std::collections::HashSet<Ipv4Addr> =
            (0..100).map(|n| loopback(&WorkloadKey::new("shop", format!("web-{n}")), 64)).collect();
        assert!(all.len() >= 99, "{}", all.len());
        assert!(all.iter().all(|ip| ip.octets()[0] == 127 && (64..128).contains(&ip.octets()[1])));
    }
}
