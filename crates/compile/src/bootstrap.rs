//! The file a proxy starts from.

use std::net::SocketAddr;

use model::Workload;
use prost::Message;
use proto::envoy::config::bootstrap::v3::{
    Admin as BootstrapAdmin, Bootstrap,
    bootstrap::{DynamicResources, StaticResources},
};
use proto::envoy::config::cluster::v3::{
    Cluster,
    cluster::{ClusterDiscoveryType, DiscoveryType},
};
use proto::envoy::config::core::v3::{Address, Http2ProtocolOptions, KeepaliveSettings, Node};
use proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use proto::envoy::extensions::upstreams::http::v3::{
    HttpProtocolOptions,
    http_protocol_options::{ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig},
};
use proto::google::protobuf::{Struct, Value, value::Kind};

use crate::encode::{
    Delivery, EncodeOptions, Resource, Secrets, ads, core_locality, encode, grpc_source, mesh_client, pipe, seconds,
    single, socket, uint32,
};
use crate::mesh::{Mesh, WorkloadKey};

/// Where the proxy's admin interface listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admin {
    /// On a TCP address, which should be a loopback one.
    Socket(SocketAddr),
    /// On a Unix socket.
    Unix(String),
}

/// How the control plane is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdsServer {
    /// Its Unix socket, which knows the caller by its credentials.
    Unix(String),
    /// Its port, by mTLS with the workload's own certificate; the name must be in the server's certificate.
    Socket {
        /// Address.
        at: SocketAddr,
        /// A URI that its certificate must carry: `spiffe://cluster.local/ns/istio-system/sa/tulle`.
        identity: String,
        /// Server name sent in the handshake.
        server_name: String,
    },
}

/// The aggregated discovery service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ads {
    /// Where.
    pub server: AdsServer,
    /// Changes only (delta), instead of everything each time.
    pub delta: bool,
}

/// What kind of bootstrap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Everything in the file.
    Static {
        /// Directory of `cert-chain.pem`, `key.pem` and `root-cert.pem`.
        certs_dir: String,
        /// Admin interface; none without.
        admin: Option<Admin>,
    },
    /// Everything by ADS, keys by SDS.
    Dynamic {
        /// Admin interface; none without.
        admin: Option<Admin>,
        /// The control plane.
        ads: Ads,
        /// The agent's Unix socket.
        sds_path: String,
    },
}

/// The bootstrap of a workload's proxy; `None` for a workload that is not declared.
pub fn bootstrap(mesh: &Mesh, key: &WorkloadKey, mode: &Mode) -> Option<Bootstrap> {
    let workload = mesh.workload(key)?;
    let mut file = Bootstrap { node: Some(node(mesh, workload)), ..Bootstrap::default() };
    match mode {
        Mode::Static { certs_dir, admin } => {
            file.admin = admin.as_ref().map(bootstrap_admin);
            let options =
                EncodeOptions { delivery: Delivery::Static, secrets: Secrets::Files { directory: certs_dir.clone() } };
            let snapshot = encode(mesh, key, &options);
            file.static_resources = Some(StaticResources {
                listeners: snapshot.listeners.iter().filter_map(|resource| message(resource)).collect(),
                clusters: snapshot.clusters.iter().filter_map(|resource| message(resource)).collect(),
                ..StaticResources::default()
            });
        }
        Mode::Dynamic { admin, ads: server, sds_path } => {
            file.admin = admin.as_ref().map(bootstrap_admin);
            tell_admin(&mut file, admin.as_ref());
            file.static_resources = Some(StaticResources {
                clusters: vec![ads_cluster(&server.server), grpc_cluster("sds-grpc", pipe(sds_path))],
                ..StaticResources::default()
            });
            file.dynamic_resources = Some(DynamicResources {
                ads_config: Some(grpc_source("xds-grpc", server.delta)),
                lds_config: Some(ads()),
                cds_config: Some(ads()),
                ..DynamicResources::default()
            });
        }
    }
    Some(file)
}

