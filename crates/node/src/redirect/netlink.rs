//! The rules as an nf_tables transaction over netlink.

use std::io;

use netlink_bindings::nftables::{Chained, MetaKeys, Nfgenmsg, PushExprListAttrs, VerdictCode};
use netlink_bindings::traits::{NetlinkChained, Pusher};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

use super::{Chain, Match, Redirect, Rule, TABLE, Verdict};

/// NFPROTO_IPV4.
const IPV4: u8 = 2;
/// Resource id of nf_tables in a batch, big endian.
const SUBSYSTEM: u16 = 10;
/// Priority of destination NAT.
const DSTNAT: i32 = -100;
/// NFT_NAT_DNAT.
const DNAT: u32 = 1;
const TCP: u8 = 6;
/// NFT_REG_1, NFT_REG_2.
const FIRST: u32 = 1;
const SECOND: u32 = 2;
/// NFT_CMP_EQ.
const EQUAL: u32 = 0;
/// NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER.
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
/// Of an IPv4 header: where the destination begins.
const DESTINATION_OFFSET: u32 = 16;
/// Of a TCP header: where the destination port begins.
const PORT_OFFSET: u32 = 2;
/// NLMSG_ERROR.
const ERROR: u16 = 2;

/// Puts the rules in place in this thread's network namespace, all or none. Our former rules go.
pub fn apply(redirect: &Redirect) -> io::Result<()> {
    let batch = batch(redirect).finalize();
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::NETFILTER))?;
    let sent = send(&socket, batch.payload(), SendFlags::empty())?;
    if sent != batch.payload().len() {
        return Err(io::Error::other("the kernel took only a part of the rules"));
    }
    // One acknowledgement for each message but the two that frame the batch.
    let mut awaited = batch.chain_len().saturating_sub(2);
    let mut buffer = vec![0_u8; 32 * 1024];
    while awaited > 0 {
        let (_, length) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        let received = buffer.get(..length).unwrap_or_default();
        awaited = awaited.saturating_sub(acknowledgements(received, &batch)?);
    }
    Ok(())
}

