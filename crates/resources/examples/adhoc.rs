use std::io::Read;
fn main() {
    let mut json = false;
    let mut files = vec![];
    for a in std::env::args().skip(1) {
        if a == "--json" { json = true } else { files.push(a) }
    }
    for f in files {
        let mut text = String::new();
        if f == "-" {
            std::io::stdin().read_to_string(&mut text).unwrap();
        } else {
            text = std::fs::read_to_string(&f).unwrap();
        }
        let p = resources::parse(&text, &resources::ParseOptions::of_file(&f));
        if json {
            println!(
                "{}",
                serde_json::json!({"file": f, "entries": p.entries.len(), "diagnostics": p.diagnostics.iter().map(|d| serde_json::json!({"code": d.code.to_string(), "severity": d.severity, "message": d.message, "text": d.to_string(), "object": d.object})).collect::<Vec<_>>()})
            );
        } else {
            for d in &p.diagnostics {
                println!("{}", resources::render(d, Some(&text), false));
            }
            println!("{f}: {} entries", p.entries.len());
        }
    }
}
