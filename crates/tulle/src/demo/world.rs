//! The running demo: control plane, agents, proxies and programs of one shop.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use compile::{Admin, Ads, AdsServer, Mode, WorkloadKey};
use futures_util::future::join_all;
use identity::agent::{Agent, AgentHandle, AgentSettings};
use identity::audit::Audit;
use identity::ca::Authority;
use identity::token::{Grant, JoinToken, TokenStore};
use model::SpiffeId;
use node::dns;
use node::enter::Enter;
use node::redirect::Redirect;
use node::segment::{Member, Segment};
use tokio::process::Child;

use super::cast::{DOMAIN, NAMESPACE, Net, Part, SERVICES, Service, TRUST_DOMAIN, explicit};
use super::declare;
use super::place::Place;
use super::record::{Record, is_traffic_maker};
use super::scrape::{self, Sample};
use super::spawn::{Program, crash, end};
use crate::declared::Declared;

/// How long anything may take to come up.
const START: Duration = Duration::from_secs(20);
/// Who runs the proxies, and who the programs, when root makes the namespaces.
const ROOT: u32 = 0;
const NOBODY: u32 = 65534;
/// How often something that must come up is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// What a demo is started with.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) net: Net,
    /// Which block of loopback addresses is ours.
    pub(crate) block: u8,
    /// Life of a workload's certificate.
    pub(crate) cert_ttl: Duration,
    /// The visitor's requests per second.
    pub(crate) rate: f64,
    /// The intruder's requests per second.
    pub(crate) intruder_rate: f64,
    /// Envoy programs that stand in for our proxy beside some parts.
    pub(crate) envoys: Vec<(String, PathBuf)>,
    /// The shop's door, opened outside of all namespaces.
    pub(crate) door: Option<i32>,
}

/// A running demo.
pub(crate) struct World {
    pub(crate) wish: Wish,
    pub(crate) place: Place,
    pub(crate) record: Rc<Record>,
    myself: PathBuf,
    mesh: compile::Mesh,
    agents: RefCell<Vec<(&'static str, AgentHandle)>>,
    children: RefCell<BTreeMap<String, Child>>,
}

impl World {
    /// Starts everything and returns as soon as every program runs; traffic may take a moment more.
    pub(crate) async fn start(wish: Wish, place: Place) -> anyhow::Result<Rc<Self>> {
        place.furnish(Part::numbered().map(|(_, part)| part.name))?;
        declare::write(&place, "shop.yaml", &declare::shop(&place, wish.net, wish.block))?;
        declare::write(&place, "catalog.yaml", &declare::catalog_routes(0, false, false))?;
        let declared = Declared::read(&[place.config()]);
        let declared = declared.map_err(|_| anyhow::anyhow!("the demo's own declarations are wrong"))?;
        let world = Rc::new(Self {
            wish,
            place,
            record: Rc::default(),
            myself: std::env::current_exe().context("cannot find this program's file")?,
            mesh: declared.mesh,
            agents: RefCell::default(),
            children: RefCell::default(),
        });
        world.build_network().await?;
        world.invite()?;
        world.start_control()?;
        for (number, part) in Part::numbered() {
            if part.meshed {
                world.write_bootstrap(part)?;
                world.start_proxy(part)?;
            }
            if !is_traffic_maker(part) {
                world.start_app(number, part)?;
            }
        }
        world.proxies_ready().await?;
        for (number, part) in Part::numbered().filter(|(_, part)| is_traffic_maker(part)) {
            world.start_app(number, part)?;
        }
        let pids = serde_json::to_string_pretty(&world.pids())?;
        std::fs::write(world.place.dir().join("pids.json"), pids)?;
        Ok(world)
    }

    /// Namespaces for every part, where the network has them.
    async fn build_network(&self) -> anyhow::Result<()> {
        if !self.wish.net.is_transparent() {
            return Ok(());
        }
        let segment = Segment { gateway: [10, 88, 0, 1].into(), prefix: 16, dir: self.place.namespaces() };
        let members = Part::numbered().map(|(number, part)| {
            let address = Part::address(number, self.wish.net, self.wish.block);
            let redirect = part.meshed.then(|| Redirect {
                // As in a pod, the proxy is known by its user; the programs run as another one.
                proxy_user: (self.wish.net == Net::Netns).then_some(ROOT),
                ..Redirect::standard(address)
            });
            Member { name: part.name.to_owned(), address, redirect }
        });
        let members: Vec<Member> = members.collect();
        segment.build(&members).await?;
        for (number, part) in Part::numbered() {
            let server = std::net::IpAddr::from([127, 0, 0, 1]);
            let text = dns::resolv_conf(server, NAMESPACE, DOMAIN);
            std::fs::write(self.place.of(part.name).join("resolv.conf"), text)?;
            self.serve_names(number, part)?;
        }
        Ok(())
    }

