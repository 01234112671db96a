//! A small DNS server for the mesh's names.
//!
//! It answers A and AAAA for the names it is given, says NXDOMAIN to other names of the mesh's domain, and hands on
//! everything else to the machine's own server where there is one.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;

/// How long callers may keep an answer, in seconds: names change when the mesh does.
const TTL: u32 = 5;
/// How long the machine's own server may take.
const PATIENCE: Duration = Duration::from_secs(4);
/// TCP queries that are answered at the same time.
const MAX_STREAMS: usize = 64;
/// Queries that wait for the machine's own server at the same time; more are dropped, and asked again.
const MAX_ASKED: usize = 256;
/// Ports that are tried where any will do.
const MOST_TRIES: u32 = 16;

/// The names and their addresses.
#[derive(Debug, Clone, Default)]
pub struct Zone {
    names: HashMap<String, Vec<IpAddr>>,
    domain: String,
    upstream: Option<SocketAddr>,
}

impl Zone {
    /// A zone of the mesh's domain (`cluster.local`). `upstream` answers what is outside of it.
    pub fn new(domain: &str, upstream: Option<SocketAddr>) -> Self {
        Self { names: HashMap::new(), domain: canonical(domain), upstream }
    }

    /// Adds `NAME.NAMESPACE.svc.DOMAIN` and its short forms; the bare name is known in its own namespace only.
    pub fn add_service(&mut self, name: &str, namespace: &str, callers_namespace: &str, addresses: &[IpAddr]) {
        let domain = self.domain.clone();
        for form in [
            format!("{name}.{namespace}.svc.{domain}"),
            format!("{name}.{namespace}.svc"),
            format!("{name}.{namespace}"),
        ] {
            self.add(&form, addresses);
        }
        if namespace == callers_namespace {
            self.add(name, addresses);
        }
    }

    /// Adds one name as it is.
    pub fn add(&mut self, name: &str, addresses: &[IpAddr]) {
        self.names.insert(canonical(name), addresses.to_vec());
    }

    fn is_ours(&self, name: &str) -> bool {
        self.names.contains_key(name)
            || name == self.domain
            || name.strip_suffix(&self.domain).is_some_and(|rest| rest.ends_with('.'))
    }

    /// The answer to a query; `None` = somebody else must be asked.
    fn answer(&self, query: &Message) -> Option<Message> {
        let mut answer = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
        answer.metadata.recursion_desired = query.metadata.recursion_desired;
        answer.metadata.recursion_available = self.upstream.is_some();
        let Some(question) = query.queries.first() else {
            answer.metadata.response_code = ResponseCode::FormErr;
            return Some(answer);
        };
        answer.add_query(question.clone());
        let name = canonical(&question.name.to_ascii());
        if !self.is_ours(&name) {
            answer.metadata.response_code = ResponseCode::NXDomain;
            return self.upstream.is_none().then_some(answer);
        }
        answer.metadata.authoritative = true;
        match self.names.get(&name) {
            Some(addresses) => {
                answer.add_answers(addresses.iter().filter_map(|ip| record(&question.name, question.query_type, *ip)));
            }
            None => answer.metadata.response_code = ResponseCode::NXDomain,
        }
        Some(answer)
    }
}

fn canonical(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

fn record(name: &Name, wanted: RecordType, ip: IpAddr) -> Option<Record> {
    let data = match (wanted, ip) {
        (RecordType::A, IpAddr::V4(ip)) => RData::A(A(ip)),
        (RecordType::AAAA, IpAddr::V6(ip)) => RData::AAAA(AAAA(ip)),
        _ => return None,
    };
    Some(Record::from_rdata(name.clone(), TTL, data))
}

/// What a client needs in its `/etc/resolv.conf` to use a server at `address` (port 53).
pub fn resolv_conf(address: IpAddr, namespace: &str, domain: &str) -> String {
    format!(
        "nameserver {address}\nsearch {namespace}.svc.{domain} svc.{domain} {domain}\noptions ndots:1 timeout:2 attempts:2\n"
    )
}

/// The first server of a `resolv.conf`.
pub fn first_server(resolv_conf: &str) -> Option<SocketAddr> {
    let mut words = resolv_conf.lines().map(str::split_whitespace);
    words.find_map(|mut line| match (line.next(), line.next()) {
        (Some("nameserver"), Some(address)) => address.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 53)),
        _ => None,
    })
}

