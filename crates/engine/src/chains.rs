//! Choosing the filter chain of a connection, in Envoy's exact order: each step takes the most specific match and never
//! goes back.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use ipnet::IpNet;

use crate::facts::ConnectionFacts;
use crate::listener::FilterChain;

/// The chains of a listener with their matching table.
#[derive(Debug, Default)]
pub struct ChainTable {
    chains: Vec<Arc<FilterChain>>,
    default: Option<Arc<FilterChain>>,
    ports: HashMap<Option<u16>, DestinationIps>,
    /// Whether any chain asks for what only a listener filter knows.
    needs: Needs,
}

/// What the matching rules of a listener look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// Server names.
    pub server_names: bool,
    /// Transport or application protocols.
    pub protocols: bool,
}

/// When a chain applies; every part must hold, an empty part always does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChainMatch {
    /// Destination port.
    pub destination_port: Option<u16>,
    /// Destination ranges.
    pub destination_ranges: Vec<IpNet>,
    /// Server names in lower case, exact or `*.suffix`.
    pub server_names: Vec<Arc<str>>,
    /// `tls`, `raw_buffer`, or empty.
    pub transport_protocol: Arc<str>,
    /// ALPN names.
    pub application_protocols: Vec<Arc<str>>,
    /// Ranges of the TCP peer.
    pub direct_source_ranges: Vec<IpNet>,
    /// Same machine or not.
    pub source_type: SourceType,
    /// Ranges of the source.
    pub source_ranges: Vec<IpNet>,
    /// Source ports.
    pub source_ports: Vec<u16>,
}

/// Where a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SourceType {
    /// Anywhere.
    #[default]
    Any,
    /// From this machine.
    SameIpOrLoopback,
    /// From elsewhere.
    External,
}

type DestinationIps = Ranges<ServerNames>;
type ServerNames = HashMap<Arc<str>, TransportProtocols>;
type TransportProtocols = HashMap<Arc<str>, ApplicationProtocols>;
type ApplicationProtocols = HashMap<Arc<str>, DirectSources>;
type DirectSources = Ranges<SourceTypes>;
type SourceTypes = HashMap<SourceType, Sources>;
type Sources = Ranges<HashMap<u16, usize>>;

impl ChainTable {
    /// Builds the table. The error names the two chains (by index) whose rules are the same, and is refused as Envoy
    /// refuses it.
    pub fn new(
        chains: Vec<(ChainMatch, Arc<FilterChain>)>,
        default: Option<Arc<FilterChain>>,
    ) -> Result<Self, (usize, usize)> {
        let mut table = Self { default, ..Self::default() };
        for (index, (rule, _)) in chains.iter().enumerate() {
            table.needs.server_names |= !rule.server_names.is_empty();
            table.needs.protocols |= !rule.transport_protocol.is_empty() || !rule.application_protocols.is_empty();
            table.insert(rule, index)?;
        }
        table.chains = chains.into_iter().map(|(_, chain)| chain).collect();
        Ok(table)
    }

    /// Goes on with chains of the listener's former self that have not changed, and with what they hold: buckets of limits.
    pub(crate) fn keep(&mut self, old: &Self) {
        for chain in self.chains.iter_mut().chain(&mut self.default) {
            if let Some(same) = old.iter().find(|one| one.version == chain.version && one.name == chain.name) {
                *chain = same.clone();
            }
        }
    }

