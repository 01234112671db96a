//! Links, addresses and routes of a network namespace, over netlink.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use crate::enter::{EnterError, Step};

/// The kernel's links, addresses and routes of this thread's network namespace.
pub(crate) struct Links {
    handle: Handle,
}

impl Links {
    pub(crate) fn open() -> Result<Self, EnterError> {
        let (connection, handle, _) = rtnetlink::new_connection().step("cannot speak netlink")?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    pub(crate) async fn add(&self, link: rtnetlink::packet_route::link::LinkMessage) -> io::Result<()> {
        self.handle.link().add(link).execute().await.map_err(io::Error::other)
    }

    pub(crate) async fn index(&self, name: &str) -> Result<u32, EnterError> {
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        let link = found.try_next().await.map_err(io::Error::other).step(format!("cannot find the link {name}"))?;
        let link = link.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
        Ok(link.step(format!("cannot find the link {name}"))?.header.index)
    }

    pub(crate) async fn up(&self, name: &str) -> Result<(), EnterError> {
        let index = self.index(name).await?;
        let link = LinkUnspec::new_with_index(index).up().build();
        let done = self.handle.link().set(link).execute().await.map_err(io::Error::other);
        done.step(format!("cannot bring {name} up"))
    }

    pub(crate) async fn address(&self, index: u32, address: Ipv4Addr, prefix: u8) -> Result<(), EnterError> {
        let done = self.handle.address().add(index, IpAddr::V4(address), prefix).execute().await;
        done.map_err(io::Error::other).step(format!("cannot add the address {address}"))
    }

    pub(crate) async fn default_route(&self, gateway: Ipv4Addr) -> Result<(), EnterError> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build();
        let done = self.handle.route().add(route).execute().await.map_err(io::Error::other);
        done.step(format!("cannot route through {gateway}"))
    }
}