/// A server that stands on its sockets.
#[derive(Debug)]
pub struct Server {
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
    zone: Names,
}

/// The zone in force, which may be replaced while it is served.
pub type Names = watch::Sender<Arc<Zone>>;

impl Server {
    /// Opens both sockets on `address`; with port 0 both get the same one.
    pub async fn bind(address: SocketAddr, zone: Zone) -> io::Result<Self> {
        // A port that is free in UDP may be taken in TCP: where any port will do, another is tried.
        let mut tries = if address.port() == 0 { MOST_TRIES } else { 1 };
        loop {
            let udp = UdpSocket::bind(address).await?;
            tries -= 1;
            match TcpListener::bind(udp.local_addr()?).await {
                Ok(tcp) => return Ok(Self { udp: Arc::new(udp), tcp, zone: Names::new(Arc::new(zone)) }),
                Err(error) if tries > 0 && error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes over sockets that were opened elsewhere, for example inside a network namespace.
    pub fn from_sockets(udp: std::net::UdpSocket, tcp: std::net::TcpListener, zone: Zone) -> io::Result<Self> {
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        let (udp, tcp) = (UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?);
        Ok(Self { udp: Arc::new(udp), tcp, zone: Names::new(Arc::new(zone)) })
    }

    /// With this another zone is put in force.
    pub fn names(&self) -> Names {
        self.zone.clone()
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    /// Answers for ever.
    pub async fn serve(self) {
        let Self { udp, tcp, zone } = self;
        tokio::join!(datagrams(udp, zone.clone()), streams(tcp, zone));
    }
}

async fn datagrams(socket: Arc<UdpSocket>, zone: Names) {
    let places = Arc::new(tokio::sync::Semaphore::new(MAX_ASKED));
    let mut buffer = vec![0; 4096];
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
            // An ICMP error of an earlier answer; nothing to do with the next query.
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        let Some(query) = buffer.get(..length).map(<[u8]>::to_vec) else { continue };
        let now = Arc::clone(&zone.borrow());
        match reply(&now, &query) {
            Reply::Answer(answer) => {
                let _ = socket.send_to(&answer, peer).await;
            }
            Reply::Elsewhere(upstream) => {
                let Ok(place) = places.clone().try_acquire_owned() else { continue };
                let socket = socket.clone();
                tokio::spawn(async move {
                    if let Ok(Ok(answer)) = tokio::time::timeout(PATIENCE, ask(upstream, &query)).await {
                        let _ = socket.send_to(&answer, peer).await;
                    }
                    drop(place);
                });
            }
            Reply::Nothing => {}
        }
    }
}

async fn streams(listener: TcpListener, zone: Names) {
    let places = Arc::new(tokio::sync::Semaphore::new(MAX_STREAMS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        let zone = Arc::clone(&zone.borrow());
        tokio::spawn(async move {
            let _ = tokio::time::timeout(PATIENCE, stream_query(stream, &zone)).await;
            drop(place);
        });
    }
}

/// Queries of one connection, each with its length before it.
async fn stream_query(mut stream: TcpStream, zone: &Zone) -> io::Result<()> {
    loop {
        let length = stream.read_u16().await?;
        let mut query = vec![0; length.into()];
        stream.read_exact(&mut query).await?;
        let answer = match reply(zone, &query) {
            Reply::Answer(answer) => answer,
            Reply::Elsewhere(upstream) => ask(upstream, &query).await?,
            Reply::Nothing => return Ok(()),
        };
        stream.write_u16(u16::try_from(answer.len()).unwrap_or(u16::MAX)).await?;
        stream.write_all(&answer).await?;
    }
}

/// What becomes of a query.
enum Reply {
    Answer(Vec<u8>),
    /// The machine's own server knows.
    Elsewhere(SocketAddr),
    /// Garbage is not answered.
    Nothing,
}

fn reply(zone: &Zone, query: &[u8]) -> Reply {
    let Ok(query) = Message::from_vec(query) else { return Reply::Nothing };
    if query.metadata.message_type != MessageType::Query {
        return Reply::Nothing;
    }
    match (zone.answer(&query), zone.upstream) {
        (Some(answer), _) => answer.to_vec().map_or(Reply::Nothing, Reply::Answer),
        (None, Some(upstream)) => Reply::Elsewhere(upstream),
        (None, None) => Reply::Nothing,
    }
}

async fn ask(upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if upstream.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    socket.send(query).await?;
    let mut answer = vec![0; 4096];
    let length = socket.recv(&mut answer).await?;
    answer.truncate(length);
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;
    use proptest::prelude::*;

    use super::*;

    fn zone() -> Zone {
        let mut zone = Zone::new("cluster.local", None);
        zone.add_service("catalog", "shop", "shop", &["10.96.0.3".parse().expect("an address")]);
        zone.add_service("audit", "ops", "shop", &["10.96.0.9".parse().expect("an address")]);
        zone
    }

    fn query(name: &str, kind: RecordType) -> Message {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
        message
    }

    fn addresses(name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
        let answer = zone().answer(&query(name, kind)).expect("an answer");
        (answer.metadata.response_code, answer.answers.iter().map(|record| record.data.to_string()).collect())
    }

    #[test]
    fn names_of_the_mesh_have_addresses_in_all_their_forms() {
        for name in ["catalog.", "Catalog.shop.", "catalog.shop.svc.", "catalog.shop.svc.cluster.local."] {
            assert_eq!(addresses(name, RecordType::A), (ResponseCode::NoError, vec!["10.96.0.3".to_owned()]), "{name}");
        }
    }

    #[test]
    fn a_bare_name_is_known_in_its_own_namespace_only() {
        assert_eq!(addresses("audit.", RecordType::A).0, ResponseCode::NXDomain);
        assert_eq!(addresses("audit.ops.", RecordType::A).1, ["10.96.0.9"]);
    }

    #[test]
    fn a_name_without_ipv6_exists_all_the_same() {
        assert_eq!(addresses("catalog.", RecordType::AAAA), (ResponseCode::NoError, vec![]));
        assert_eq!(addresses("nobody.shop.svc.cluster.local.", RecordType::A).0, ResponseCode::NXDomain);
    }

    #[test]
    fn other_names_are_somebody_elses_concern() {
        let mut zone = zone();
        zone.upstream = Some(([192, 0, 2, 1], 53).into());
        assert!(zone.answer(&query("example.com.", RecordType::A)).is_none());
        assert!(zone.answer(&query("catalog.", RecordType::A)).is_some());
    }

    #[test]
    fn the_first_server_is_read() {
        let text = "# a comment\nsearch x\nnameserver 192.0.2.53\nnameserver 192.0.2.54\n";
        assert_eq!(first_server(text), Some(([192, 0, 2, 53], 53).into()));
        assert_eq!(first_server("nameserver\nnameserver nobody\n"), None);
    }

    #[tokio::test]
    async fn it_answers_over_udp_and_tcp() {
        let server = Server::bind(([127, 0, 0, 1], 0).into(), zone()).await.expect("a socket");
        let address = server.address().expect("an address");
        let task = tokio::spawn(server.serve());
        let bytes = query("catalog.", RecordType::A).to_vec().expect("a message");
        let over_udp = ask(address, &bytes).await.expect("an answer");
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        stream.write_u16(bytes.len() as u16).await.expect("written");
        stream.write_all(&bytes).await.expect("written");
        let mut over_tcp = vec![0; stream.read_u16().await.expect("a length").into()];
        stream.read_exact(&mut over_tcp).await.expect("an answer");
        assert_eq!(over_udp, over_tcp);
        assert_eq!(Message::from_vec(&over_udp).expect("a message").answers.len(), 1);
        task.abort();
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = reply(&zone(), &bytes);
        }
    }
}
