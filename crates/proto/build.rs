//! Compiles Istio's small interfaces in `protos/` (no `protoc` needed), and writes the table of all messages and
//! fields that `schema.rs` reads: names, numbers, kinds, and what `docs/reference/xds.toml` says of each field.

#[path = "build/descriptors.rs"]
mod descriptors;
#[path = "build/surface.rs"]
mod surface;
#[path = "build/table.rs"]
mod table;

use std::error::Error;
use std::path::{Path, PathBuf};

use prost_types::FileDescriptorSet;

type Outcome<T> = Result<T, Box<dyn Error>>;

const SURFACE: &str = "../../docs/reference/xds.toml";

fn main() -> Outcome<()> {
    for path in ["protos", "build", "build.rs", SURFACE] {
        println!("cargo:rerun-if-changed={path}");
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let ours = our_files()?;
    generate(ours.clone(), &out)?;
    let pool = descriptors::pool(ours)?;
    let surface = surface::read(Path::new(SURFACE), &pool)?;
    std::fs::write(out.join("schema.bin"), table::build(&pool, &surface)?)?;
    Ok(())
}

/// The files in `protos/`, compiled.
fn our_files() -> Outcome<FileDescriptorSet> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir("protos")? {
        names.push(entry?.file_name().into_string().map_err(|name| format!("odd file name {}", name.display()))?);
    }
    names.sort();
    Ok(protox::compile(names, ["protos"])?)
}

/// Generates Rust messages, clients and servers.
fn generate(files: FileDescriptorSet, out: &Path) -> Outcome<()> {
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names().type_name_domain(["."], "type.googleapis.com");
    tonic_prost_build::configure()
        .out_dir(out)
        .build_client(true)
        .build_server(true)
        .compile_well_known_types(true)
        .extern_path(".google.protobuf", "::envoy_types::pb::google::protobuf")
        .compile_fds_with_config(files, config)?;
    Ok(())
}
