//! Compiles Istio's small interfaces in `protos/` (no `protoc` needed).

use std::error::Error;
use std::path::PathBuf;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    println!("cargo:rerun-if-changed=protos");
    println!("cargo:rerun-if-changed=build.rs");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    compile_istio(&out)
}

/// Generates the messages, clients and servers of `protos/*.proto`.
fn compile_istio(out: &std::path::Path) -> Outcome<()> {
    let files = ["istio_auth.proto"];
    let set = protox::compile(files, ["protos"])?;
    tonic_prost_build::configure()
        .out_dir(out)
        .build_client(true)
        .build_server(true)
        .compile_well_known_types(true)
        .extern_path(".google.protobuf", "::envoy_types::pb::google::protobuf")
        .compile_fds(set)?;
    Ok(())
}
