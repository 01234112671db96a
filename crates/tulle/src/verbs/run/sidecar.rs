//! The proxy beside the program.

use std::convert::Infallible;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use compile::{Admin, Ads, AdsServer, Mesh, Mode, WorkloadKey};
use identity::agent::{Material, SDS_SOCKET};
use identity::reach::Server;
use serde_json::{Value, json};
use tokio::process::Child;

use super::place::Place;
use crate::cli::Global;
use crate::demo::spawn::Program;
use crate::output::{Exit, fail};
use crate::verbs::admin;

/// How often things are looked at that nobody announces.
const LOOK: Duration = Duration::from_millis(20);

/// How long the first proxy waits for the control plane, whose word counts more than what an earlier run knew; and how long one
/// waits that is started again in the middle of its work.
pub(super) const FIRST_WAIT: &str = "2s";
const NEXT_WAIT: &str = "50ms";
/// Between two starts of a proxy that does not live, and how long one must live to be started again at once.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const LIVED: Duration = Duration::from_secs(1);

/// A listener that the proxy has opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listener {
    pub(super) name: String,
    pub(super) address: SocketAddr,
    /// The file of the network namespace it is in; `None` = the proxy's own.
    pub(super) namespace: Option<PathBuf>,
}

/// Where the proxy's admin interface is.
pub(super) fn admin_address(place: &Place) -> String {
    format!("unix:{}", place.dir.join("admin.sock").display())
}

/// Writes the proxy's bootstrap.
pub(super) fn prepare(place: &Place, material: &Material) -> Result<(), Exit> {
    let invalid = |what: String| fail(Exit::Invalid, what, None);
    let trust_domain = material.identity.trust_domain();
    let server = match &place.server {
        Server::Unix(path) => AdsServer::Unix(path.display().to_string()),
        Server::Tcp { host, port } => {
            let resolved = (host.as_str(), *port).to_socket_addrs().ok().and_then(|mut all| all.next());
            let at = resolved.ok_or_else(|| fail(Exit::Unreachable, format!("cannot resolve {host}"), None))?;
            let identity = identity::ca::control_identity(trust_domain).map_err(|e| invalid(e.to_string()))?;
            AdsServer::Socket { at, identity: identity.to_string(), server_name: host.clone() }
        }
    };
    let text = |name: &str| place.dir.join(name).display().to_string();
    let mode = Mode::Dynamic {
        admin: Some(Admin::Unix(text("admin.sock"))),
        ads: Ads { server, delta: true },
        sds_path: text(SDS_SOCKET),
    };
    let (mesh, _) = Mesh::compile(&resources::parse(&declared(place, trust_domain), &Default::default()).entries);
    let bootstrap = compile::bootstrap(&mesh, &place.workload, &mode)
        .ok_or_else(|| invalid(format!("{} is no name of a workload", place.workload.name)))?;
    let file = place.dir.join("proxy.yaml");
    std::fs::write(&file, proto::json::to_yaml(&bootstrap))
        .map_err(|error| invalid(format!("cannot write {}: {error}", file.display())))
}

/// Starts the proxy; its output goes to a file, never into the program's. It waits so long for a silent control plane before
/// it uses what it knew last.
pub(super) fn start(place: &Place, state_wait: &str) -> Result<Child, Exit> {
    let text = |name: &str| place.dir.join(name).display().to_string();
    let (config, state) = (text("proxy.yaml"), text("state"));
    let args = ["proxy", "-c", &config, "--concurrency", "1", "--state-dir", &state, "--state-wait", state_wait];
    let program = Program::new(args, place.dir.join("proxy.log"));
    program.spawn(&place.myself).map_err(|error| fail(Exit::Invalid, error, None))
}