    /// A DNS server inside a part's namespace. Whoever has no proxy learns the real addresses instead of virtual ones.
    fn serve_names(&self, _number: u8, part: &Part) -> anyhow::Result<()> {
        let mut zone = dns::Zone::new(DOMAIN, None);
        for (at, service) in (1..).zip(&SERVICES) {
            let backends = Part::numbered().filter(|(_, other)| other.app == service.name);
            let addresses: Vec<std::net::IpAddr> = if part.meshed {
                vec![Service::virtual_ip(at).into()]
            } else {
                backends.map(|(number, _)| Part::address(number, self.wish.net, self.wish.block).into()).collect()
            };
            zone.add_service(service.name, NAMESPACE, NAMESPACE, &addresses);
        }
        let namespace = self.place.namespaces().join(part.name);
        let sockets = node::segment::inside(&namespace, || {
            Ok((std::net::UdpSocket::bind("127.0.0.1:53")?, std::net::TcpListener::bind("127.0.0.1:53")?))
        })?;
        tokio::task::spawn_local(dns::Server::from_sockets(sockets.0, sockets.1, zone)?.serve());
        Ok(())
    }

    /// A certificate authority, and for each workload a token and an agent that will join with it.
    fn invite(&self) -> anyhow::Result<()> {
        let now = SystemTime::now();
        let audit: std::sync::Arc<Audit> = std::sync::Arc::default();
        let authority = Authority::load_or_create(&self.place.ca(), TRUST_DOMAIN, self.wish.cert_ttl, now)?;
        let tokens = TokenStore::open(&self.place.ca(), audit)?;
        for (_, part) in Part::meshed() {
            let identity = SpiffeId::new(TRUST_DOMAIN, NAMESPACE, part.app)?;
            let ttl = Duration::from_secs(600);
            let workload = format!("{}.{NAMESPACE}", part.name);
            let grant = Grant { identity: identity.clone(), workload: workload.clone(), ttl };
            let (secret, info) = tokens.create(&grant, now)?;
            let path = self.place.of(part.name).join("token");
            let server = format!("unix:{}", self.control_socket().display());
            let ca_sha256 = authority.root_hash();
            JoinToken { secret, identity, workload, server, ca_sha256, expires: info.expires }.write(&path)?;
            self.start_agent(part, Some(path))?;
        }
        Ok(())
    }

    fn start_agent(&self, part: &'static Part, token: Option<PathBuf>) -> anyhow::Result<()> {
        let settings = AgentSettings {
            run_dir: self.place.of(part.name),
            token,
            ttl: Some(self.wish.cert_ttl),
            serve_sds: true,
            ..AgentSettings::default()
        };
        self.agents.borrow_mut().push((part.name, Agent::start(settings)?));
        Ok(())
    }

    /// The identity that a part's agent holds now.
    pub(crate) fn identity(&self, part: &str) -> Option<std::sync::Arc<identity::agent::Material>> {
        let agents = self.agents.borrow();
        agents.iter().find(|(name, _)| *name == part).and_then(|(_, agent)| agent.status().material)
    }

    /// How many certificates all agents received so far, and how many attempts failed.
    pub(crate) fn certificates(&self) -> (u64, u64) {
        let agents = self.agents.borrow();
        let states = agents.iter().map(|(_, agent)| agent.status());
        states.fold((0, 0), |(received, failed), state| (received + state.received, failed + state.failed))
    }

    pub(crate) fn control_socket(&self) -> PathBuf {
        self.place.control().join("xds.sock")
    }

    /// Starts the control plane; also after it was killed.
    pub(crate) fn start_control(&self) -> anyhow::Result<()> {
        let text = |path: PathBuf| path.display().to_string();
        let ttl = format!("{}s", self.wish.cert_ttl.as_secs());
        let mut args: Vec<String> = vec!["control".into()];
        for (flag, value) in [
            ("--config", text(self.place.config())),
            ("--run-dir", text(self.place.control())),
            ("--ca-dir", text(self.place.ca())),
            ("--cert-ttl", ttl),
        ] {
            args.extend([flag.to_owned(), value]);
        }
        for flag in ["--xds", "--api", "--metrics"] {
            args.extend([flag.to_owned(), "off".to_owned()]);
        }
        self.spawn("control", &Program::new(args, self.place.dir().join("control.log")))?;
        Ok(())
    }

