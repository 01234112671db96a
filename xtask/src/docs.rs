//! `cargo xtask docs`: reference pages that are written from code, never by hand.

use std::fmt::Write;

use anyhow::{Context, Result};

use crate::asked;

/// Write the reference pages that come from code, or check that they are up to date
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask docs\n  cargo xtask docs --check")]
pub(crate) struct Args {
    /// Compare with what is committed instead of writing
    #[arg(long)]
    check: bool,
}

type Page = (&'static str, fn() -> Result<String>);

const PAGES: &[Page] = &[("docs/reference/xds.md", surface), ("docs/reference/diagnostics.md", || Ok(diagnostics()))];

/// Writes or compares; true when all is well.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let mut stale = 0;
    for (path, page) in PAGES {
        let text = page()?;
        if !args.check {
            std::fs::write(path, text).with_context(|| (*path).to_owned())?;
        } else if std::fs::read_to_string(path).unwrap_or_default() != text {
            println!("{path} is not what the code says: run `cargo xtask docs` and commit it");
            stale += 1;
        }
    }
    let unasked = asked::asked()?.unasked();
    for (message, field) in &unasked {
        println!(
            "{message}.{field} is honoured and no scenario sets it: write one, or say that it is ignored or refused"
        );
    }
    println!("docs: {} pages, {stale} stale, {} fields without a scenario", PAGES.len(), unasked.len());
    Ok(stale == 0 && unasked.is_empty())
}

/// What the proxy honours, and what of it the scenarios ask.
fn surface() -> Result<String> {
    Ok(proto::surface::reference_page(&asked::asked()?))
}

/// Every diagnostic code, as `tulle explain` tells it.
fn diagnostics() -> String {
    let mut page = String::from(
        "# Diagnostics\n\nWritten by `cargo xtask docs` from `crates/resources/src/codes.rs`; `tulle explain CODE` prints \
         the same.\n",
    );
    for entry in resources::codes::TABLE {
        let _ = write!(page, "\n## {}: {}\n\n{}\n", entry.code, entry.title, entry.text.trim());
        if !entry.example.trim().is_empty() {
            let _ = write!(page, "\n```yaml\n{}\n```\n", entry.example.trim_end());
        }
    }
    page
}
