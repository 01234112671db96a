//! What a mesh needs of this machine.

use std::net::TcpListener;
use std::path::Path;

use rustix::process::{Resource, getrlimit};

use super::Finding;

const AREA: &str = "this machine";

/// Open files that a proxy with a few thousand connections needs.
const FILES: u64 = 4096;

pub(super) fn check() -> Vec<Finding> {
    let mut findings = vec![interception(), loopback(), files()];
    findings.extend(proxy_elsewhere());
    findings
}

fn interception() -> Finding {
    if node::probe::is_root() {
        return Finding::well(AREA, "transparent interception: root may make network namespaces");
    }
    let tried = std::env::current_exe().map(|program| node::probe::user_namespaces(&program));
    match tried {
        Ok(Ok(())) => Finding::well(AREA, "transparent interception works without root (user namespaces)"),
        Ok(Err(obstacle)) => Finding::warning(
            AREA,
            format!(
                "no transparent interception without root: {}; explicit loopback addresses are used",
                obstacle.reason
            ),
            obstacle.hint,
        ),
        Err(error) => Finding::warning(
            AREA,
            format!("this program cannot find itself ({error}), so interception was not tried"),
            "start it by its full path",
        ),
    }
}

/// Workloads without namespaces get addresses of their own in 127.0.0.0/8.
fn loopback() -> Finding {
    match TcpListener::bind("127.77.0.1:0") {
        Ok(_) => Finding::well(AREA, "workloads can have loopback addresses of their own (127.77.0.1)"),
        Err(error) => Finding::warning(
            AREA,
            format!("cannot listen on 127.77.0.1: {error}"),
            "only 127.0.0.1 is up here; add the address to the loopback device, or run each workload in a namespace",
        ),
    }
}

fn files() -> Finding {
    let limit = getrlimit(Resource::Nofile);
    match limit.current {
        Some(files) if files < FILES => Finding::warning(
            AREA,
            format!("only {files} files may be open at once: a busy proxy needs {FILES}"),
            format!("ulimit -n {FILES}, or LimitNOFILE= in the unit"),
        ),
        Some(files) => Finding::well(AREA, format!("{files} files may be open at once")),
        None => Finding::well(AREA, "any number of files may be open"),
    }
}

/// Two meshes in front of one program would both redirect its traffic.
fn proxy_elsewhere() -> Option<Finding> {
    let taken = Path::new("/proc/net/tcp").exists() && TcpListener::bind("0.0.0.0:15001").is_err();
    taken.then(|| {
        Finding::warning(
            AREA,
            "port 15001 is taken in this network namespace: a proxy of some mesh intercepts it already",
            "never put two meshes in front of one program; run it in a namespace of its own",
        )
    })
}
