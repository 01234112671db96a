//! System calls for each request, counted by strace.

use std::collections::BTreeMap;

use anyhow::Result;

use super::load::{Load, Work};
use super::peers::Subject;
use super::{Bench, Outcome};
use crate::counted::strace;

/// D10: a plain hop under load, all its threads; beside it the hop with features.
pub(crate) fn system(bench: &Bench) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for (id, part) in [("D10", "plain"), ("D10-features", "features")] {
        let (mut all, mut files) = (BTreeMap::new(), BTreeMap::new());
        for peer in bench.peers.for_parts(&["tulle", "haproxy", "nginx", "envoy"], &[part]) {
            let mut subject = Subject::start(peer, &[part], &bench.setting())?;
            let load = Load { requests: bench.counted, ..bench.requests(&subject) };
            bench.served(&load)?;
            load.run()?;
            all.insert(peer.name.clone(), vec![counted(&subject, &load)?, counted(&subject, &load)?]);
            files.append(&mut subject.files);
        }
        outcomes.push(Outcome::absolute(id, all, files, "calls"));
    }
    Ok(outcomes)
}

/// System calls for each request of a load.
fn counted(subject: &Subject, load: &Load) -> Result<f64> {
    let calls = strace::during(&subject.pids(), || load.run())?;
    #[allow(clippy::cast_precision_loss, reason = "counts of one run")]
    Ok(calls as f64 / load.requests as f64)
}
