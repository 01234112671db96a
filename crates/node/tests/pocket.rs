//! A real pocket in a user namespace: what goes to the proxy, what passes, what is refused.
//!
//! Has its own `main`, because only a process with one thread can enter a user namespace.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use node::enter::Enter;
use node::pocket;
use node::segment::inside;
use socket2::SockRef;

const SOON: Duration = Duration::from_secs(5);
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(240, 240, 3, 4);

fn main() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("netns");
    let enter = Enter { new_user: true, new_mounts: true, pocket: Some(file.clone()), ..Enter::default() };
    if let Err(error) = enter.enter() {
        // Only a machine that forbids them may pass without this test; root never may.
        assert!(!node::probe::is_root(), "{error}");
        println!("skipped: {error}");
        return;
    }
    let proxy = inside(&file, || TcpListener::bind((Ipv4Addr::LOCALHOST, 15001))).expect("the proxy's socket");
    std::thread::spawn(move || {
        for stream in proxy.incoming() {
            let mut stream = stream.expect("a connection");
            // The socket is the pocket's though this thread is not in there.
            let original = SockRef::from(&stream).original_dst_v4().expect("an original destination");
            stream.write_all(original.as_socket().expect("an address").to_string().as_bytes()).expect("written");
        }
    });
    let said = inside(&file, || greet((ELSEWHERE, 8080).into())).expect("a connection");
    assert_eq!(said, "240.240.3.4:8080", "TCP comes to the proxy, which knows where it was to go");

    let refused = inside(&file, || UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", (ELSEWHERE, 53)));
    let refused = refused.expect_err("UDP is refused");
    assert_eq!(refused.source.kind(), ErrorKind::PermissionDenied, "{refused}");

    for own in [Ipv4Addr::LOCALHOST, pocket::ADDRESS] {
        let listener = inside(&file, || TcpListener::bind((own, 0))).expect("a socket");
        let address = listener.local_addr().expect("an address");
        inside(&file, || TcpStream::connect_timeout(&address, SOON)).expect("the program reaches itself");
        let udp = inside(&file, || {
            let socket = UdpSocket::bind((own, 0))?;
            socket.set_read_timeout(Some(SOON))?;
            socket.send_to(b"x", socket.local_addr()?)?;
            socket.recv(&mut [0; 1])
        });
        assert_eq!(udp.expect("a datagram to itself"), 1);
    }

    pocket::remove(&file);
    assert!(!file.exists(), "the file goes with the namespace");
    println!("nothing leaves a pocket but through the proxy");
}

fn greet(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