    /// All chains in the order of the configuration, the default chain last.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<FilterChain>> {
        self.chains.iter().chain(&self.default)
    }

    /// What the rules look at.
    #[must_use]
    pub const fn needs(&self) -> Needs {
        self.needs
    }

    /// The chain for a connection; `None`: close it.
    #[must_use]
    pub fn pick(&self, facts: &ConnectionFacts) -> Option<&Arc<FilterChain>> {
        let found = match self.ports.get(&Some(facts.local.port())) {
            Some(level) => by_destination(level, facts),
            None => self.ports.get(&None).and_then(|level| by_destination(level, facts)),
        };
        found.and_then(|index| self.chains.get(index)).or(self.default.as_ref())
    }

    fn insert(&mut self, rule: &ChainMatch, index: usize) -> Result<(), (usize, usize)> {
        let ips = self.ports.entry(rule.destination_port).or_default();
        for range in or_any(&rule.destination_ranges) {
            let names = ips.entry(range);
            for name in or_empty(&rule.server_names) {
                let name = name.strip_prefix('*').map_or_else(|| name.clone(), Arc::from);
                let protocols = names.entry(name).or_default().entry(rule.transport_protocol.clone()).or_default();
                for protocol in or_empty(&rule.application_protocols) {
                    let direct = protocols.entry(protocol).or_default();
                    for range in or_any(&rule.direct_source_ranges) {
                        let sources = direct.entry(range).entry(rule.source_type).or_default();
                        insert_source(sources, rule, index)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn insert_source(sources: &mut Sources, rule: &ChainMatch, index: usize) -> Result<(), (usize, usize)> {
    for range in or_any(&rule.source_ranges) {
        let ports = sources.entry(range);
        let wanted: &[u16] = if rule.source_ports.is_empty() { &[0] } else { &rule.source_ports };
        for port in wanted {
            if let Some(other) = ports.insert(*port, index).filter(|other| *other != index) {
                return Err((other, index));
            }
        }
    }
    Ok(())
}

fn by_destination(level: &DestinationIps, facts: &ConnectionFacts) -> Option<usize> {
    let names = level.find(facts.local.ip())?;
    let name = facts.server_name.as_deref().unwrap_or_default();
    let transport = names.get(name).or_else(|| wildcard(names, name)).or_else(|| names.get(""))?;
    let detected = if facts.tls { "tls" } else { "raw_buffer" };
    let application = transport.get(detected).or_else(|| transport.get(""))?;
    let offered = facts.application_protocols.iter().find_map(|protocol| application.get(&**protocol));
    let direct = offered.or_else(|| application.get(""))?;
    let types = direct.find(facts.direct_remote.ip())?;
    let local = is_local(facts);
    let kind = if local { SourceType::SameIpOrLoopback } else { SourceType::External };
    let sources = types.get(&kind).or_else(|| types.get(&SourceType::Any))?;
    let ports = sources.find(facts.remote.ip())?;
    ports.get(&facts.remote.port()).or_else(|| ports.get(&0)).copied()
}

fn is_local(facts: &ConnectionFacts) -> bool {
    let remote = facts.remote.ip().to_canonical();
    remote.is_loopback() || remote == facts.local.ip().to_canonical()
}

/// `.example.com`, then `.com`, for `www.example.com`.
fn wildcard<'t>(names: &'t ServerNames, name: &str) -> Option<&'t TransportProtocols> {
    let dots = name.char_indices().skip(1).filter(|(_, c)| *c == '.');
    dots.filter_map(|(at, _)| name.get(at..)).find_map(|suffix| names.get(suffix))
}

fn or_any(ranges: &[IpNet]) -> Vec<Option<IpNet>> {
    if ranges.is_empty() { vec![None] } else { ranges.iter().copied().map(Some).collect() }
}

fn or_empty(names: &[Arc<str>]) -> Vec<Arc<str>> {
    if names.is_empty() { vec![Arc::from("")] } else { names.to_vec() }
}

/// Values by address range; the longest prefix wins, and no range at all is the shortest.
#[derive(Debug)]
struct Ranges<T> {
    /// Prefix lengths in use, longest first.
    lengths: Vec<u8>,
    by_range: HashMap<IpNet, T>,
    any: Option<T>,
}

impl<T> Default for Ranges<T> {
    fn default() -> Self {
        Self { lengths: Vec::new(), by_range: HashMap::new(), any: None }
    }
}

impl<T: Default> Ranges<T> {
    fn entry(&mut self, range: Option<IpNet>) -> &mut T {
        let Some(range) = range.map(|range| range.trunc()) else {
            return self.any.get_or_insert_with(T::default);
        };
        if let Err(at) = self.lengths.binary_search_by(|known| range.prefix_len().cmp(known)) {
            self.lengths.insert(at, range.prefix_len());
        }
        self.by_range.entry(range).or_default()
    }

    fn find(&self, address: IpAddr) -> Option<&T> {
        let address = address.to_canonical();
        let ranges = self.lengths.iter().filter_map(|length| IpNet::new(address, *length).ok());
        ranges.map(|range| range.trunc()).find_map(|range| self.by_range.get(&range)).or(self.any.as_ref())
    }
}
