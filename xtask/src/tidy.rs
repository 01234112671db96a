//! `cargo xtask tidy`: rules of this repository that no other linter knows.

use std::process::Command;

use anyhow::{Result, bail};

/// Files longer than this are split.
const MOST_LINES: usize = 800;

/// Checks; true when nothing was found.
pub(crate) fn run() -> Result<bool> {
    let mut found = Vec::new();
    let files = files()?;
    for file in &files {
        let Ok(text) = std::fs::read_to_string(file) else { continue };
        check(file, &text, &mut found);
    }
    for line in &found {
        println!("{line}");
    }
    println!("tidy: {} files, {} findings", files.len(), found.len());
    Ok(found.is_empty())
}

fn files() -> Result<Vec<String>> {
    let output = Command::new("git").args(["ls-files"]).output()?;
    if !output.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

fn check(file: &str, text: &str, found: &mut Vec<String>) {
    let rust = file.ends_with(".rs");
    if rust && text.lines().count() > MOST_LINES {
        found.push(format!("{file}: over {MOST_LINES} lines; split it"));
    }
    if rust && !text.starts_with("//!") && !text.starts_with("#!") {
        found.push(format!("{file}: begin with `//!` and say what the file is for"));
    }
    for module in ["common", "util", "utils", "helpers", "manager", "misc"] {
        if rust && (file.ends_with(&format!("/{module}.rs")) || file.contains(&format!("/{module}/"))) {
            found.push(format!("{file}: no module is called `{module}`; name what is in it"));
        }
    }
    for (number, line) in text.lines().enumerate() {
        let place = || format!("{file}:{}", number + 1);
        if rust && line.contains("allow(") && line.trim_start().starts_with("#") && !has_reason(text, number) {
            found.push(format!("{}: an `allow` needs a `reason`", place()));
        }
        for word in ["TODO", "FIXME", "XXX"] {
            if rust && line.contains(&format!("// {word}")) {
                found.push(format!("{}: {word}", place()));
            }
        }
        // Seeds of fuzz targets are bytes, not text.
        if line.ends_with(' ') && !file.ends_with(".md") && !file.starts_with("fuzz/corpus/") {
            found.push(format!("{}: white space at the end", place()));
        }
    }
}

/// Whether the attribute that begins on this line gives a reason within its few lines.
fn has_reason(text: &str, number: usize) -> bool {
    text.lines().skip(number).take(6).take_while(|line| !line.trim_end().ends_with(";")).any(|l| l.contains("reason"))
}
