//! Sickness on demand: a file says how an instance misbehaves, for as long as the file exists.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// The file's content. All fields may be absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Symptoms {
    /// Share of requests answered with 500, 0 to 1.
    errors: f64,
    /// Share of requests answered late, 0 to 1.
    slow: f64,
    /// How late, in milliseconds.
    slow_ms: u64,
}

/// Reads the file anew for every request: it is small, and the demo is not a benchmark.
#[derive(Debug)]
pub(super) struct Sick {
    file: Option<PathBuf>,
}

impl Sick {
    pub(super) fn new(file: Option<PathBuf>) -> Self {
        Self { file }
    }

    fn symptoms(&self) -> Symptoms {
        let text = self.file.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
        text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    }

    /// Waits if this request is one of the slow ones; true = it must fail.
    pub(super) async fn strikes(&self) -> bool {
        let symptoms = self.symptoms();
        if symptoms.slow > 0.0 && rand::random::<f64>() < symptoms.slow {
            tokio::time::sleep(Duration::from_millis(symptoms.slow_ms)).await;
        }
        symptoms.errors > 0.0 && rand::random::<f64>() < symptoms.errors
    }
}