    fn write_bootstrap(&self, part: &Part) -> anyhow::Result<()> {
        let text = |path: PathBuf| path.display().to_string();
        let mode = Mode::Dynamic {
            admin: Some(Admin::Unix(text(self.place.admin(part.name)))),
            ads: Ads { server: AdsServer::Unix(text(self.control_socket())), delta: true },
            sds_path: text(self.place.of(part.name).join(identity::agent::SDS_SOCKET)),
        };
        let key: WorkloadKey =
            format!("{}.{NAMESPACE}", part.name).parse().map_err(|error| anyhow::anyhow!("{error}"))?;
        let bootstrap = compile::bootstrap(&self.mesh, &key, &mode).context("a part of the demo is not declared")?;
        std::fs::write(self.place.of(part.name).join("proxy.yaml"), proto::json::to_yaml(&bootstrap))?;
        Ok(())
    }

    /// Starts a part's proxy; also after it was killed.
    pub(crate) fn start_proxy(&self, part: &Part) -> anyhow::Result<()> {
        let home = self.place.of(part.name);
        let text = |name: &str| home.join(name).display().to_string();
        let envoy = self.wish.envoys.iter().find(|(name, _)| name == part.name).map(|(_, file)| file.clone());
        let config = text("proxy.yaml");
        let mut program = match &envoy {
            Some(_) => {
                Program::new(["-c", &config, "--concurrency", "1", "--disable-hot-restart"], home.join("proxy.log"))
            }
            None => {
                let args = ["proxy", "-c", &config, "--concurrency", "1", "--state-dir", &text("state")];
                Program::new(args, home.join("proxy.log"))
            }
        };
        program.file = envoy;
        program.enter = self.enter(part);
        self.spawn(&format!("proxy {}", part.name), &program)
    }

