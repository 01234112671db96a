//! Whatever order messages take, whoever repeats, refuses or hangs up: in the end the client holds what the
//! server serves, and a listener never came before its clusters and their endpoints.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use proptest::prelude::*;
use prost::Message;
use proto::envoy::config::core::v3::Node;
use proto::envoy::service::discovery::v3 as discovery;
use proto::google::protobuf::Any;
use proto::type_url::{CLUSTER, ENDPOINTS, LISTENER, ROUTE};
use xds::client::{self, Rejection};
use xds::server;
use xds::{Flavor, Resource, ResourceSet, Snapshot};

/// A resource of the test: a name, where every resource type has it, and what it says.
#[derive(Clone, PartialEq, Message)]
struct Body {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint64, tag = "20")]
    edition: u64,
    #[prost(bool, tag = "21")]
    bad: bool,
    /// Clusters that must be there first.
    #[prost(string, repeated, tag = "22")]
    needs: Vec<String>,
}

fn any(type_url: &str, body: &Body) -> Any {
    Any { type_url: type_url.to_owned(), value: body.encode_to_vec() }
}

/// What the server is told to serve: by type and name.
type World = BTreeMap<(&'static str, String), Body>;

fn snapshot(world: &World, revision: u64, previous: Option<&Snapshot>) -> Arc<Snapshot> {
    let set = |of: &'static str| {
        let resources = world.iter().filter(|((type_url, _), _)| *type_url == of).map(|((_, name), body)| {
            let any = any(of, body);
            let version =
                format!("{:x}", any.value.iter().fold(7u64, |hash, &byte| hash.wrapping_mul(31) ^ u64::from(byte)));
            Arc::new(Resource::new(name, &version, &any))
        });
        let resources: Vec<_> = resources.collect();
        match previous.and_then(|snapshot| snapshot.set(of)) {
            Some(before) => (of, ResourceSet::after(before, resources)),
            None => (of, Arc::new(ResourceSet::new(resources))),
        }
    };
    Arc::new(Snapshot { revision, sets: vec![set(CLUSTER), set(ENDPOINTS), set(LISTENER), set(ROUTE)] })
}

#[derive(Debug, Clone)]
enum Step {
    /// Clusters and listeners by number; `bad` ones are refused by the client.
    Publish {
        clusters: Vec<u8>,
        listeners: Vec<u8>,
        edition: u64,
        bad: Option<u8>,
    },
    /// Carries up to so many messages.
    ToServer(usize),
    ToClient(usize),
    /// The next message of that direction comes twice.
    RepeatToServer,
    RepeatToClient,
    /// The connection breaks.
    Reconnect,
    /// The server restarts: nothing is remembered there.
    Restart,
    /// The hold timer of the server fires.
    Release,
}

fn step() -> impl Strategy<Value = Step> {
    let publish = (
        prop::collection::vec(0..6u8, 0..5),
        prop::collection::vec(0..4u8, 0..4),
        0..4u64,
        prop::option::weighted(0.2, 0..6u8),
    );
    prop_oneof![
        4 => publish.prop_map(|(clusters, listeners, edition, bad)| Step::Publish { clusters, listeners, edition, bad }),
        8 => (1..4usize).prop_map(Step::ToServer),
        8 => (1..4usize).prop_map(Step::ToClient),
        1 => Just(Step::RepeatToServer),
        1 => Just(Step::RepeatToClient),
        1 => Just(Step::Reconnect),
        1 => Just(Step::Restart),
    ]
}

struct Link {
    flavor: Flavor,
    client: client::Session,
    server: server::Session,
    up: VecDeque<client::Request>,
    down: VecDeque<server::Response>,
    /// What the client's application runs.
    running: World,
    snapshot: Arc<Snapshot>,
    revision: u64,
    check_order: bool,
}

