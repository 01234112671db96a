//! A network of our own: a bridge, and for each workload a network namespace that hangs on it by a veth pair.
//!
//! All of it lives in the network namespace of the process that builds it, and dies with that namespace's last process.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth};
use rustix::mount::mount_bind;
use rustix::thread::UnshareFlags;

use crate::enter::{EnterError, Step, join, unshare};
use crate::links::Links;
use crate::redirect::{self, Redirect};

/// The bridge's name.
const BRIDGE: &str = "tulle0";
/// The workload's end of its pair.
const WORKLOAD_LINK: &str = "eth0";

/// A network to build.
#[derive(Debug, Clone)]
pub struct Segment {
    /// The bridge's own address, which is the workloads' gateway.
    pub gateway: Ipv4Addr,
    /// Length of the network's prefix.
    pub prefix: u8,
    /// Where the namespaces are bound to files: `DIR/NAME`.
    pub dir: PathBuf,
}

/// A workload to hang on it.
#[derive(Debug, Clone)]
pub struct Member {
    /// Name, also of the file; unique.
    pub name: String,
    /// Address, inside the network's prefix.
    pub address: Ipv4Addr,
    /// How its traffic is redirected; `None` = not at all.
    pub redirect: Option<Redirect>,
}

impl Segment {
    /// The file a member's namespace is bound to.
    pub fn namespace(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Builds bridge and namespaces in this process's network namespace, which must be one of our own.
    pub async fn build(&self, members: &[Member]) -> Result<(), EnterError> {
        std::fs::create_dir_all(&self.dir).step(format!("cannot make {}", self.dir.display()))?;
        let links = Links::open()?;
        links.up("lo").await?;
        links.add(LinkBridge::new(BRIDGE).up().build()).await.step("cannot make a bridge")?;
        let bridge = links.index(BRIDGE).await?;
        links.address(bridge, self.gateway, self.prefix).await?;
        for (at, member) in members.iter().enumerate() {
            let namespace = self.make_namespace(&member.name)?;
            let peer = LinkMessageBuilder::<LinkUnspec>::new().name(WORKLOAD_LINK).setns_by_fd(namespace.as_raw_fd());
            let pair = LinkVeth::new(&format!("tulle-w{at}"), WORKLOAD_LINK)
                .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())))
                .controller(bridge)
                .up();
            links.add(pair.build()).await.step(format!("cannot make a veth pair for {}", member.name))?;
        }
        self.settle_all(members)
    }

    /// A new network namespace, bound to its file.
    fn make_namespace(&self, name: &str) -> Result<File, EnterError> {
        let path = self.namespace(name);
        File::create(&path).step(format!("cannot make {}", path.display()))?;
        // The thread that makes the namespace ends; the file keeps it.
        in_thread(move || {
            unshare(UnshareFlags::NEWNET).step("cannot make a network namespace")?;
            mount_bind("/proc/thread-self/ns/net", &path).step("cannot bind a network namespace to a file")?;
            File::open(&path).step(format!("cannot open {}", path.display()))
        })
    }

    /// Sets every member up from inside, all at the same time.
    fn settle_all(&self, members: &[Member]) -> Result<(), EnterError> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = members.iter().map(|member| scope.spawn(|| self.settle(member))).collect();
            threads.into_iter().try_for_each(joined)
        })
    }

    /// Runs in a thread of its own, which ends inside the member's namespace.
    fn settle(&self, member: &Member) -> Result<(), EnterError> {
        join(&self.namespace(&member.name))?;
        // Only IPv4 is redirected, so there must be no other way out. A read-only /proc/sys leaves link-local
        // addresses, which lead nowhere.
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().step("cannot start")?;
        runtime.block_on(async {
            let links = Links::open()?;
            links.up("lo").await?;
            let index = links.index(WORKLOAD_LINK).await?;
            links.address(index, member.address, self.prefix).await?;
            links.up(WORKLOAD_LINK).await?;
            links.default_route(self.gateway).await
        })?;
        match &member.redirect {
            Some(redirect) => redirect::apply(redirect).step(format!("cannot redirect the traffic of {}", member.name)),
            None => Ok(()),
        }
    }
}

/// Runs something in a thread that is thrown away, and its namespaces with it.
pub(crate) fn in_thread<T: Send>(work: impl FnOnce() -> Result<T, EnterError> + Send) -> Result<T, EnterError> {
    std::thread::scope(|scope| joined(scope.spawn(work)))
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T, EnterError>>) -> Result<T, EnterError> {
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")).step("cannot work in a namespace"))
}

/// Runs something inside the network namespace bound to a file, in a thread of its own.
pub fn inside<T: Send>(namespace: &Path, work: impl FnOnce() -> io::Result<T> + Send) -> Result<T, EnterError> {
    in_thread(|| {
        join(namespace)?;
        work().step(format!("inside {}", namespace.display()))
    })
}