/// Counts the acknowledgements; the first refusal is an error that names the message.
fn acknowledgements(mut bytes: &[u8], batch: &impl NetlinkChained) -> io::Result<usize> {
    let mut count = 0;
    while let Some((header, rest)) = bytes.split_first_chunk::<16>() {
        let word = |at: usize| header.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
        let length = (word(0) as usize).max(16);
        let kind = (word(4) & 0xffff) as u16;
        if kind == ERROR {
            let code = rest.first_chunk::<4>().copied().map_or(0, i32::from_ne_bytes);
            if code != 0 {
                let error = io::Error::from_raw_os_error(-code);
                let what = batch.get_index(word(8)).map_or("the batch", |index| batch.name(index));
                return Err(io::Error::new(error.kind(), format!("nf_tables refused {what}: {error}")));
            }
            if batch.get_index(word(8)).is_some_and(|index| index > 0 && index + 1 < batch.chain_len()) {
                count += 1;
            }
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(count)
}

fn batch(redirect: &Redirect) -> Chained<'static> {
    let header = Nfgenmsg { nfgen_family: IPV4, version: 0, _res_id_be: 0 };
    let frame = Nfgenmsg { nfgen_family: 0, version: 0, _res_id_be: SUBSYSTEM.to_be() };
    let mut batch = Chained::new(1);
    batch.request().op_batch_begin_do(&frame);
    // Creating before deleting makes the deletion succeed whether or not the table stood.
    batch.request().set_create().op_newtable_do(&header).encode().push_name_bytes(TABLE.as_bytes());
    batch.request().op_deltable_do(&header).encode().push_name_bytes(TABLE.as_bytes());
    batch.request().set_create().op_newtable_do(&header).encode().push_name_bytes(TABLE.as_bytes());
    for chain in [Chain::Output, Chain::Prerouting] {
        let mut request = batch.request().set_create().op_newchain_do(&header);
        request
            .encode()
            .push_table_bytes(TABLE.as_bytes())
            .push_name_bytes(chain.name().as_bytes())
            .nested_hook()
            .push_num(chain.hook())
            .push_priority(DSTNAT)
            .end_nested()
            .push_type_bytes(b"nat");
    }
    for rule in redirect.rules() {
        let mut request = batch.request().set_create().set_append().op_newrule_do(&header);
        let list = request
            .encode()
            .push_table_bytes(TABLE.as_bytes())
            .push_chain_bytes(rule.chain.name().as_bytes())
            .nested_expressions();
        let _ = expressions(list, &rule).end_nested();
    }
    batch.request().op_batch_end_do(&frame);
    batch
}

fn expressions<P: Pusher>(mut list: PushExprListAttrs<P>, rule: &Rule) -> PushExprListAttrs<P> {
    for condition in &rule.matches {
        list = match condition {
            Match::Mark(mark) => meta(list, MetaKeys::Mark, &mark.to_ne_bytes()),
            Match::User(user) => meta(list, MetaKeys::Skuid, &user.to_ne_bytes()),
            Match::Tcp => meta(list, MetaKeys::L4Proto, &[TCP]),
            // Comparing the first byte only is comparing with 127.0.0.0/8.
            Match::LoopbackDestination => compare(payload(list, NETWORK_HEADER, DESTINATION_OFFSET, 1), &[127]),
            Match::Destination(address) => {
                compare(payload(list, NETWORK_HEADER, DESTINATION_OFFSET, 4), &address.octets())
            }
            Match::Port(port) => compare(payload(list, TRANSPORT_HEADER, PORT_OFFSET, 2), &port.to_be_bytes()),
        };
    }
    match rule.verdict {
        Verdict::Pass => end(list, VerdictCode::Return),
        Verdict::Drop => end(list, VerdictCode::Drop),
        Verdict::To(address, port) => {
            let list = immediate(immediate(list, FIRST, &address.octets()), SECOND, &port.to_be_bytes());
            list.nested_elem()
                .nested_data_nat()
                .push_type(DNAT)
                .push_family(u32::from(IPV4))
                .push_reg_addr_min(FIRST)
                .push_reg_proto_min(SECOND)
                .end_nested()
                .end_nested()
        }
    }
}

/// Ends the rule with a verdict.
fn end<P: Pusher>(list: PushExprListAttrs<P>, code: VerdictCode) -> PushExprListAttrs<P> {
    list.nested_elem()
        .nested_data_immediate()
        .push_dreg(0)
        .nested_data()
        .nested_verdict()
        .push_code(code as u32)
        .end_nested()
        .end_nested()
        .end_nested()
        .end_nested()
}

/// Loads what is known of the packet, and compares it.
fn meta<P: Pusher>(list: PushExprListAttrs<P>, key: MetaKeys, value: &[u8]) -> PushExprListAttrs<P> {
    let list = list.nested_elem().nested_data_meta().push_dreg(FIRST).push_key(key as u32).end_nested().end_nested();
    compare(list, value)
}

fn payload<P: Pusher>(list: PushExprListAttrs<P>, base: u32, offset: u32, length: u32) -> PushExprListAttrs<P> {
    list.nested_elem()
        .nested_data_payload()
        .push_dreg(FIRST)
        .push_base(base)
        .push_offset(offset)
        .push_len(length)
        .end_nested()
        .end_nested()
}

fn compare<P: Pusher>(list: PushExprListAttrs<P>, value: &[u8]) -> PushExprListAttrs<P> {
    list.nested_elem()
        .nested_data_cmp()
        .push_sreg(FIRST)
        .push_op(EQUAL)
        .nested_data()
        .push_value(value)
        .end_nested()
        .end_nested()
        .end_nested()
}

fn immediate<P: Pusher>(list: PushExprListAttrs<P>, register: u32, value: &[u8]) -> PushExprListAttrs<P> {
    list.nested_elem()
        .nested_data_immediate()
        .push_dreg(register)
        .nested_data()
        .push_value(value)
        .end_nested()
        .end_nested()
        .end_nested()
}