impl Link {
    fn new(flavor: Flavor, check_order: bool) -> Self {
        let mut client = client::Session::new(flavor, Node { id: "n".to_owned(), ..Default::default() });
        client.subscribe_all(CLUSTER);
        client.subscribe_all(LISTENER);
        let snapshot = snapshot(&World::new(), 0, None);
        let mut server = server::Session::new(flavor);
        server.publish(snapshot.clone());
        let (up, down, running) = (VecDeque::new(), VecDeque::new(), World::new());
        Self { flavor, client, server, up, down, running, snapshot, revision: 0, check_order }
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Publish { clusters, listeners, edition, bad } => self.publish(clusters, listeners, *edition, *bad),
            Step::ToServer(count) => (0..*count).for_each(|_| self.carry_up(false)),
            Step::ToClient(count) => (0..*count).for_each(|_| self.carry_down(false)),
            Step::RepeatToServer => self.carry_up(true),
            Step::RepeatToClient => self.carry_down(true),
            Step::Reconnect | Step::Restart => self.reconnect(),
            Step::Release => self.server.release(),
        }
    }

    fn publish(&mut self, clusters: &[u8], listeners: &[u8], edition: u64, bad: Option<u8>) {
        let mut world = World::new();
        let clusters: BTreeSet<String> = clusters.iter().map(|number| format!("c{number}")).collect();
        let is_bad = |name: &str| bad.is_some_and(|bad| name == format!("c{bad}") || name == format!("l{bad}"));
        for name in &clusters {
            let body = Body { name: name.clone(), edition, bad: is_bad(name), needs: Vec::new() };
            world.insert((CLUSTER, name.clone()), body.clone());
            world.insert((ENDPOINTS, name.clone()), Body { bad: false, ..body });
        }
        let needs: Vec<String> = clusters.into_iter().filter(|name| !is_bad(name)).collect();
        for number in listeners {
            let name = format!("l{number}");
            let body = Body { bad: is_bad(&name), name: name.clone(), edition, needs: needs.clone() };
            world.insert((LISTENER, name.clone()), body.clone());
            world.insert((ROUTE, name.clone()), Body { bad: false, ..body });
        }
        self.revision += 1;
        self.snapshot = snapshot(&world, self.revision, Some(&self.snapshot));
        self.server.publish(self.snapshot.clone());
    }

    fn pump(&mut self) {
        while let Some(request) = self.client.poll() {
            self.up.push_back(request);
        }
        while let Some(response) = self.server.poll() {
            self.down.push_back(response);
        }
    }

    fn carry_up(&mut self, twice: bool) {
        self.pump();
        let Some(request) = self.up.pop_front() else { return };
        for _ in 0..=usize::from(twice) {
            let request = match request.clone() {
                client::Request::Delta(request) => server::Request::Delta(request),
                client::Request::Sotw(request) => server::Request::Sotw(request),
            };
            self.server.receive(request).unwrap();
        }
        self.pump();
    }

    fn carry_down(&mut self, twice: bool) {
        self.pump();
        let Some(response) = self.down.pop_front() else { return };
        for _ in 0..=usize::from(twice) {
            let update = match self.flavor {
                Flavor::Delta => self.client.receive_delta(delta(&response), Instant::now()),
                Flavor::StateOfTheWorld => self.client.receive_sotw(sotw(&response), Instant::now()),
            };
            self.apply(update.unwrap());
        }
        self.pump();
    }

    fn apply(&mut self, update: client::Update) {
        let type_url = [CLUSTER, ENDPOINTS, LISTENER, ROUTE].into_iter().find(|of| *of == update.type_url).unwrap();
        let mut rejections = Vec::new();
        for received in update.resources {
            let body = Body::decode(&*received.any.value).unwrap();
            if body.bad {
                rejections.push(Rejection { name: received.name, message: "spec.bad: refused".to_owned() });
                continue;
            }
            if self.check_order && matches!(type_url, LISTENER | ROUTE) {
                for need in &body.needs {
                    assert!(self.running.contains_key(&(CLUSTER, need.clone())), "{} before cluster {need}", body.name);
                    assert!(
                        self.running.contains_key(&(ENDPOINTS, need.clone())),
                        "{} before endpoints of {need}",
                        body.name
                    );
                }
            }
            self.running.insert((type_url, received.name), body);
        }
        for name in update.removed {
            self.running.remove(&(type_url, name));
        }
        self.client.answer(update.ticket, rejections);
        // Endpoints for each cluster, routes for each listener.
        for (parent, child) in [(CLUSTER, ENDPOINTS), (LISTENER, ROUTE)] {
            if type_url == parent {
                let names: BTreeSet<String> =
                    self.running.keys().filter(|(of, _)| *of == parent).map(|(_, name)| name.clone()).collect();
                self.running.retain(|(of, name), _| *of != child || names.contains(name));
                self.client.set_names(child, names);
            }
        }
    }

    fn reconnect(&mut self) {
        self.up.clear();
        self.down.clear();
        self.client.disconnected();
        self.server = server::Session::new(self.flavor);
        self.server.publish(self.snapshot.clone());
    }

    /// Lets everything arrive. It must come to rest.
    fn settle(&mut self) {
        for _ in 0..1000 {
            self.pump();
            if self.up.is_empty() && self.down.is_empty() {
                if self.server.holding() {
                    // What the client refused is never asked endpoints for.
                    self.server.release();
                    continue;
                }
                return;
            }
            self.carry_up(false);
            self.carry_down(false);
        }
        panic!("never comes to rest: up {:?} down {:?}", self.up, self.down);
    }

    fn check(&self) {
        let refused: BTreeSet<(String, String)> =
            self.server.refused().into_iter().map(|one| (one.type_url.to_string(), one.name.to_string())).collect();
        for (type_url, parent) in
            [(CLUSTER, None), (ENDPOINTS, Some(CLUSTER)), (LISTENER, None), (ROUTE, Some(LISTENER))]
        {
            for resource in self.snapshot.set(type_url).unwrap().iter() {
                let name = resource.name().to_string();
                let bad = refused.contains(&(type_url.to_owned(), name.clone()));
                let wanted = parent.is_none_or(|parent| self.running.contains_key(&(parent, name.clone())));
                let held = self.client.held(type_url);
                if wanted && !bad {
                    assert!(self.running.contains_key(&(type_url, name.clone())), "{type_url} {name} is missing");
                    if self.flavor == Flavor::Delta {
                        assert_eq!(
                            held.get(&name).map(String::as_str),
                            Some(&**resource.version()),
                            "{type_url} {name}"
                        );
                    }
                    let body = self.running.get(&(type_url, name.clone())).unwrap();
                    let sent = Any::decode(any_bytes(resource).as_slice()).unwrap();
                    assert_eq!(body, &Body::decode(&*sent.value).unwrap(), "{type_url} {name} is old");
                }
            }
            let served = self.snapshot.set(type_url).unwrap();
            for (of, name) in self.running.keys() {
                assert!(*of != type_url || served.get(name).is_some(), "{type_url} {name} should be gone");
            }
        }
        assert_eq!(self.server.settled(), Some(self.snapshot.revision));
    }
}

