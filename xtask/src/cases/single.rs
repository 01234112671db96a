//! Tables about one proxy with a bootstrap of its own.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use testkit::single::Single;
use testkit::table;
use testkit::world::ProxyProgram;
use testkit::xds::{Case, Table};

use super::{Args, Count, Judge, ask, expect, health};

/// Whether a file holds such a table: it stands in a folder `xds`.
pub(crate) fn is_table(file: &Path) -> bool {
    file.parent().is_some_and(|parent| parent.ends_with("xds"))
}

/// Runs a table; prints a line for each case that fails.
pub(super) async fn run(file: &Path, args: &Args, program: &ProxyProgram) -> Result<Count> {
    let table: Table = table::read(file)?;
    let mut count = Count::default();
    let wanted = |case: &&Case| {
        let ours = case.only_ours.is_none() || args.judge == Judge::Tulle;
        ours && args.only.as_ref().is_none_or(|text| case.id.contains(text.as_str()))
    };
    let mut ids: Vec<&str> = Vec::new();
    for case in table.cases.iter().filter(wanted) {
        if !ids.contains(&case.bootstrap.as_str()) {
            ids.push(&case.bootstrap);
        }
    }
    for id in ids {
        let single = Single::start(&table, id, program).await;
        for case in table.cases.iter().filter(wanted).filter(|case| case.bootstrap == id) {
            let wrong = match &single {
                Err(error) => vec![format!("{error:#}")],
                Ok(single) => one(single, case).await.unwrap_or_else(|error| vec![format!("{error:#}")]),
            };
            if wrong.is_empty() {
                count.passed += 1;
                continue;
            }
            count.failed += 1;
            println!("FAILED {} ({}): {}", case.id, case.why, wrong.join("; "));
            if let (true, Ok(single)) = (args.logs, &single) {
                println!("  the proxy said:\n    {}", single.said());
            }
        }
        if let Ok(single) = single {
            single.end().await;
        }
    }
    println!("{}: {} passed, {} failed", table.table, count.passed, count.failed);
    Ok(count)
}

async fn one(single: &Single, case: &Case) -> Result<Vec<String>> {
    if let Some((name, content)) = &case.write {
        // Renamed into place, as those who watch files expect.
        let fresh = single.file(&format!("{name}.fresh"));
        std::fs::write(&fresh, content)?;
        std::fs::rename(fresh, single.file(name))?;
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    if !case.gives.is_empty() || !case.takes.is_empty() {
        single.change(&case.gives, &case.takes).await?;
        // Workers hear of it a little later.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let at = case.at()?;
    for _ in 0..case.repeat.unwrap_or(1) {
        single.log().clear();
        let answers = ask::directly(at, &case.request, &case.expect).await?;
        let wrong = expect::check(&case.expect, Some(&case.request), &answers, single.log());
        if !wrong.is_empty() {
            return Ok(wrong);
        }
    }
    let mut wrong = files(single, case).await;
    if case.expect.stats_min.is_some() || case.expect.stats_max.is_some() {
        wrong.extend(health::numbers(Single::ADMIN, &case.expect).await?);
    }
    for (name, texts) in &case.files_without {
        let content = std::fs::read_to_string(single.file(name)).unwrap_or_default();
        let there = texts.iter().filter(|text| content.contains(text.as_str()));
        wrong.extend(there.map(|text| format!("{name} has {text:?}")));
    }
    for (name, mode) in &case.modes {
        let seen = std::fs::metadata(single.file(name))?.permissions().mode() & 0o7777;
        if u32::from_str_radix(mode, 8)? != seen {
            wrong.push(format!("{name} has the mode {seen:o}, must have {mode}"));
        }
    }
    Ok(wrong)
}

/// Files are written some time after the answer.
async fn files(single: &Single, case: &Case) -> Vec<String> {
    let patience = Instant::now() + Duration::from_secs(3);
    loop {
        let missing: Vec<String> = case
            .files
            .iter()
            .flat_map(|(name, texts)| {
                let content = std::fs::read_to_string(single.file(name)).unwrap_or_default();
                let missing = texts.iter().filter(|text| !content.contains(text.as_str()));
                let shown: String = content.chars().rev().take(300).collect::<Vec<_>>().into_iter().rev().collect();
                missing.map(|text| format!("{name} has no {text:?}: {shown:?}")).collect::<Vec<_>>()
            })
            .collect();
        if missing.is_empty() || Instant::now() > patience {
            return missing;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
