//! The names by which the program finds services: DNS and environment variables.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use node::dns::{self, Server, Zone};
use serde_json::Value;

use super::declare::virtual_address;
use super::network::Network;
use super::place::Place;
use super::sidecar::{Listener, admin_address};
use crate::output::{Exit, fail};
use crate::verbs::admin;

/// The domain of the mesh's own names.
const DOMAIN: &str = "cluster.local";
/// Where names are answered when nothing else is said: in the program's own namespace, and elsewhere.
const OWN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 53);
const SHARED: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15053);
/// How often services that were declared later are looked for.
const LOOK: Duration = Duration::from_secs(1);

/// A service's port, and where the program connects to for it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Called {
    host: String,
    port: u16,
    address: SocketAddr,
}

/// What the program may call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Names {
    called: Vec<Called>,
    /// Programs connect to names, not to the proxy's addresses.
    by_name: bool,
}

impl Names {
    /// One address of the proxy for each service: `outbound|8080||catalog.shop.svc.cluster.local`.
    pub(super) fn explicit(listeners: &[Listener]) -> Self {
        let called = listeners.iter().filter_map(|listener| {
            let (host, port) = outbound(&listener.name)?;
            Some(Called { host, port, address: listener.address })
        });
        Self { called: called.collect(), by_name: false }
    }

    /// The services that the proxy of a redirected program knows, by its clusters, with their own addresses where it has
    /// listeners for those.
    pub(super) async fn ask(place: &Place) -> Result<Self, String> {
        let socket = admin_address(place);
        let clusters = admin::get(&socket, "/clusters").await?;
        let listeners = admin::get(&socket, "/config_dump?resource=dynamic_listeners&name_regex=%5E[0-9.]%2B_").await?;
        Ok(Self::redirected(&clusters, &listeners))
    }

    fn redirected(clusters: &str, listeners: &str) -> Self {
        let addresses = service_addresses(listeners);
        let names = clusters.lines().filter_map(|line| line.split_once("::observability_name::"));
        let mut called: Vec<Called> = names
            .filter_map(|(name, _)| outbound(name))
            .filter(|(host, _)| !host.starts_with('*'))
            .map(|(host, port)| {
                let ip = addresses.get(&host).copied().unwrap_or_else(|| virtual_address(&host).into());
                Called { address: SocketAddr::new(ip, port), host, port }
            })
            .collect();
        called.sort_by(|a, b| (&a.host, a.port).cmp(&(&b.host, b.port)));
        called.dedup();
        Self { called, by_name: true }
    }

    /// For DNS.
    fn zone(&self, place: &Place, upstream: Option<SocketAddr>) -> Zone {
        let mut zone = Zone::new(DOMAIN, upstream);
        for one in &self.called {
            zone.add(&one.host, &[one.address.ip()]);
            let mut labels = one.host.split('.');
            if let (Some(name), Some(namespace), Some("svc")) = (labels.next(), labels.next(), labels.next()) {
                zone.add_service(name, namespace, &place.workload.namespace, &[one.address.ip()]);
            }
        }
        zone
    }

    /// Environment variables by which the program finds services; those that it has already stay as they are.
    pub(super) fn environment(&self) -> Vec<(String, String)> {
        let mut all: Vec<(String, String)> = Vec::new();
        for one in &self.called {
            let name: String = one.host.split('.').next().unwrap_or_default().to_uppercase();
            let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
            let at = if self.by_name { format!("{}:{}", one.host, one.port) } else { one.address.to_string() };
            for stem in [name.clone(), format!("{name}_{}", one.port)] {
                for (ending, value) in [("ADDR", at.clone()), ("URL", format!("http://{at}"))] {
                    let variable = format!("{stem}_{ending}");
                    if std::env::var_os(&variable).is_none() && all.iter().all(|(earlier, _)| *earlier != variable) {
                        all.push((variable, value));
                    }
                }
            }
        }
        all
    }
}

/// `outbound|8080||catalog.shop.svc.cluster.local`, without subset.
fn outbound(name: &str) -> Option<(String, u16)> {
    let mut parts = name.split('|');
    match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("outbound"), Some(port), Some(""), Some(host), None) => Some((host.to_owned(), port.parse().ok()?)),
        _ => None,
    }
}

/// The services that have listeners of their own address: `10.96.0.7_9000`, whose metadata names the host.
fn service_addresses(dump: &str) -> BTreeMap<String, IpAddr> {
    let dump: Value = serde_json::from_str(dump).unwrap_or_default();
    let listeners = dump["configs"].as_array().cloned().unwrap_or_default();
    let found = listeners.iter().filter_map(|entry| {
        let listener = &entry["active_state"]["listener"];
        let ip: IpAddr = listener["name"].as_str()?.rsplit_once('_')?.0.parse().ok()?;
        let host = listener["metadata"]["filter_metadata"]["istio"]["services"][0]["host"].as_str()?;
        Some((host.to_owned(), ip))
    });
    found.collect()
}