fn any_bytes(resource: &Arc<Resource>) -> Vec<u8> {
    let response = server::Response {
        type_url: "".into(),
        version: String::new(),
        nonce: String::new(),
        resources: vec![resource.clone()],
        removed: Vec::new(),
    };
    sotw(&response).resources.remove(0).encode_to_vec()
}

fn delta(response: &server::Response) -> discovery::DeltaDiscoveryResponse {
    discovery::DeltaDiscoveryResponse::decode(response.encode(Flavor::Delta)).unwrap()
}

fn sotw(response: &server::Response) -> discovery::DiscoveryResponse {
    discovery::DiscoveryResponse::decode(response.encode(Flavor::StateOfTheWorld)).unwrap()
}

fn converge(flavor: Flavor, steps: &[Step], check_order: bool) {
    let mut link = Link::new(flavor, check_order);
    for step in steps {
        link.run(step);
    }
    link.settle();
    link.check();
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn delta_converges(steps in prop::collection::vec(step(), 1..60)) {
        converge(Flavor::Delta, &steps, false);
    }

    #[test]
    fn state_of_the_world_converges(steps in prop::collection::vec(step(), 1..60)) {
        converge(Flavor::StateOfTheWorld, &steps, false);
    }

    #[test]
    fn the_hold_timer_may_fire_at_any_time(steps in prop::collection::vec(prop_oneof![9 => step(), 1 => Just(Step::Release)], 1..60)) {
        converge(Flavor::Delta, &steps, false);
        converge(Flavor::StateOfTheWorld, &steps, false);
    }

    #[test]
    fn clusters_come_before_what_uses_them(
        steps in prop::collection::vec(step().prop_filter("nothing is refused", |step| !matches!(step, Step::Publish { bad: Some(_), .. })), 1..60)
    ) {
        converge(Flavor::Delta, &steps, true);
        converge(Flavor::StateOfTheWorld, &steps, true);
    }
}

/// A request of any content: known and unknown types and names, nonces that were given, guessed or invented.
fn any_request() -> impl Strategy<Value = (usize, Vec<u8>, Vec<u8>, u8, bool, bool)> {
    let names = || prop::collection::vec(0..8u8, 0..4);
    (0..6usize, names(), names(), 0..12u8, prop::bool::ANY, prop::bool::ANY)
}

fn spelled(names: &[u8]) -> Vec<String> {
    let spell = |name: &u8| match name {
        0..5 => format!("c{name}"),
        5 => "*".to_owned(),
        6 => String::new(),
        _ => "\u{0}\u{fffd} ~".to_owned(),
    };
    names.iter().map(spell).collect()
}

proptest! {
    #[test]
    fn no_request_upsets_the_server(
        delta in prop::bool::ANY,
        requests in prop::collection::vec((any_request(), prop::collection::vec(0..6u8, 0..5), 0..4u64), 1..60),
    ) {
        let flavor = if delta { Flavor::Delta } else { Flavor::StateOfTheWorld };
        let types = [CLUSTER, ENDPOINTS, LISTENER, ROUTE, "type.googleapis.com/unknown.Type", "no url"];
        let mut link = Link::new(flavor, false);
        for ((of, names, gone, nonce, nack, begins), clusters, edition) in requests {
            link.publish(&clusters, &[], edition, None);
            let error_detail = nack.then(Default::default);
            let nonce = if nonce == 0 { String::new() } else { nonce.to_string() };
            let request = if delta {
                let versions = if begins { spelled(&gone) } else { Vec::new() };
                server::Request::Delta(discovery::DeltaDiscoveryRequest {
                    type_url: types[of].to_owned(),
                    resource_names_subscribe: spelled(&names),
                    resource_names_unsubscribe: spelled(&gone),
                    initial_resource_versions: versions.into_iter().map(|name| (name, "7".to_owned())).collect(),
                    response_nonce: nonce,
                    error_detail,
                    ..Default::default()
                })
            } else {
                server::Request::Sotw(discovery::DiscoveryRequest {
                    type_url: types[of].to_owned(),
                    resource_names: spelled(&names),
                    response_nonce: nonce,
                    error_detail,
                    ..Default::default()
                })
            };
            link.server.receive(request).unwrap();
            // It comes to rest by itself: there is at most one response of a type without an answer.
            let sent = std::iter::from_fn(|| link.server.poll()).take(100).count();
            prop_assert!(sent <= 2 * types.len(), "{sent} responses");
        }
    }
}
