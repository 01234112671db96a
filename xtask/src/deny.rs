//! `cargo xtask deny`: licences, bans and sources of the dependency tree, held against `deny.toml` without network.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Deny {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Debug, Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Bans {
    deny_multiple: Vec<String>,
    deny: Vec<Banned>,
}

#[derive(Debug, Deserialize)]
struct Banned {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

/// Checks; true when nothing was found.
pub(crate) fn run() -> Result<bool> {
    let deny: Deny = toml::from_str(&std::fs::read_to_string("deny.toml").context("deny.toml")?)?;
    let metadata = metadata()?;
    let used = used()?;
    let is_used = |package: &&Package| used.contains(&(package.name.clone(), package.version.clone()));
    let packages: Vec<_> = metadata.packages.iter().filter(is_used).collect();
    let mut found = Vec::new();
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in &packages {
        versions.entry(&package.name).or_default().push(&package.version);
        let Some(source) = &package.source else { continue };
        if !source.starts_with("registry+") && !source.starts_with("sparse+") {
            found.push(format!("{} {} comes from {source}", package.name, package.version));
        }
        let licence = package.license.as_deref().unwrap_or("none");
        if !allowed(licence, &deny.licenses.allow) {
            found.push(format!("{} {}: licence {licence} is not in deny.toml", package.name, package.version));
        }
    }
    for banned in deny.bans.deny.iter().filter(|banned| versions.contains_key(banned.name.as_str())) {
        found.push(format!("{} is banned: {}", banned.name, banned.reason));
    }
    for name in &deny.bans.deny_multiple {
        let all = versions.get(name.as_str()).map(Vec::as_slice).unwrap_or_default();
        if all.len() > 1 {
            found.push(format!("{name} is there in {} versions: {}", all.len(), all.join(", ")));
        }
    }
    for line in &found {
        println!("{line}");
    }
    println!("deny: {} packages, {} findings", packages.len(), found.len());
    Ok(found.is_empty())
}

fn metadata() -> Result<Metadata> {
    Ok(serde_json::from_slice(&cargo(&["metadata", "--format-version", "1", "--locked"])?)?)
}

/// Names and versions that are really built on this platform; `cargo metadata` also lists what no feature asks for.
fn used() -> Result<BTreeSet<(String, String)>> {
    let tree = cargo(&["tree", "--workspace", "--prefix", "none", "--format", "{p}", "--locked"])?;
    let package = |line: &str| {
        let mut words = line.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.trim_start_matches('v').to_owned()))
    };
    Ok(String::from_utf8_lossy(&tree).lines().filter_map(package).collect())
}

fn cargo(arguments: &[&str]) -> Result<Vec<u8>> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(program).args(arguments).output()?;
    if !output.status.success() {
        bail!("cargo {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}

/// Whether an SPDX expression can be met with the allowed licences; `/` is the old way to write `OR`.
fn allowed(expression: &str, allow: &BTreeSet<String>) -> bool {
    let text = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let tokens: Vec<&str> = text.split_whitespace().collect();
    let (value, rest) = any(&tokens, allow);
    value && rest.is_empty()
}

fn any<'a>(tokens: &'a [&'a str], allow: &BTreeSet<String>) -> (bool, &'a [&'a str]) {
    let (mut value, mut rest) = all(tokens, allow);
    while let ["OR", more @ ..] = rest {
        let (next, after) = all(more, allow);
        value |= next;
        rest = after;
    }
    (value, rest)
}

fn all<'a>(tokens: &'a [&'a str], allow: &BTreeSet<String>) -> (bool, &'a [&'a str]) {
    let (mut value, mut rest) = one(tokens, allow);
    while let ["AND", more @ ..] = rest {
        let (next, after) = one(more, allow);
        value &= next;
        rest = after;
    }
    (value, rest)
}

fn one<'a>(tokens: &'a [&'a str], allow: &BTreeSet<String>) -> (bool, &'a [&'a str]) {
    match tokens {
        ["(", inner @ ..] => match any(inner, allow) {
            (value, [")", rest @ ..]) => (value, rest),
            (_, rest) => (false, rest),
        },
        [licence, "WITH", exception, rest @ ..] => (allow.contains(&format!("{licence} WITH {exception}")), rest),
        [licence, rest @ ..] => (allow.contains(*licence), rest),
        [] => (false, tokens),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        let allow: BTreeSet<String> = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into();
        for yes in
            ["MIT", "MIT OR GPL-3.0", "GPL-3.0/MIT", "ISC AND (MIT OR GPL-3.0)", "Apache-2.0 WITH LLVM-exception"]
        {
            assert!(allowed(yes, &allow), "{yes}");
        }
        for no in ["GPL-3.0", "MIT AND GPL-3.0", "none", "", "(MIT", "Apache-2.0"] {
            assert!(!allowed(no, &allow), "{no}");
        }
    }
}
