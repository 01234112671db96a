//! `tulle check`.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::tulle;

const MESH: &str = "\
apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: shop}
spec: {selector: {app: catalog}, ports: [{name: http, port: 80}]}
---
apiVersion: tulle.dev/v1alpha1
kind: Workload
metadata: {name: catalog-1, namespace: shop, labels: {app: catalog}}
spec: {addresses: [127.77.0.9], ports: [{name: http, number: 80}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRIKT}}
";

/// A control plane that ends with the test.
struct Control(Child);

impl Control {
    fn start(directory: &Path) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_tulle"))
            .args(["control", "--config", "mesh.yaml", "--run-dir", "run", "--ca-dir", "ca", "--xds", "127.0.0.1:0"])
            .args(["--api", "127.0.0.1:0", "--metrics", "127.0.0.1:0"])
            .current_dir(directory)
            .stdout(Stdio::null())
            .stderr(fs::File::create(directory.join("log")).unwrap())
            .spawn()
            .unwrap();
        let begin = Instant::now();
        while !directory.join("run/api.sock").exists() || !directory.join("ca/root-cert.pem").exists() {
            let log = || fs::read_to_string(directory.join("log")).unwrap_or_default();
            assert!(begin.elapsed() < Duration::from_secs(20), "no control plane: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Self(child)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What is said below the heading of the control plane: the machine differs.
fn mesh_part(said: &str) -> &str {
    said.find("control plane\n").map_or(said, |at| &said[at..])
}

#[test]
fn the_machine_alone() {
    let directory = tempfile::tempdir().unwrap();
    let said = tulle(directory.path(), &["check", "--pre", "--fail-on", "never", "-o", "json"]);
    let json = said.split_once("--- stdout\n").map(|(_, json)| json).unwrap();
    let document: serde_json::Value = serde_json::from_str(json).unwrap();
    let findings = document["findings"].as_array().unwrap();
    assert!(findings.len() >= 3, "{said}");
    for finding in findings {
        assert_eq!(finding["area"], "this machine");
        assert_eq!(
            finding["state"] == "ok",
            finding["hint"] == "",
            "who is told of trouble is told what to do: {finding}"
        );
    }
}

#[test]
fn no_control_plane() {
    let directory = tempfile::tempdir().unwrap();
    let said = tulle(directory.path(), &["check", "--run-dir", "nowhere", "--ca-dir", "ca"]);
    assert!(said.starts_with("exit 1\n"), "{said}");
    insta::assert_snapshot!(mesh_part(&said), @r#"
    control plane
      × cannot reach the control plane at unix:nowhere/api.sock: No such file or directory (os error 2)
          → start it with `tulle control --config DIR`, or name it with --run-dir or --api; `--pre` checks the machine alone
    certificates
      × cannot read ca/root-cert.pem: No such file or directory (os error 2)
          → give the authority's directory with --ca-dir
    2 wrong, 0 that could be better
    "#);
}

#[test]
fn a_mesh_with_a_mistake() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("mesh.yaml"), MESH).unwrap();
    let _control = Control::start(directory.path());
    let said = tulle(directory.path(), &["check", "--run-dir", "run", "--ca-dir", "ca"]);
    assert!(said.starts_with("exit 1\n"), "{said}");
    insta::assert_snapshot!(mesh_part(&said), @r#"
    control plane
      √ answers at unix:run/api.sock: version 0.1.0, configuration v1
    configuration
      × PeerAuthentication istio-system/default: `STRIKT` is none of UNSET, DISABLE, PERMISSIVE, STRICT (mesh.yaml:14)
          → did you mean STRICT?
    proxies
      ‼ none is connected
          → start programs with `tulle run`, or proxies with a bootstrap for this control plane
      ‼ no proxy is connected for catalog-1.shop
          → start them with `tulle run`, or declare `meshed: false`
    certificates
      √ the root certificate ends in 3649 days
    1 wrong, 2 that could be better
    "#);
    let strict = ["check", "--run-dir", "run", "--ca-dir", "ca", "--cert-days", "5000", "--quiet"];
    assert!(tulle(directory.path(), &strict).contains("× the root certificate ends in 3649 days (--cert-days 5000)"));
}
