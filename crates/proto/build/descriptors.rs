//! The descriptors of all messages: Envoy's from the package `envoy-types`, ours from `protos/`.

use std::path::PathBuf;
use std::process::Command;

use prost::Message;
use prost_reflect::DescriptorPool;
use prost_types::FileDescriptorSet;

use crate::Outcome;

/// Names the folder of the package `envoy-types`, for builds without `cargo metadata`.
const OVERRIDE: &str = "TULLE_ENVOY_TYPES_DIR";

/// All files in one pool.
pub(crate) fn pool(ours: FileDescriptorSet) -> Outcome<DescriptorPool> {
    let path = package_dir()?.join("src/generated/types.bin");
    let bytes =
        std::fs::read(&path).map_err(|error| format!("descriptors of envoy-types: {}: {error}", path.display()))?;
    let mut pool = DescriptorPool::decode(bytes.as_slice())?;
    for file in ours.file {
        if pool.get_file_by_name(file.name()).is_none() {
            pool.decode_file_descriptor_proto(file.encode_to_vec().as_slice())?;
        }
    }
    Ok(pool)
}

fn package_dir() -> Outcome<PathBuf> {
    println!("cargo:rerun-if-env-changed={OVERRIDE}");
    if let Some(dir) = std::env::var_os(OVERRIDE) {
        return Ok(dir.into());
    }
    let metadata = match cargo_metadata(true) {
        Ok(metadata) => metadata,
        // A lock file may name packages of other platforms that were never fetched.
        Err(_) => cargo_metadata(false)?,
    };
    let packages = metadata["packages"].as_array().ok_or("cargo metadata lists no packages")?;
    let found = packages.iter().find(|package| package["name"] == "envoy-types");
    let manifest = found.and_then(|package| package["manifest_path"].as_str());
    let manifest = PathBuf::from(manifest.ok_or("cargo metadata does not list envoy-types")?);
    Ok(manifest.parent().ok_or("envoy-types has no folder")?.to_owned())
}

fn cargo_metadata(offline: bool) -> Outcome<serde_json::Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target = std::env::var("TARGET")?;
    let mut command = Command::new(cargo);
    command.args(["metadata", "--format-version", "1", "--filter-platform", &target]);
    if offline {
        command.arg("--offline");
    }
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
