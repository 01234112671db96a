//! What is said, one packet each, and the descriptors that go with it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

/// The largest packet: two paths and names fit many times.
const LARGEST: usize = 32 * 1024;

/// A word between the two processes. What a later version adds is left out by an earlier one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub(super) enum Packet {
    /// The next one asks for the sockets.
    Take,
    /// A listening socket comes with this packet.
    Listener {
        /// The listener's address as it is configured.
        address: String,
        /// The file of the network namespace it is in.
        namespace: Option<PathBuf>,
    },
    /// The administration's listening socket comes with this packet.
    Admin,
    /// So many sockets were sent.
    Complete {
        /// How many.
        sockets: usize,
    },
    /// The next one serves: the first one may go.
    Serving,
}

/// Sends a packet, with or without a descriptor.
pub(super) fn send(to: impl AsFd, packet: &Packet, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let bytes = serde_json::to_vec(packet)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    sendmsg(to, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The next packet; the end of the conversation is an error.
pub(super) fn receive(from: impl AsFd) -> io::Result<(Packet, Option<OwnedFd>)> {
    let mut bytes = vec![0; LARGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(from, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let packet = serde_json::from_slice(bytes.get(..received.bytes).unwrap_or_default())?;
    Ok((packet, descriptor))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    #[test]
    fn a_descriptor_comes_over_with_its_packet() {
        let (a, b) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("a pair");
        let directory = tempfile::tempdir().expect("a folder");
        let listener = UnixListener::bind(directory.path().join("s")).expect("a socket");
        let said = Packet::Listener { address: "127.0.0.1:80".to_owned(), namespace: Some("/run/x".into()) };
        send(&a, &said, Some(listener.as_fd())).expect("sent");
        send(&a, &Packet::Complete { sockets: 1 }, None).expect("sent");
        let (heard, descriptor) = receive(&b).expect("received");
        let copy = UnixListener::from(descriptor.expect("a descriptor"));
        assert_eq!(heard, said);
        let path =
            |listener: &UnixListener| listener.local_addr().expect("an address").as_pathname().map(ToOwned::to_owned);
        assert_eq!(path(&copy), path(&listener));
        assert!(matches!(receive(&b), Ok((Packet::Complete { sockets: 1 }, None))));
        drop(a);
        assert_eq!(receive(&b).expect_err("the end").kind(), io::ErrorKind::UnexpectedEof);
    }
}
