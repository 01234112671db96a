//! The PROXY protocol header (HAProxy's proxy-protocol.txt, versions 1 and 2).

use std::net::SocketAddr;

use ppp::{HeaderResult, PartialResult, v1, v2};

/// The ends of the connection as the proxy before us saw them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proxied {
    /// The client.
    pub source: SocketAddr,
    /// Where the client connected to.
    pub destination: SocketAddr,
}

/// Why a header cannot be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// There is none, and this listener insists.
    #[error("no header")]
    Missing,
    /// It is not well formed.
    #[error("{0}")]
    Malformed(String),
}

/// What the first bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Header {
    /// A header may still follow.
    More,
    /// No header: the bytes belong to the application.
    Absent,
    /// A header of `length` bytes; without addresses for LOCAL and UNKNOWN.
    Whole {
        /// Its length in bytes.
        length: usize,
        /// What it says.
        proxied: Option<Proxied>,
    },
    /// It begins like a header and is none.
    Broken(Broken),
}

/// Longest v1 header, CRLF included.
const MAX_V1: usize = 107;
/// More than any sender's v2 header with its TLVs.
const MAX_V2: usize = 4096;
const V1_PREFIX: &[u8] = b"PROXY ";
const V2_PREFIX: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Reads a header from the first bytes of a connection.
pub fn read(bytes: &[u8]) -> Header {
    let v1 = begins(bytes, V1_PREFIX);
    let v2 = begins(bytes, V2_PREFIX);
    if !v1 && !v2 {
        return Header::Absent;
    }
    let limit = if v2 { MAX_V2 } else { MAX_V1 };
    // A line is judged when it is whole: the parser takes a cut port for a wrong one.
    if v1 && !bytes.contains(&b'\n') && bytes.len() < MAX_V1 {
        return Header::More;
    }
    match HeaderResult::parse(bytes) {
        HeaderResult::V1(Ok(header)) => {
            Header::Whole { length: header.header.len(), proxied: v1_addresses(&header.addresses) }
        }
        HeaderResult::V2(Ok(header)) => Header::Whole {
            length: header.len(),
            proxied: if header.command == v2::Command::Local { None } else { v2_addresses(&header.addresses) },
        },
        result if result.is_incomplete() && bytes.len() < limit && v2 => Header::More,
        HeaderResult::V1(Err(error)) => Header::Broken(Broken::Malformed(error.to_string())),
        HeaderResult::V2(Err(error)) => Header::Broken(Broken::Malformed(error.to_string())),
    }
}

/// Whether `bytes` begin with the prefix, or are a beginning of it.
fn begins(bytes: &[u8], prefix: &[u8]) -> bool {
    bytes.iter().zip(prefix).all(|(a, b)| a == b)
}

fn v1_addresses(addresses: &v1::Addresses) -> Option<Proxied> {
    Some(match addresses {
        v1::Addresses::Tcp4(ip) => Proxied {
            source: (ip.source_address, ip.source_port).into(),
            destination: (ip.destination_address, ip.destination_port).into(),
        },
        v1::Addresses::Tcp6(ip) => Proxied {
            source: (ip.source_address, ip.source_port).into(),
            destination: (ip.destination_address, ip.destination_port).into(),
        },
        v1::Addresses::Unknown => return None,
    })
}

fn v2_addresses(addresses: &v2::Addresses) -> Option<Proxied> {
    Some(match addresses {
        v2::Addresses::IPv4(ip) => Proxied {
            source: (ip.source_address, ip.source_port).into(),
            destination: (ip.destination_address, ip.destination_port).into(),
        },
        v2::Addresses::IPv6(ip) => Proxied {
            source: (ip.source_address, ip.source_port).into(),
            destination: (ip.destination_address, ip.destination_port).into(),
        },
        v2::Addresses::Unspecified | v2::Addresses::Unix(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 80\r\n";

    #[test]
    fn reads_version_1() {
        let mut bytes = V1.to_vec();
        bytes.extend_from_slice(b"GET / HTTP/1.1\r\n");
        let expected =
            Proxied { source: "192.0.2.7:4711".parse().unwrap(), destination: "198.51.100.1:80".parse().unwrap() };
        assert_eq!(read(&bytes), Header::Whole { length: V1.len(), proxied: Some(expected) });
        for end in 0..V1.len() {
            assert_eq!(read(&V1[..end]), Header::More, "{end}");
        }
    }

    #[test]
    fn reads_version_2() {
        let mut bytes = V2_PREFIX.to_vec();
        bytes.extend_from_slice(&[0x21, 0x11, 0, 12, 10, 0, 0, 1, 10, 0, 0, 2, 0x12, 0x67, 0, 80]);
        let expected =
            Proxied { source: "10.0.0.1:4711".parse().unwrap(), destination: "10.0.0.2:80".parse().unwrap() };
        assert_eq!(read(&bytes), Header::Whole { length: 28, proxied: Some(expected) });
        for end in 0..bytes.len() {
            assert_eq!(read(&bytes[..end]), Header::More, "{end}");
        }
    }

    #[test]
    fn tells_absence_from_damage() {
        assert_eq!(read(b"GET / HTTP/1.1\r\n"), Header::Absent);
        assert!(matches!(read(b"PROXY TCP4 nonsense\r\n"), Header::Broken(_)));
        assert!(matches!(read(&[b"PROXY ".as_slice(), &[b'A'; 200]].concat()), Header::Broken(_)));
        assert_eq!(read(b"PROXY UNKNOWN\r\nx"), Header::Whole { length: 15, proxied: None });
    }
}