/// Starts the proxy again whenever it ends, at once if it lived for a while.
pub(super) async fn keep(place: &Place, proxy: &mut Child, global: &Global) -> Infallible {
    let mut pause = SHORTEST_PAUSE;
    loop {
        let began = Instant::now();
        let ended = proxy.wait().await;
        if began.elapsed() > LIVED {
            pause = SHORTEST_PAUSE;
        } else {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        if !global.quiet {
            let how = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
            eprintln!("note: the proxy ended ({how}) and is started again");
        }
        match start(place, NEXT_WAIT) {
            Ok(started) => *proxy = started,
            Err(_) => tokio::time::sleep(LONGEST_PAUSE).await,
        }
    }
}

/// Just enough of a declaration for the proxy's `node`; what it listens on comes from the control plane.
fn declared(place: &Place, trust_domain: &str) -> String {
    let mesh = json!({"apiVersion": "tulle.dev/v1alpha1", "kind": "MeshConfig", "metadata": {"name": "mesh"},
        "spec": {"trustDomain": trust_domain}});
    let workload = json!({"apiVersion": "tulle.dev/v1alpha1", "kind": "Workload",
        "metadata": {"name": place.workload.name, "namespace": place.workload.namespace},
        "spec": {"addresses": ["127.0.0.1"], "meshed": true}});
    [mesh, workload].iter().map(proto::json::value_to_yaml).collect::<Vec<_>>().join("---\n")
}

/// Waits until the proxy is ready and listens somewhere; gives its listeners.
pub(super) async fn listeners(place: &Place, proxy: &mut Child) -> Result<Vec<Listener>, Exit> {
    let socket = admin_address(place);
    let WorkloadKey { name, namespace, .. } = &place.workload;
    let begin = Instant::now();
    loop {
        let ready = admin::get(&socket, "/ready").await.is_ok();
        let page = if ready { admin::get(&socket, "/listeners?format=json").await.ok() } else { None };
        let listeners = page.map(|page| listeners_of(&page)).unwrap_or_default();
        if !listeners.is_empty() {
            return Ok(listeners);
        }
        if proxy.try_wait().ok().flatten().is_some() || begin.elapsed() > place.wait {
            let log = place.dir.join("proxy.log");
            let what = format!("the proxy of {name}.{namespace} got no configuration: {}", last_warning(&log));
            let next = format!(
                "is workload {name} declared in namespace {namespace}, with this service account? (log: {})",
                log.display()
            );
            return Err(fail(Exit::Unreachable, what, Some(&next)));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The admin page's TCP listeners.
pub(super) fn listeners_of(page: &str) -> Vec<Listener> {
    let page: Value = serde_json::from_str(page).unwrap_or_default();
    let statuses = page["listener_statuses"].as_array().cloned().unwrap_or_default();
    let listener = |status: &Value| {
        let socket = &status["local_address"]["socket_address"];
        let port = u16::try_from(socket["port_value"].as_u64()?).ok()?;
        Some(Listener {
            name: status["name"].as_str()?.to_owned(),
            address: SocketAddr::new(socket["address"].as_str()?.parse().ok()?, port),
            namespace: socket["network_namespace_filepath"].as_str().map(PathBuf::from),
        })
    };
    statuses.iter().filter_map(listener).collect()
}

fn last_warning(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let serious = |line: &&str| line.contains("level=warn") || line.contains("level=error") || line.contains("error:");
    text.lines().rev().find(serious).unwrap_or("it says nothing").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_read_with_their_namespace() {
        let page = r#"{"listener_statuses": [
            {"name": "virtualOutbound", "local_address": {"socket_address":
                {"address": "0.0.0.0", "port_value": 15001, "network_namespace_filepath": "/run/x/netns"}}},
            {"name": "door", "local_address": {"pipe": {"path": "/run/x/door"}}}]}"#;
        let namespace = Some("/run/x/netns".into());
        let address = ([0, 0, 0, 0], 15001).into();
        assert_eq!(listeners_of(page), [Listener { name: "virtualOutbound".to_owned(), address, namespace }]);
    }
}
