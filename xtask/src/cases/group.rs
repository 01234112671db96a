//! Cases that can share one arrangement of the world.

use anyhow::Result;
use testkit::table::{self, Case, Config, Table};
use testkit::topology::{Fixture, PROXY, Placed, Topology, Variant};
use testkit::world::World;

use super::Count;
use super::ask::{self, Answer};
use super::health::{self, Watch};
use super::{expect, statistics};

/// Cases with the same configuration and variant.
#[derive(Debug)]
pub(super) struct Group<'a> {
    config: &'a Config,
    variant: Variant,
    cases: Vec<&'a Case>,
}

/// Groups cases, in the order in which their configurations first appear.
pub(super) fn groups<'a>(table: &'a Table, cases: &[&'a Case]) -> Result<Vec<Group<'a>>> {
    let mut groups: Vec<(String, Group<'a>)> = Vec::new();
    for case in cases {
        let Some(config) = table.configs.get(&case.config) else {
            anyhow::bail!("{}: no configuration `{}`", case.id, case.config);
        };
        let variant = case.request.as_ref().map(|ask| Variant::of(ask, table.backends())).unwrap_or_default();
        let found = groups.iter_mut().find(|(id, group)| *id == case.config && group.variant == variant);
        match found {
            Some((_, group)) => group.cases.push(case),
            None => groups.push((case.config.clone(), Group { config, variant, cases: vec![case] })),
        }
    }
    Ok(groups.into_iter().map(|(_, group)| group).collect())
}

/// Arranges the world for a group and asks its cases; prints a line for each that fails.
pub(super) async fn run(
    world: &mut World,
    fixture: &Fixture,
    group: &Group<'_>,
    logs: bool,
    count: &mut Count,
) -> Result<()> {
    let topology = Topology::lay(fixture, group.config, &group.variant)?;
    let wanted = wanted(&topology, group);
    let place = Place { fixture, config: group.config, topology: &topology, wanted: &wanted };
    let mut arranged = place.arrange(world).await;
    for case in &group.cases {
        let failures = match &arranged {
            Err(error) => vec![format!("{error:#}")],
            Ok(()) => place.run_case(world, case).await,
        };
        if case.request.as_ref().is_some_and(|ask| ask.endpoints_after.is_some() || ask.then_heal.is_some()) {
            arranged = place.arrange(world).await;
        }
        if failures.is_empty() {
            count.passed += 1;
            continue;
        }
        let word = if case.optional { "optional" } else { "FAILED" };
        println!("{word} {} ({}): {}", case.id, case.why, failures.join("; "));
        if logs {
            for id in &wanted {
                println!("  log of {id}:\n    {}", world.proxy_log(id));
            }
        }
        if !case.optional {
            count.failed += 1;
        }
    }
    Ok(())
}

/// One arrangement of the world, to which it returns after a case that changed it.
#[derive(Clone, Copy)]
struct Place<'a> {
    fixture: &'a Fixture,
    config: &'a Config,
    topology: &'a Topology,
    wanted: &'a [String],
}

impl Place<'_> {
    async fn arrange(self, world: &mut World) -> Result<()> {
        if !self.config.endpoints.is_empty() {
            // What proxies have learned of endpoints that behaved otherwise must not count here.
            world.end_proxies().await;
        }
        world.arrange(self.topology, self.wanted).await
    }

    async fn run_case(self, world: &mut World, case: &Case) -> Vec<String> {
        let Some(request) = &case.request else {
            return vec!["the runner has no status conditions to look at".to_owned()];
        };
        if let Err(error) = ask::find_the_sick(self.topology, request).await {
            return vec![format!("{error:#}")];
        }
        let mut failures = Vec::new();
        for _ in 0..case.repeat.unwrap_or(1) {
            world.log().clear();
            match self.ask(world, case, request).await {
                Err(error) => failures.push(format!("{error:#}")),
                Ok(answers) => failures.extend(answers),
            }
            if !failures.is_empty() && case.expect.max_failures.is_none() {
                break;
            }
        }
        failures
    }

    /// Sends what a case asks, with the changes of the world that it names between its rounds.
    async fn ask(self, world: &mut World, case: &Case, request: &table::Ask) -> Result<Vec<String>> {
        let name = if self.topology.bootstrap().is_some() { Some(PROXY) } else { request.from.as_deref() };
        let client = name.and_then(|name| self.topology.workload(name));
        let watched = case.expect.ejected.is_some() || case.expect.ejected_max.is_some();
        let watch = client.filter(|_| watched).map(Watch::begin);
        let mut answers = ask::ask(self.topology, request, &case.expect).await?;
        if let Some(kept) = &request.endpoints_after {
            let left = self.topology.keeping(kept, self.fixture, self.config);
            world.arrange(&left, self.wanted).await?;
            answers.extend(ask::again(&left, request, &case.expect).await?);
        }
        if let Some(names) = &request.then_heal {
            world.heal(self.topology, names.as_slice()).await?;
        }
        answers.extend(ask::afterwards(self.topology, request).await?);
        let mut failures = judge(world, case, &answers);
        if let (Some(client), true) = (client, case.expect.stats_min.is_some() || case.expect.stats_max.is_some()) {
            failures.extend(health::numbers(World::admin(client), &case.expect).await?);
        }
        if let Some(watch) = watch {
            failures.extend(statistics::ejections(&case.expect, &watch.end().await?, self.topology));
        }
        Ok(failures)
    }
}

fn judge(world: &World, case: &Case, answers: &[Answer]) -> Vec<String> {
    let request = case.request.as_ref();
    match &case.expect.any_of {
        None => expect::check(&case.expect, request, answers, world.log()),
        Some(alternatives) => {
            let all: Vec<_> =
                alternatives.iter().map(|expect| expect::check(expect, request, answers, world.log())).collect();
            if all.iter().any(Vec::is_empty) { Vec::new() } else { all.concat() }
        }
    }
}

/// The workloads that these cases can reach, and the clients that ask.
fn wanted(topology: &Topology, group: &Group<'_>) -> Vec<String> {
    let routes = ["VirtualService", "TrafficSplit"];
    let routed = group.config.resources.iter().any(|r| r["kind"].as_str().is_some_and(|kind| routes.contains(&kind)));
    let mut wanted: Vec<String> = Vec::new();
    let mut add = |id: String| {
        if !wanted.contains(&id) {
            wanted.push(id);
        }
    };
    if topology.bootstrap().is_some() {
        return topology.workloads.iter().map(Placed::id).collect();
    }
    topology.asked(group.config).into_iter().for_each(|workload| add(workload.id()));
    for request in group.cases.iter().filter_map(|case| case.request.as_ref()) {
        let clients = [request.from.as_deref(), request.second_client.as_deref()];
        for client in clients.into_iter().flatten().filter_map(|name| topology.workload(name)) {
            add(client.id());
        }
        let namespace = request.from.as_deref().and_then(|name| topology.workload(name)).map(|w| w.namespace.clone());
        let service =
            request.to.as_deref().and_then(|to| topology.service_named(namespace.as_deref().unwrap_or("shop"), to));
        match service {
            Some(service) if !routed => topology.behind(service).for_each(|workload| add(workload.id())),
            // A route may lead to any of them.
            _ => topology
                .workloads
                .iter()
                .filter(|w| !w.client && w.oracle.is_none())
                .for_each(|workload| add(workload.id())),
        }
    }
    wanted
}
