//! A real segment in a user namespace: real links, real rules, real connections.
//!
//! Has its own `main`, because only a process with one thread can enter a user namespace.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use node::enter::Enter;
use node::redirect::{PROXY_MARK, Redirect};
use node::segment::{Member, Segment, inside};
use socket2::{Domain, SockRef, Socket, Type};

const MESHED: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 2);
const PLAIN: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 3);

fn main() {
    let dir = tempfile::tempdir().expect("a folder");
    let everything = Enter { new_user: true, new_network: true, new_mounts: true, ..Enter::default() };
    if let Err(error) = everything.enter() {
        // Only a machine that forbids them may pass without this test; root never may.
        assert!(!node::probe::is_root(), "{error}");
        println!("skipped: {error}");
        return;
    }
    let segment = Segment { gateway: Ipv4Addr::new(10, 88, 0, 1), prefix: 16, dir: dir.path().join("ns") };
    let members = [
        Member { name: "meshed".into(), address: MESHED, redirect: Some(Redirect::standard(MESHED)) },
        Member { name: "plain".into(), address: PLAIN, redirect: None },
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(segment.build(&members)).expect("a segment");
    let meshed = segment.namespace("meshed");
    let plain = segment.namespace("plain");

    let server = listen(&plain, (PLAIN, 8080).into(), "server");
    let outbound = listen(&meshed, (Ipv4Addr::LOCALHOST, 15001).into(), "outbound");
    let inbound = listen(&meshed, (Ipv4Addr::UNSPECIFIED, 15006).into(), "inbound");
    let metrics = listen(&meshed, (Ipv4Addr::UNSPECIFIED, 15020).into(), "metrics");

    let target: SocketAddr = (PLAIN, 8080).into();
    assert_eq!(inside(&meshed, || greet(target, None)).expect("a connection"), "outbound");
    assert_eq!(outbound.recv_timeout(SOON), Ok(Some(SocketAddrV4::new(PLAIN, 8080))), "the original destination");
    assert_eq!(inside(&meshed, || greet(target, Some(PROXY_MARK))).expect("a connection"), "server");
    assert_eq!(server.recv_timeout(SOON), Ok(None), "nothing was redirected");

    assert_eq!(inside(&plain, || greet((MESHED, 9999).into(), None)).expect("a connection"), "inbound");
    assert_eq!(inbound.recv_timeout(SOON), Ok(Some(SocketAddrV4::new(MESHED, 9999))), "the original destination");
    assert_eq!(inside(&plain, || greet((MESHED, 15020).into(), None)).expect("a connection"), "metrics");
    assert_eq!(metrics.recv_timeout(SOON), Ok(None), "the proxy's own ports are not redirected");
    println!("a segment redirects what it should, and nothing else");
}

const SOON: Duration = Duration::from_secs(5);

/// Serves its name to everybody, and tells where they wanted to go.
fn listen(
    namespace: &std::path::Path,
    address: SocketAddr,
    name: &'static str,
) -> mpsc::Receiver<Option<SocketAddrV4>> {
    let listener = inside(namespace, || TcpListener::bind(address)).expect("a socket");
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let local = stream.local_addr().expect("an address");
            let original = SockRef::from(&stream).original_dst_v4().ok().and_then(|address| address.as_socket_ipv4());
            let _ = tell.send(original.filter(|original| SocketAddr::V4(*original) != local));
            stream.write_all(name.as_bytes()).expect("written");
        }
    });
    told
}

fn greet(address: SocketAddr, mark: Option<u32>) -> io::Result<String> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    socket.connect_timeout(&address.into(), SOON)?;
    let mut stream = TcpStream::from(socket);
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
