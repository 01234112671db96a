//! The step about real Envoys that stand in for our proxy: each serves and calls over mTLS with our proxies.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;

use super::until;
use crate::demo::cast::Part;
use crate::demo::scrape;
use crate::demo::world::World;

/// Requests that must have gone each way.
const ENOUGH: u64 = 5;

/// Every stand-in has served requests, and made some, over TLS with a certificate from our authority: by its own numbers.
pub(super) async fn stand_ins(world: &Rc<World>) -> anyhow::Result<String> {
    let mut said = Vec::new();
    for (name, _) in &world.wish.envoys {
        let (_, part) = Part::meshed().find(|(_, part)| part.name == name).context("no such part")?;
        said.push(stand_in(world, part).await?);
    }
    Ok(said.join("; "))
}

async fn stand_in(world: &World, part: &Part) -> anyhow::Result<String> {
    let info = scrape::get(&world.place.admin(part.name), "/server_info").await?;
    let info: serde_json::Value = serde_json::from_str(&info)?;
    let version = info["version"].as_str().unwrap_or_default();
    // `HASH/VERSION/STATUS/BUILD/TLS`; only Envoy itself is built with these libraries.
    let number = version.split('/').nth(1).filter(|_| version.contains("BoringSSL"));
    let number = number.with_context(|| format!("the proxy of {} is no Envoy: {version}", part.name))?;
    let seen = RefCell::new((0, Vec::new()));
    until(Duration::from_secs(20), || async {
        let page = scrape::get(&world.place.admin(part.name), "/stats").await.unwrap_or_default();
        let calls: Vec<(&str, u64)> = part.calls.iter().map(|name| (*name, called(&page, name))).collect();
        let served = served(&page);
        let lacking = calls.iter().find(|(_, count)| *count < ENOUGH).copied();
        *seen.borrow_mut() = (served, calls);
        match lacking {
            _ if part.service().is_some() && served < ENOUGH => {
                Err(format!("the Envoy of {} served {served} requests over mTLS", part.name))
            }
            Some((name, count)) => Err(format!("the Envoy of {} called {name} {count} times over mTLS", part.name)),
            None => Ok(()),
        }
    })
    .await?;
    let (served, calls) = seen.into_inner();
    let calls: String = calls.iter().map(|(name, count)| format!(", called {name} {count} times")).collect();
    Ok(format!("the proxy of {} is Envoy {number}: served {served} requests{calls}, over mTLS", part.name))
}

/// Good answers to requests that came in, if any came over TLS.
fn served(page: &str) -> u64 {
    let handshakes = counted(page, |name| name.starts_with("listener.") && name.ends_with(".ssl.handshake"));
    let good = counted(page, |name| name.starts_with("http.inbound") && name.ends_with(".downstream_rq_2xx"));
    if handshakes > 0 { good } else { 0 }
}

/// Good answers of a service, if its cluster speaks TLS.
fn called(page: &str, service: &str) -> u64 {
    let of = |end: &str| {
        let host = format!("||{service}.");
        // The same numbers stand by the side from which a request came as well.
        let twice = |name: &str| name.contains(".internal.") || name.contains(".external.");
        let own = |name: &str| name.starts_with("cluster.outbound") && name.contains(&host) && name.ends_with(end);
        counted(page, |name| own(name) && !twice(name))
    };
    if of(".ssl.handshake") > 0 { of(".upstream_rq_2xx") } else { 0 }
}

/// The sum of counters in Envoy's own words, `NAME: VALUE`. Its Prometheus page takes names with dots in them apart.
fn counted(page: &str, wanted: impl Fn(&str) -> bool) -> u64 {
    let lines = page.lines().filter_map(|line| line.rsplit_once(": "));
    lines.filter(|(name, _)| wanted(name)).filter_map(|(_, value)| value.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envoys_own_words_are_understood() {
        let page = "cluster.outbound|9090||payments.shop.svc.cluster.local.ssl.handshake: 2\n\
                    cluster.outbound|9090||payments.shop.svc.cluster.local.upstream_rq_2xx: 7\n\
                    cluster.outbound|9090||payments.shop.svc.cluster.local.internal.upstream_rq_2xx: 7\n\
                    cluster.outbound|8080||plain.shop.svc.cluster.local.upstream_rq_2xx: 7\n\
                    http.inbound_0.0.0.0_8080.downstream_rq_2xx: 99\nhttp.admin.downstream_rq_2xx: 5\n\
                    listener.127.77.0.8_8080.ssl.handshake: 1\nlistener.x.length_ms: P0(nan,1) P25(nan,2)\n";
        assert_eq!((served(page), called(page, "payments"), called(page, "plain")), (99, 7, 0));
    }
}
