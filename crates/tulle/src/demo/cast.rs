//! Who plays in the demo: services, the workloads behind them, and their addresses in each kind of network.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use super::app::Role;

/// The namespace of everything.
pub(crate) const NAMESPACE: &str = "shop";
/// The demo's own trust domain.
pub(crate) const TRUST_DOMAIN: &str = "demo.tulle";
/// DNS suffix of services.
pub(crate) const DOMAIN: &str = "cluster.local";

/// How traffic comes to the proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Net {
    /// Namespaces of an unprivileged user: real transparent interception.
    Userns,
    /// Namespaces made by root.
    Netns,
    /// Explicit loopback addresses.
    Loopback,
}

impl Net {
    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Userns => "userns",
            Self::Netns => "netns",
            Self::Loopback => "loopback",
        }
    }

    /// Whether workloads have network namespaces of their own.
    pub(crate) fn is_transparent(self) -> bool {
        self != Self::Loopback
    }
}

/// A service of the shop.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) name: &'static str,
    pub(crate) port: u16,
    /// Name of the port, which tells the protocol as in Kubernetes.
    pub(crate) protocol: &'static str,
}

/// All services. A service's place is its number, from 1.
pub(crate) const SERVICES: [Service; 7] = [
    Service { name: "gateway", port: 8080, protocol: "http" },
    Service { name: "web", port: 8080, protocol: "http" },
    Service { name: "catalog", port: 8080, protocol: "http2" },
    Service { name: "pricing", port: 9090, protocol: "grpc" },
    Service { name: "cart", port: 8080, protocol: "http" },
    Service { name: "payments", port: 9090, protocol: "grpc" },
    Service { name: "ledger", port: 7070, protocol: "tcp" },
];

impl Service {
    /// The service of this name with its number.
    pub(crate) fn numbered(name: &str) -> Option<(u8, &'static Self)> {
        (1..).zip(SERVICES.iter()).find(|(_, service)| service.name == name)
    }

    /// `NAME.NAMESPACE.svc.DOMAIN`.
    pub(crate) fn host(&self) -> String {
        format!("{}.{NAMESPACE}.svc.{DOMAIN}", self.name)
    }

    /// Its virtual address: nobody has it, the proxies know it.
    pub(crate) fn virtual_ip(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 96, 0, number)
    }
}

/// One running program.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) name: &'static str,
    pub(crate) role: Role,
    /// The label `app`, and the service account; its service where one has this name.
    pub(crate) app: &'static str,
    pub(crate) version: &'static str,
    /// Whether it has a proxy.
    pub(crate) meshed: bool,
    /// The services it calls.
    pub(crate) calls: &'static [&'static str],
}

/// All programs. A program's place is its number, from 1.
pub(crate) const PARTS: [Part; 13] = [
    part("gateway-1", Role::Gateway, "gateway", "v1", &["web"]),
    part("web-1", Role::Web, "web", "v1", &["catalog", "cart"]),
    part("catalog-v1", Role::Catalog, "catalog", "v1", &["pricing"]),
    part("catalog-v2", Role::Catalog, "catalog", "v2", &["pricing"]),
    part("pricing-1", Role::Pricing, "pricing", "v1", &[]),
    part("pricing-2", Role::Pricing, "pricing", "v1", &[]),
    part("pricing-3", Role::Pricing, "pricing", "v1", &[]),
    part("cart-1", Role::Cart, "cart", "v1", &["payments"]),
    part("payments-1", Role::Payments, "payments", "v1", &["ledger"]),
    part("ledger-1", Role::Ledger, "ledger", "v1", &[]),
    part("visitor-1", Role::Visitor, "visitor", "v1", &["gateway"]),
    part("intruder-1", Role::Intruder, "intruder", "v1", &["payments"]),
    Part { name: "legacy-1", role: Role::Legacy, app: "legacy", version: "v1", meshed: false, calls: &["catalog"] },
];

const fn part(
    name: &'static str,
    role: Role,
    app: &'static str,
    version: &'static str,
    calls: &'static [&'static str],
) -> Part {
    Part { name, role, app, version, meshed: true, calls }
}

impl Part {
    /// All parts with their numbers.
    pub(crate) fn numbered() -> impl Iterator<Item = (u8, &'static Self)> {
        (1..).zip(PARTS.iter())
    }

    /// Those that have a proxy.
    pub(crate) fn meshed() -> impl Iterator<Item = (u8, &'static Self)> {
        Self::numbered().filter(|(_, part)| part.meshed)
    }

    /// The service it serves.
    pub(crate) fn service(&self) -> Option<(u8, &'static Service)> {
        Service::numbered(self.app)
    }

    /// The address at which peers reach it. `block` keeps demos on one machine apart.
    pub(crate) fn address(number: u8, net: Net, block: u8) -> Ipv4Addr {
        match net {
            Net::Loopback => Ipv4Addr::new(127, 77, block, number),
            Net::Userns | Net::Netns => Ipv4Addr::new(10, 88, 0, number + 1),
        }
    }
}

/// Where the proxy of client `part` listens for `service` when nothing is redirected.
pub(crate) fn explicit(part: u8, number: u8, service: &Service, block: u8) -> SocketAddr {
    (Ipv4Addr::new(127, FIRST_CLIENT_BLOCK + block, part, number), service.port).into()
}

/// Clients' blocks are 127.79.0.0/16 and those above it.
const FIRST_CLIENT_BLOCK: u8 = 79;
/// So many demos with loopback addresses can run at the same time.
const BLOCKS: u8 = 100;

/// Takes a block of loopback addresses for as long as the socket lives.
pub(crate) fn take_block() -> std::io::Result<(u8, TcpListener)> {
    let mut last = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
    for block in 0..BLOCKS {
        match TcpListener::bind((Ipv4Addr::new(127, 77, block, 254), 15000)) {
            Ok(lock) => return Ok((block, lock)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The edges that the shop's traffic makes: who calls which service.
pub(crate) fn edges() -> impl Iterator<Item = (&'static Part, &'static Service)> {
    PARTS.iter().flat_map(|part| {
        part.calls.iter().filter_map(move |name| Service::numbered(name).map(|(_, service)| (part, service)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_called_service_exists_and_is_served() {
        for part in &PARTS {
            for name in part.calls {
                assert!(Service::numbered(name).is_some(), "{} calls {name}", part.name);
            }
        }
        for service in &SERVICES {
            assert!(PARTS.iter().any(|part| part.app == service.name), "nobody serves {}", service.name);
        }
    }
}
