//! Sending a workload's traffic through its proxy: rules in the workload's network namespace.
//!
//! What the workload sends goes to the proxy's outbound port, what it receives to the inbound port; the proxy's own
//! traffic passes, known by its sockets' mark or by its user. The rules are one nf_tables transaction, written from
//! here without the `nft` program.

use std::fmt;
use std::net::Ipv4Addr;

mod netlink;

pub use netlink::apply;

/// Mark on the sockets of the proxy (Istio's 1337).
pub const PROXY_MARK: u32 = 1337;
/// Ports of the proxy itself, which are not redirected: metrics, health, scrape.
pub const PROXY_PORTS: [u16; 3] = [15020, 15021, 15090];

/// The name of our table.
const TABLE: &str = "tulle";

/// What is to be redirected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// The workload's address.
    pub address: Ipv4Addr,
    /// The proxy's port for what the workload sends; 15001.
    pub outbound: u16,
    /// The proxy's port for what the workload receives; 15006.
    pub inbound: u16,
    /// The proxy's user, where it has one of its own.
    pub proxy_user: Option<u32>,
    /// Ports of the workload that are left alone.
    pub open_ports: Vec<u16>,
    /// The proxy's own connections are made elsewhere: nothing passes here but what goes to the workload itself or to
    /// the proxy, and nothing comes from outside.
    pub closed: bool,
}

impl Redirect {
    /// The usual ports for a workload with this address.
    pub fn standard(address: Ipv4Addr) -> Self {
        Self {
            address,
            outbound: 15001,
            inbound: 15006,
            proxy_user: None,
            open_ports: PROXY_PORTS.to_vec(),
            closed: false,
        }
    }

    /// For a program with this address whose proxy is outside of its namespace.
    pub fn pocket(address: Ipv4Addr) -> Self {
        Self { open_ports: Vec::new(), closed: true, ..Self::standard(address) }
    }

    /// The rules, in order.
    fn rules(&self) -> Vec<Rule> {
        let outbound = Verdict::To(Ipv4Addr::LOCALHOST, self.outbound);
        if self.closed {
            return vec![
                Rule::new(Chain::Output, vec![Match::LoopbackDestination], Verdict::Pass),
                Rule::new(Chain::Output, vec![Match::Destination(self.address)], Verdict::Pass),
                Rule::new(Chain::Output, vec![Match::Tcp], outbound),
                Rule::new(Chain::Output, vec![], Verdict::Drop),
            ];
        }
        let mut rules = vec![Rule::new(Chain::Output, vec![Match::Mark(PROXY_MARK)], Verdict::Pass)];
        if let Some(user) = self.proxy_user {
            rules.push(Rule::new(Chain::Output, vec![Match::User(user)], Verdict::Pass));
        }
        rules.push(Rule::new(Chain::Output, vec![Match::LoopbackDestination], Verdict::Pass));
        rules.push(Rule::new(Chain::Output, vec![Match::Tcp], outbound));
        for port in &self.open_ports {
            rules.push(Rule::new(Chain::Prerouting, vec![Match::Tcp, Match::Port(*port)], Verdict::Pass));
        }
        let inbound = Verdict::To(self.address, self.inbound);
        rules.push(Rule::new(Chain::Prerouting, vec![Match::Tcp], inbound));
        rules
    }
}

/// In the words of the `nft` program, for people.
impl fmt::Display for Redirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table ip {TABLE} {{")?;
        for chain in [Chain::Output, Chain::Prerouting] {
            writeln!(f, "  chain {} {{", chain.name())?;
            writeln!(f, "    type nat hook {} priority dstnat;", chain.name())?;
            for rule in self.rules().iter().filter(|rule| rule.chain == chain) {
                write!(f, "   ")?;
                for condition in &rule.matches {
                    match condition {
                        Match::Mark(mark) => write!(f, " meta mark {mark}")?,
                        Match::User(user) => write!(f, " meta skuid {user}")?,
                        Match::LoopbackDestination => write!(f, " ip daddr 127.0.0.0/8")?,
                        Match::Destination(address) => write!(f, " ip daddr {address}")?,
                        Match::Tcp => write!(f, " meta l4proto tcp")?,
                        Match::Port(port) => write!(f, " tcp dport {port}")?,
                    }
                }
                match rule.verdict {
                    Verdict::Pass => writeln!(f, " return")?,
                    Verdict::Drop => writeln!(f, " drop")?,
                    Verdict::To(address, port) => writeln!(f, " dnat to {address}:{port}")?,
                }
            }
            writeln!(f, "  }}")?;
        }
        writeln!(f, "}}")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chain {
    /// What the workload sends.
    Output,
    /// What comes to it.
    Prerouting,
}

impl Chain {
    fn name(self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::Prerouting => "prerouting",
        }
    }

    /// The kernel's number of the hook (NF_INET_*).
    fn hook(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Output => 3,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    chain: Chain,
    matches: Vec<Match>,
    verdict: Verdict,
}

impl Rule {
    fn new(chain: Chain, matches: Vec<Match>, verdict: Verdict) -> Self {
        Self { chain, matches, verdict }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Match {
    Mark(u32),
    User(u32),
    LoopbackDestination,
    Destination(Ipv4Addr),
    Tcp,
    Port(u16),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Leave it alone.
    Pass,
    /// Throw it away; who sent it is told so.
    Drop,
    /// Send it there instead.
    To(Ipv4Addr, u16),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_a_pocket_but_through_the_proxy() {
        assert_eq!(
            Redirect::pocket(Ipv4Addr::new(192, 0, 0, 2)).to_string(),
            "table ip tulle {\n  chain output {\n    type nat hook output priority dstnat;\n    ip daddr 127.0.0.0/8 return\n    \
             ip daddr 192.0.0.2 return\n    meta l4proto tcp dnat to 127.0.0.1:15001\n    drop\n  }\n  \
             chain prerouting {\n    type nat hook prerouting priority dstnat;\n  }\n}\n"
        );
    }

    #[test]
    fn the_proxys_own_traffic_passes_before_anything_is_redirected() {
        let text = Redirect { proxy_user: Some(1337), ..Redirect::standard(Ipv4Addr::new(10, 88, 0, 5)) }.to_string();
        assert_eq!(
            text,
            "table ip tulle {\n  chain output {\n    type nat hook output priority dstnat;\n    meta mark 1337 return\n    \
             meta skuid 1337 return\n    ip daddr 127.0.0.0/8 return\n    meta l4proto tcp dnat to 127.0.0.1:15001\n  }\n  \
             chain prerouting {\n    type nat hook prerouting priority dstnat;\n    meta l4proto tcp tcp dport 15020 return\n    \
             meta l4proto tcp tcp dport 15021 return\n    meta l4proto tcp tcp dport 15090 return\n    \
             meta l4proto tcp dnat to 10.88.0.5:15006\n  }\n}\n"
        );
    }
}
