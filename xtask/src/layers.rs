//! `cargo xtask layers`: the import table of the workspace, held against `layers.toml`.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Layers {
    /// Crate -> workspace crates it may depend on.
    may: BTreeMap<String, BTreeSet<String>>,
    /// Crate -> crates (of anyone) that it must never name.
    never: BTreeMap<String, BTreeSet<String>>,
}

/// Checks; true when every crate keeps to the table.
pub(crate) fn run() -> Result<bool> {
    let layers: Layers = toml::from_str(&std::fs::read_to_string("layers.toml").context("layers.toml")?)?;
    let mut broken = Vec::new();
    let packages = packages()?;
    let own: BTreeSet<&String> = packages.keys().collect();
    for (name, dependencies) in &packages {
        let Some(may) = layers.may.get(name) else {
            broken.push(format!("{name} is not in layers.toml: say which crates it may use"));
            continue;
        };
        for dependency in dependencies.iter().filter(|dependency| own.contains(dependency)) {
            if !may.contains(dependency) && dependency != name {
                broken.push(format!("{name} must not depend on {dependency}"));
            }
        }
        for banned in layers.never.get(name).into_iter().flatten() {
            if dependencies.contains(banned) {
                broken.push(format!("{name} must never depend on {banned}"));
            }
        }
    }
    for line in &broken {
        println!("{line}");
    }
    println!("layers: {} crates, {} broken rules", packages.len(), broken.len());
    Ok(broken.is_empty())
}

/// Workspace crates and their direct dependencies, tests' ones left out.
fn packages() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).args(["metadata", "--format-version", "1", "--no-deps"]).output()?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    Ok(list(&metadata["packages"])
        .iter()
        .map(|package| {
            let dependencies = list(&package["dependencies"])
                .iter()
                .filter(|dependency| dependency["kind"] != "dev")
                .map(|dependency| text(&dependency["name"]))
                .collect();
            (text(&package["name"]), dependencies)
        })
        .collect())
}
