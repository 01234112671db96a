//! Which fields the configurations of the repository's own scenarios set.

use std::path::Path;

use anyhow::{Context, Result, bail};
use compile::{Ads, AdsServer, Mesh, Mode};
use proto::json::{Format, parse_named};
use proto::surface::Coverage;
use proto::type_url::{BOOTSTRAP, message_name};
use resources::ParseOptions;
use testkit::table::{self, Table};
use testkit::topology::{Fixture, Topology, Variant};

use crate::{cases, ci};

/// What files and servers give.
const RESPONSE: &str = "type.googleapis.com/envoy.service.discovery.v3.DiscoveryResponse";

/// All of them.
pub(crate) fn asked() -> Result<Coverage> {
    let mut coverage = Coverage::default();
    for file in ci::scenario_files()? {
        let path = Path::new(&file);
        if cases::single::is_table(path) {
            bootstraps(path, &mut coverage)?;
        } else {
            meshes(path, &mut coverage)?;
        }
    }
    Ok(coverage)
}

/// Bootstraps that a table gives itself.
fn bootstraps(file: &Path, coverage: &mut Coverage) -> Result<()> {
    let table: testkit::xds::Table = table::read(file)?;
    for case in table.cases.iter().filter(|case| !case.gives.is_empty()) {
        let given = testkit::xds::response(&case.gives, Path::new("/run/scenario")).to_string();
        add(RESPONSE, &given, coverage).with_context(|| format!("{}: case `{}`", file.display(), case.id))?;
    }
    for id in table.cases.iter().map(|case| case.bootstrap.as_str()) {
        let text = table.envoy(id, Path::new("/run/scenario"))?.to_string();
        add(BOOTSTRAP, &text, coverage).with_context(|| format!("{}: bootstrap `{id}`", file.display()))?;
        let directory = Path::new("/run/scenario");
        let written = table.files(id, directory).into_iter().map(|(_, content)| content);
        for response in written.chain(table.served(id, directory).map(|served| served.to_string())) {
            add(RESPONSE, &response, coverage).with_context(|| format!("{}: resources `{id}`", file.display()))?;
        }
    }
    Ok(())
}

fn add(message: &str, text: &str, coverage: &mut Coverage) -> Result<()> {
    match parse_named(message_name(message), text, Format::Json) {
        Ok(bytes) => coverage.add(message, &bytes),
        Err(faults) => {
            let faults: Vec<_> = faults.iter().map(|fault| format!("{}: {}", fault.path, fault.message)).collect();
            bail!("{}", faults.join("; "))
        }
    }
    Ok(())
}

/// What the proxies of a mesh get.
fn meshes(file: &Path, coverage: &mut Coverage) -> Result<()> {
    let table: Table = table::read(file)?;
    let fixture: Fixture = table::read(&file.with_file_name("fixtures.yaml"))?;
    for config in table.configs.values() {
        let topology = Topology::lay(&fixture, config, &Variant::default())?;
        if let Some(bootstrap) = topology.bootstrap() {
            add(BOOTSTRAP, &bootstrap.to_string(), coverage).with_context(|| file.display().to_string())?;
            continue;
        }
        let text: String = topology.documents().iter().map(|document| format!("---\n{document}\n")).collect();
        let entries = resources::parse(&text, &ParseOptions::default()).entries;
        let (mesh, _) = Mesh::compile(&entries);
        for key in mesh.workload_keys() {
            for mode in modes() {
                let bootstrap = compile::bootstrap(&mesh, key, &mode).context("a workload")?;
                coverage.add(BOOTSTRAP, &prost::Message::encode_to_vec(&bootstrap));
            }
        }
    }
    Ok(())
}

/// From files, as the tables run; and by ADS, as the tests of the whole product run.
fn modes() -> [Mode; 2] {
    let server = AdsServer::Socket {
        at: ([127, 0, 0, 1], 15012).into(),
        identity: "spiffe://cluster.local/ns/istio-system/sa/tulle".to_owned(),
        server_name: "tulle".to_owned(),
    };
    [
        Mode::Static { certs_dir: "certs".to_owned(), admin: None },
        Mode::Dynamic { admin: None, ads: Ads { server, delta: true }, sds_path: "/run/sds".to_owned() },
    ]
}