    /// Waits until every proxy has its configuration and its certificate: a program that starts before its proxy would
    /// only see failures.
    async fn proxies_ready(&self) -> anyhow::Result<()> {
        let start = Instant::now();
        for (_, part) in Part::meshed() {
            while scrape::get(&self.place.admin(part.name), "/ready").await.is_err() {
                self.patient(start, &format!("the proxy of {} is not ready", part.name))?;
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// An error with the reason once too much time is over.
    fn patient(&self, start: Instant, what: &str) -> anyhow::Result<()> {
        let fallen = self.fallen();
        if start.elapsed() < START && fallen.is_empty() {
            return Ok(());
        }
        let why = if fallen.is_empty() { what.to_owned() } else { fallen.join(", ") };
        anyhow::bail!("the demo does not come up: {why}")
    }

    fn start_app(&self, number: u8, part: &'static Part) -> anyhow::Result<()> {
        let home = self.place.of(part.name);
        let role = clap::ValueEnum::to_possible_value(&part.role).context("a role without a name")?;
        let mut args: Vec<String> = ["demo", "app", role.get_name()].map(str::to_owned).to_vec();
        for (flag, value) in [("--instance", part.name), ("--app-version", part.version)] {
            args.extend([flag.to_owned(), value.to_owned()]);
        }
        args.extend(["--sick-file".to_owned(), self.place.sick(part.name).display().to_string()]);
        args.extend(["--rate".to_owned(), self.rate_of(part).to_string()]);
        if let Some((_, service)) = part.service() {
            let listen = match self.wish.net {
                Net::Loopback => format!("unix:{}", home.join("app.sock").display()),
                _ => format!("0.0.0.0:{}", service.port),
            };
            args.extend(["--listen".to_owned(), listen]);
        }
        let mut program = self.program(number, part, args);
        if part.app == "gateway"
            && let Some(door) = self.wish.door
        {
            program.args.extend(["--inherit".into(), door.to_string().into()]);
            node::inherited::hand_down(door, true)?;
        }
        let name = format!("app {}", part.name);
        self.spawn(&name, &program)?;
        if let Some(door) = self.wish.door {
            node::inherited::hand_down(door, false)?;
        }
        let output = self.children.borrow_mut().get_mut(&name).and_then(|child| child.stdout.take());
        if let Some(output) = output {
            tokio::task::spawn_local(self.record.clone().follow(part.name, output));
        }
        Ok(())
    }

    /// A program in a part's place: its namespace, its user, and where it finds the others.
    pub(crate) fn program(&self, number: u8, part: &Part, args: Vec<String>) -> Program {
        let mut program = Program::new(args, self.place.of(part.name).join("app.log"));
        program.env = self.addresses(number, part);
        program.enter = self.enter(part);
        program.enter.user = (self.wish.net == Net::Netns).then_some(NOBODY);
        program.heard = is_traffic_maker(part);
        program
    }

    /// The file of this very program.
    pub(crate) fn myself(&self) -> &Path {
        &self.myself
    }

    fn rate_of(&self, part: &Part) -> f64 {
        match part.app {
            "visitor" => self.wish.rate,
            "intruder" => self.wish.intruder_rate,
            _ => 1.0,
        }
    }

    /// Where a part finds the services it calls, when their names alone do not say it.
    fn addresses(&self, number: u8, part: &Part) -> Vec<(String, String)> {
        if self.wish.net.is_transparent() {
            return Vec::new();
        }
        let called = part.calls.iter().filter_map(|name| Service::numbered(name));
        let own = Part::address(number, self.wish.net, self.wish.block);
        // Who has no proxy must leave from its own address by itself.
        let source = (!part.meshed).then(|| ("SOURCE_IP".to_owned(), own.to_string()));
        let urls = called.map(|(at, service)| {
            let address = if part.meshed {
                explicit(number, at, service, self.wish.block)
            } else {
                // Without a proxy there is only a backend itself.
                let backend = Part::numbered().find(|(_, other)| other.app == service.name);
                (Part::address(backend.map_or(0, |(number, _)| number), self.wish.net, self.wish.block), service.port)
                    .into()
            };
            (format!("{}_URL", service.name.to_uppercase()), format!("http://{address}"))
        });
        urls.chain(source).collect()
    }

    fn enter(&self, part: &Part) -> Enter {
        if !self.wish.net.is_transparent() {
            return Enter::default();
        }
        Enter {
            network: Some(self.place.namespaces().join(part.name)),
            resolv_conf: Some(self.place.of(part.name).join("resolv.conf")),
            ..Enter::default()
        }
    }

    fn spawn(&self, name: &str, program: &Program) -> anyhow::Result<()> {
        let child = program.spawn(&self.myself)?;
        self.children.borrow_mut().insert(name.to_owned(), child);
        Ok(())
    }

    /// Kills a process as a crash would: `control`, `proxy web-1`.
    pub(crate) async fn kill(&self, name: &str) -> anyhow::Result<()> {
        let child = self.children.borrow_mut().remove(name);
        let mut child = child.with_context(|| format!("there is no process {name}"))?;
        crash(&mut child).await;
        Ok(())
    }

    /// Processes that ended though nobody asked them to.
    pub(crate) fn fallen(&self) -> Vec<String> {
        let mut children = self.children.borrow_mut();
        let fallen = children.iter_mut().filter_map(|(name, child)| {
            let status = child.try_wait().ok().flatten()?;
            Some(format!("{name} ended ({status})"))
        });
        fallen.collect()
    }

    /// Ids of all processes, for whoever measures them.
    fn pids(&self) -> BTreeMap<String, u32> {
        let children = self.children.borrow();
        children.iter().filter_map(|(name, child)| Some((name.clone(), child.id()?))).collect()
    }

    /// A proxy's metrics; nothing while it does not answer.
    pub(crate) async fn metrics(&self, part: &str) -> Vec<Sample> {
        scrape::metrics(&self.place.admin(part)).await.unwrap_or_default()
    }

    /// Waits until a request went from the gateway's proxy to web's, and both have counted it.
    pub(crate) async fn first_edge(&self, since: Instant) -> anyhow::Result<Duration> {
        loop {
            let (source, destination) = tokio::join!(self.metrics("gateway-1"), self.metrics("web-1"));
            let seen = |samples: &[Sample], reporter: &str| {
                let labels = [("reporter", reporter), ("source_workload", "gateway"), ("destination_workload", "web")];
                scrape::sum(samples, "istio_requests_total", &labels) > 0.0
            };
            if seen(&source, "source") && seen(&destination, "destination") {
                return Ok(since.elapsed());
            }
            self.patient(since, "no request has gone through")?;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Ends everything, traffic first.
    pub(crate) async fn stop(&self) {
        let children = std::mem::take(&mut *self.children.borrow_mut());
        let (mut traffic, mut rest) = (Vec::new(), Vec::new());
        for (name, child) in children {
            let makes_traffic =
                super::cast::PARTS.iter().any(|part| is_traffic_maker(part) && name == format!("app {}", part.name));
            if makes_traffic { traffic.push(child) } else { rest.push(child) }
        }
        join_all(traffic.iter_mut().map(end)).await;
        join_all(rest.iter_mut().map(end)).await;
        self.agents.borrow_mut().clear();
    }
}
