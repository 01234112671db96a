//! A name server that tells a table's names, so that what proxies do with the answers can be seen.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use serde::Deserialize;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// Where it listens: the address that `/etc/resolv.conf` of the runner's own namespace names.
pub const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 53);

/// What is known of a name. Of each kind of question the first answer is told once, then the next; the last one stays.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    /// Seconds that an answer is good.
    pub ttl: u32,
    /// Addresses; none: the server fails.
    pub answers: Vec<Vec<Ipv4Addr>>,
}

/// Serves the names; it stops when the task is aborted.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(names: BTreeMap<String, Known>) -> Result<JoinHandle<()>> {
    let socket = UdpSocket::bind(ADDRESS).await.with_context(|| format!("a name server at {ADDRESS}"))?;
    Ok(tokio::spawn(async move {
        let mut told = HashMap::new();
        let mut buffer = [0_u8; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let query = Message::from_vec(buffer.get(..length).unwrap_or_default());
            let Ok(answer) = query.map(|query| answer(&query, &names, &mut told).to_vec()) else { continue };
            let _ = socket.send_to(&answer.unwrap_or_default(), from).await;
        }
    }))
}

fn answer(
    query: &Message,
    names: &BTreeMap<String, Known>,
    told: &mut HashMap<(String, RecordType), usize>,
) -> Message {
    let mut answer = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    answer.metadata.recursion_desired = query.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.metadata.authoritative = true;
    let Some(question) = query.queries.first() else { return answer };
    answer.add_query(question.clone());
    let name = question.name.to_ascii().trim_end_matches('.').to_ascii_lowercase();
    let turn = told.entry((name.clone(), question.query_type)).or_default();
    let known = names.get(&name);
    let addresses = known.and_then(|known| known.answers.get(*turn).or_else(|| known.answers.last()));
    *turn += 1;
    match (known, addresses) {
        (Some(_), Some(addresses)) if addresses.is_empty() => answer.metadata.response_code = ResponseCode::ServFail,
        (Some(known), Some(addresses)) => {
            let records = addresses.iter().filter(|_| question.query_type == RecordType::A);
            answer
                .add_answers(records.map(|ip| Record::from_rdata(question.name.clone(), known.ttl, RData::A(A(*ip)))));
        }
        _ => answer.metadata.response_code = ResponseCode::NXDomain,
    }
    answer
}