/// Who the proxy of a workload is, as Istio's control plane and ours read it.
pub fn node(mesh: &Mesh, workload: &Workload) -> Node {
    let address = workload.addresses.first().map_or_else(|| "127.0.0.1".to_owned(), ToString::to_string);
    let domain = &mesh.config().cluster_domain;
    let namespace = &workload.namespace;
    let text = |value: &str| Value { kind: Some(Kind::StringValue(value.to_owned())) };
    let labels = workload.labels.iter().map(|(name, value)| (name.clone(), text(value))).collect();
    let fields = [
        ("NAME", text(&workload.name)),
        ("NAMESPACE", text(namespace)),
        ("SERVICE_ACCOUNT", text(&workload.service_account)),
        ("WORKLOAD_NAME", text(&workload.workload_name)),
        ("CLUSTER_ID", text("Kubernetes")),
        ("MESH_ID", text(&mesh.config().trust_domain)),
        ("INSTANCE_IPS", text(&workload.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))),
        ("LABELS", Value { kind: Some(Kind::StructValue(Struct { fields: labels })) }),
    ];
    let app = workload.labels.get("app").map_or(workload.workload_name.as_str(), String::as_str);
    Node {
        id: format!("sidecar~{address}~{}.{namespace}~{namespace}.svc.{domain}", workload.name),
        cluster: format!("{app}.{namespace}"),
        metadata: Some(Struct { fields: fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect() }),
        locality: Some(core_locality(&workload.locality)),
        ..Node::default()
    }
}

/// Tells the control plane where the proxy's admin interface is, so that `tulle stat` and `tap` find it.
fn tell_admin(file: &mut Bootstrap, admin: Option<&Admin>) {
    let address = match admin {
        Some(Admin::Socket(at)) => at.to_string(),
        Some(Admin::Unix(path)) => format!("unix:{path}"),
        None => return,
    };
    if let Some(metadata) = file.node.as_mut().and_then(|node| node.metadata.as_mut()) {
        let value = Value { kind: Some(Kind::StringValue(address)) };
        metadata.fields.insert("TULLE_ADMIN".to_owned(), value);
    }
}

fn message<M: Message + Default>(resource: &Resource) -> Option<M> {
    M::decode(resource.body.value.as_slice()).ok()
}

fn bootstrap_admin(admin: &Admin) -> BootstrapAdmin {
    let address = match admin {
        Admin::Socket(at) => socket(&at.ip().to_string(), at.port()),
        Admin::Unix(path) => pipe(path),
    };
    BootstrapAdmin { address: Some(address), ..BootstrapAdmin::default() }
}

fn ads_cluster(server: &AdsServer) -> Cluster {
    match server {
        AdsServer::Unix(path) => grpc_cluster("xds-grpc", pipe(path)),
        AdsServer::Socket { at, identity, server_name } => {
            let secrets = Secrets::Sds { cluster: "sds-grpc".to_owned() };
            let names = [identity.clone()].into();
            let tls = mesh_client(&secrets, server_name.clone(), &names, vec!["h2".to_owned()]);
            let address = socket(&at.ip().to_string(), at.port());
            Cluster { transport_socket: Some(tls), ..grpc_cluster("xds-grpc", address) }
        }
    }
}

fn grpc_cluster(name: &str, address: Address) -> Cluster {
    let http2 = Http2ProtocolOptions {
        connection_keepalive: Some(KeepaliveSettings {
            interval: seconds(30),
            timeout: seconds(5),
            ..KeepaliveSettings::default()
        }),
        max_concurrent_streams: uint32(100),
        ..Http2ProtocolOptions::default()
    };
    let options = HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(http2)),
        })),
        ..HttpProtocolOptions::default()
    };
    let assignment: ClusterLoadAssignment = single(name, address);
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        connect_timeout: seconds(5),
        load_assignment: Some(assignment),
        typed_extension_protocol_options: [(
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(),
            crate::encode::any(&options),
        )]
        .into(),
        ..Cluster::default()
    }
}
