//! A network of a single program: a namespace that nothing leads out of but its proxy.
//!
//! The proxy is outside, in the network that the machine's user has. It opens its sockets for the program in here, and all
//! others out there. What the program sends by TCP comes to the proxy; whatever else it sends is refused at once.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;

use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::UnshareFlags;

use crate::enter::{EnterError, Step, unshare};
use crate::links::Links;
use crate::redirect::{self, Redirect};
use crate::segment::in_thread;

/// The program's own address in there, the same for everybody (RFC 7335: for hosts behind a translator). Programs and
/// resolvers that look for an address that is no loopback one find it.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 2);
/// The next hop that no packet ever goes to: what goes out by TCP is turned round before, all else is dropped.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 1);
const PREFIX: u8 = 29;
/// The link, and its other end.
const LINK: &str = "eth0";
const OTHER_END: &str = "tulle0";

/// Makes the namespace and binds it to a file, which is made if need be. Takes a mount namespace of one's own, and rights
/// in the user namespace.
///
/// # Errors
/// The step that the kernel refused.
pub fn build(path: &Path) -> Result<(), EnterError> {
    File::create(path).step(format!("cannot make {}", path.display()))?;
    in_thread(|| {
        unshare(UnshareFlags::NEWNET).step("cannot make a network namespace")?;
        settle()?;
        mount_bind("/proc/thread-self/ns/net", path).step("cannot bind a network namespace to a file")
    })
}

/// Lets the namespace go, and removes its file. It ends with the last process in it.
pub fn remove(path: &Path) {
    let _ = unmount(path, UnmountFlags::DETACH);
    let _ = std::fs::remove_file(path);
}

/// Link, address, route and rules of this thread's network namespace.
fn settle() -> Result<(), EnterError> {
    // Only IPv4 is redirected, so there must be no other way out.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().step("cannot start")?;
    runtime.block_on(async {
        let links = Links::open()?;
        links.up("lo").await?;
        let peer = LinkMessageBuilder::<LinkUnspec>::new().name(OTHER_END.to_owned());
        let pair = LinkVeth::new(LINK, OTHER_END).set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build()))).up();
        links.add(pair.build()).await.step("cannot make a veth pair")?;
        // Its other end cannot be brought up before the pair is whole.
        links.up(OTHER_END).await?;
        let index = links.index(LINK).await?;
        links.address(index, ADDRESS, PREFIX).await?;
        links.default_route(NOWHERE).await
    })?;
    redirect::apply(&Redirect::pocket(ADDRESS)).step("cannot redirect the program's traffic")
}