/// Answers names as long as the program runs, and in a redirected network follows the services that come and go. Gives the
/// file that is to be the program's `/etc/resolv.conf`, where it has one of its own.
pub(super) async fn serve(
    wanted: Option<&str>,
    place: &Place,
    network: &Network,
    names: &Names,
) -> Result<Option<PathBuf>, Exit> {
    let address = match wanted {
        Some("off") => return Ok(None),
        Some(text) => text.parse().map_err(|_| fail(Exit::Usage, format!("--dns {text}: IP:PORT or off"), None))?,
        None if network.pocket().is_some() => OWN,
        None => SHARED,
    };
    let Some(pocket) = network.pocket() else {
        match Server::bind(address, names.zone(place, None)).await {
            Ok(server) => drop(tokio::task::spawn_local(server.serve())),
            Err(error) => eprintln!("note: no DNS for mesh names on {address}: {error}"),
        }
        return Ok(None);
    };
    // Other names are asked from out here, where the machine's own server is reached.
    let upstream = std::fs::read_to_string("/etc/resolv.conf").ok().and_then(|text| dns::first_server(&text));
    let server = node::segment::inside(pocket, || {
        Ok((std::net::UdpSocket::bind(address)?, std::net::TcpListener::bind(address)?))
    });
    let invalid = |error: String| fail(Exit::Invalid, format!("no DNS for mesh names on {address}: {error}"), None);
    let (udp, tcp) = server.map_err(|error| invalid(error.to_string()))?;
    let server = Server::from_sockets(udp, tcp, names.zone(place, upstream));
    let server = server.map_err(|error| invalid(error.to_string()))?;
    let resolv_conf = place.dir.join("resolv.conf");
    let text = dns::resolv_conf(address.ip(), &place.workload.namespace, DOMAIN);
    std::fs::write(&resolv_conf, text).map_err(|error| invalid(error.to_string()))?;
    tokio::task::spawn_local(follow(place.clone(), server.names(), upstream, names.clone()));
    tokio::task::spawn_local(server.serve());
    Ok((address.port() == 53).then_some(resolv_conf))
}

/// Puts another zone in force whenever the proxy knows other services.
async fn follow(place: Place, zone: dns::Names, upstream: Option<SocketAddr>, mut known: Names) {
    let socket = admin_address(&place);
    let mut version = String::new();
    loop {
        tokio::time::sleep(LOOK).await;
        // A page of two lines says whether anything has changed at all.
        let Ok(now) = admin::get(&socket, "/stats/prometheus?filter=tulle_config").await else { continue };
        if now == version {
            continue;
        }
        let Ok(names) = Names::ask(&place).await else { continue };
        version = now;
        if names != known {
            zone.send_replace(names.zone(&place, upstream).into());
            known = names;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sidecar::listeners_of;
    use super::*;

    fn variable(names: &Names, name: &str) -> Option<String> {
        names.environment().into_iter().find(|(variable, _)| variable == name).map(|(_, value)| value)
    }

    #[test]
    fn explicit_listeners_become_variables_with_the_proxys_addresses() {
        let at = |port: u16| format!(r#"{{"socket_address": {{"address": "127.1.2.3", "port_value": {port}}}}}"#);
        let status = |name: &str, port| format!(r#"{{"name": "{name}", "local_address": {}}}"#, at(port));
        let catalog = |port| status(&format!("outbound|{port}||catalog.shop.svc.cluster.local"), port);
        let all = [catalog(8080), catalog(9090), status("inbound|8080||", 15006), status("outbound|x||y", 1)];
        let names = Names::explicit(&listeners_of(&format!(r#"{{"listener_statuses": [{}]}}"#, all.join(","))));
        assert_eq!(names.called.len(), 2);
        assert_eq!(variable(&names, "CATALOG_URL").as_deref(), Some("http://127.1.2.3:8080"));
        assert_eq!(variable(&names, "CATALOG_9090_ADDR").as_deref(), Some("127.1.2.3:9090"));
    }

    #[test]
    fn clusters_become_names_with_the_services_own_address_or_one_made_up() {
        let clusters = "outbound|80||web.shop.svc.cluster.local::observability_name::x\n\
                        outbound|80|v1|web.shop.svc.cluster.local::observability_name::x\n\
                        outbound|80||*.example.com::observability_name::x\n\
                        outbound|9000||db.shop.svc.cluster.local::observability_name::x\n\
                        outbound|9000||db.shop.svc.cluster.local::default_priority::max_connections::1\n\
                        PassthroughCluster::observability_name::x\n";
        let dump = r#"{"configs": [{"name": "10.96.0.7_9000", "active_state": {"listener": {"name": "10.96.0.7_9000",
            "metadata": {"filter_metadata": {"istio": {"services": [{"host": "db.shop.svc.cluster.local"}]}}}}}}]}"#;
        let names = Names::redirected(clusters, dump);
        let [db, web] = names.called.as_slice() else { panic!("{names:?}") };
        assert_eq!(db.address, ([10, 96, 0, 7], 9000).into());
        assert_eq!(web.address.ip(), virtual_address("web.shop.svc.cluster.local"));
        assert_eq!(variable(&names, "DB_ADDR").as_deref(), Some("db.shop.svc.cluster.local:9000"));
    }
}
