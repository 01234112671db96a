//! One vocabulary for all scenarios.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use engine::decide::Decision;
use engine::facts::Protocol;
use engine::{ConnectionFacts, Dice, Facts, HttpManager, Moment, Outcome, Peer, Plan, Store, Update, decide};
use http::{HeaderMap, HeaderName, HeaderValue};
use proto::json::Format;

/// A plan with a listener `in` whose HTTP manager has these parts, and clusters `a`, `b`, `c`.
pub(crate) struct World {
    pub plan: Arc<Plan>,
}

/// A request on one line: `GET host/path name=value ...`, plus who asks.
pub(crate) struct Ask {
    method: String,
    authority: String,
    path: String,
    headers: HeaderMap,
    connection: ConnectionFacts,
    started: SystemTime,
}

impl World {
    /// `routes`: virtual hosts as YAML; `filters`: HTTP filters before the router as YAML.
    pub(crate) fn new(virtual_hosts: &str, filters: &str) -> Self {
        Self::with(virtual_hosts, filters, "")
    }

    pub(crate) fn with(virtual_hosts: &str, filters: &str, more: &str) -> Self {
        let text = listener(virtual_hosts, filters, more);
        let mut store = Store::new();
        let mut updates: Vec<Update> = ["a", "b", "c"].iter().map(|name| cluster(name, "")).collect();
        updates.push(update::<proto::envoy::config::listener::v3::Listener>(proto::type_url::LISTENER, "in", &text));
        for outcome in store.apply(&updates) {
            outcome.unwrap_or_else(|error| panic!("{error}\n{text}"));
        }
        Self { plan: store.plan() }
    }

    pub(crate) fn manager(&self) -> Arc<HttpManager> {
        let listener = self.plan.listener("in").expect("listener");
        listener.chains.iter().next().and_then(|chain| chain.http()).expect("manager").clone()
    }

    /// The decision, and a line that says what it is.
    pub(crate) fn decide(&self, ask: &Ask, dice: &mut Dice) -> (Decision, String) {
        let decision = decide(&self.plan, &self.manager(), &ask.facts(), Moment::START, dice);
        let line = match &decision.outcome {
            Outcome::Forward(forward) => forward.cluster.name().to_string(),
            Outcome::Reply(reply) => {
                let location = reply.headers.iter().find(|(name, _)| name == http::header::LOCATION);
                let place = location.map(|(_, value)| format!(" {}", value.to_str().expect("location")));
                format!("{} {}{}", reply.status.as_u16(), reply.details, place.unwrap_or_default())
            }
        };
        (decision, line)
    }

    /// The line for a request on one line.
    pub(crate) fn ask(&self, line: &str) -> String {
        self.decide(&Ask::new(line), &mut Dice::new(1)).1
    }

    /// Checks a table: `request -> answer` on every line.
    pub(crate) fn check(&self, table: &str) {
        for line in table.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (request, wanted) = line.split_once(" -> ").expect("request -> answer");
            assert_eq!(self.ask(request.trim()), wanted.trim(), "{line}");
        }
    }
}

impl Ask {
    pub(crate) fn new(line: &str) -> Self {
        let mut words = line.split_whitespace();
        let method = words.next().expect("method").to_owned();
        let target = words.next().expect("host/path");
        let (authority, path) = target.split_at(target.find('/').unwrap_or(target.len()));
        let pairs = words.map(|word| word.split_once('=').expect("name=value"));
        let headers = pairs.map(|(name, value)| {
            (HeaderName::from_bytes(name.as_bytes()).expect("name"), HeaderValue::from_str(value).expect("value"))
        });
        Self {
            method,
            authority: authority.to_owned(),
            path: path.to_owned(),
            headers: headers.collect(),
            connection: connection(),
            started: SystemTime::UNIX_EPOCH,
        }
    }

    /// So many seconds after 1970.
    pub(crate) fn at(mut self, seconds: u64) -> Self {
        self.started = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        self
    }

    /// With one more header.
    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.append(name, HeaderValue::from_str(value).expect("value"));
        self
    }

    /// From a client with this SPIFFE identity.
    pub(crate) fn by(mut self, identity: &str) -> Self {
        self.connection.tls = true;
        self.connection.peer =
            Some(Arc::new(Peer { uri_sans: vec![identity.into()], validated: true, ..Peer::default() }));
        self
    }

    /// Changes what the client's certificate says.
    pub(crate) fn rename(&mut self, change: impl FnOnce(&mut Peer)) {
        let peer = self.connection.peer.get_or_insert_default();
        change(Arc::make_mut(peer));
    }

    /// The client presents no certificate.
    pub(crate) fn anonymous(&mut self) {
        self.connection.peer = None;
    }

    pub(crate) fn to(mut self, local: &str) -> Self {
        self.connection.local = local.parse().expect("address");
        self
    }

    pub(crate) fn from(mut self, remote: &str) -> Self {
        self.connection.remote = remote.parse().expect("address");
        self.connection.direct_remote = self.connection.remote;
        self
    }

    pub(crate) fn facts(&self) -> Facts<'_> {
        Facts {
            connection: &self.connection,
            method: &self.method,
            path: &self.path,
            authority: &self.authority,
            scheme: "http",
            headers: &self.headers,
            protocol: Protocol::Http11,
            remote: self.connection.remote.ip(),
            started: self.started,
            metadata: None,
        }
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.headers
    }
}

pub(crate) fn connection() -> ConnectionFacts {
    let remote: SocketAddr = ([192, 0, 2, 1], 4711).into();
    ConnectionFacts::between(remote, ([10, 0, 0, 1], 80).into(), 7)
}

pub(crate) fn update<M: prost::Message + prost::Name + Default>(type_url: &str, name: &str, yaml: &str) -> Update {
    let message: M = proto::json::parse(yaml, Format::Yaml).unwrap_or_else(|faults| panic!("{faults:?}\n{yaml}"));
    Update { type_url: type_url.into(), name: name.into(), body: Some(message.encode_to_vec().into()) }
}

pub(crate) fn cluster(name: &str, more: &str) -> Update {
    let text = format!(
        "name: {name}
connect_timeout: 1s
load_assignment:
  cluster_name: {name}
  endpoints:
    - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}}}
{more}"
    );
    update::<proto::envoy::config::cluster::v3::Cluster>(proto::type_url::CLUSTER, name, &text)
}

pub(crate) fn listener(virtual_hosts: &str, filters: &str, more: &str) -> String {
    let http = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    format!(
        "name: in
address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
filter_chains:
  - filters:
      - name: http
        typed_config:
          '@type': {http}
          stat_prefix: in
{more}
          http_filters:
{filters}
            - name: router
              typed_config: {{'@type': {router}}}
          route_config:
            name: local
            validate_clusters: false
            virtual_hosts:
{virtual_hosts}",
        more = indent(more, 10),
        filters = indent(filters, 12),
        virtual_hosts = indent(virtual_hosts, 14),
    )
}

fn indent(text: &str, by: usize) -> String {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines.map(|line| format!("{:by$}{line}", "")).collect::<Vec<_>>().join("\n")
}
