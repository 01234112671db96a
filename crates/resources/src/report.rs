//! Collects what is wrong with one document.

use std::cell::{OnceCell, RefCell};
use std::sync::Arc;

use model::{Code, Diagnostic, Label, ObjectKey, Origin, Severity};

use crate::codes;
use crate::node::Span;

/// Most findings about one document: who made the first hundred mistakes will look at the rest later.
const MOST: usize = 100;

/// The findings about one document. Shared by all readers of its fields.
pub(crate) struct Report {
    file: Option<Arc<str>>,
    object: OnceCell<Arc<ObjectKey>>,
    found: RefCell<Vec<Diagnostic>>,
}

impl Report {
    /// Nothing found yet.
    pub(crate) fn new(file: Option<Arc<str>>) -> Self {
        Self { file, object: OnceCell::new(), found: RefCell::new(Vec::new()) }
    }

    /// Says which object the document declares; later findings name it.
    pub(crate) fn name(&self, key: ObjectKey) {
        for finding in self.found.borrow_mut().iter_mut() {
            finding.object.get_or_insert_with(|| Arc::new(key.clone()));
        }
        let _ = self.object.set(Arc::new(key));
    }

    /// The object, named or not.
    pub(crate) fn object(&self) -> Arc<ObjectKey> {
        self.object.get().cloned().unwrap_or_else(|| {
            Arc::new(ObjectKey {
                group: String::new(),
                kind: "document".to_owned(),
                namespace: String::new(),
                name: "?".to_owned(),
            })
        })
    }

    /// The place of a rule of this object.
    pub(crate) fn origin(&self, rule: String, span: Span) -> Origin {
        Origin { object: self.object(), rule, file: self.file.clone(), at: Some(span.start) }
    }

    /// Adds a finding; finish it with the methods of [`Finding`].
    pub(crate) fn add(&self, severity: Severity, code: Code, field: &str, span: Span, message: String) -> Finding<'_> {
        let mut found = self.found.borrow_mut();
        // Whatever else seems wrong with a value of the wrong type follows from that alone.
        let known =
            |finding: &Diagnostic| [codes::WRONG_TYPE, codes::EMPTY].contains(&finding.code) && finding.field == field;
        let enough = found.len() >= MOST && (severity != Severity::Error || has_error(&found));
        if enough || found.iter().rev().take(4).any(known) {
            return Finding { report: self, index: None };
        }
        found.push(Diagnostic {
            code,
            severity,
            message,
            object: self.object.get().cloned(),
            field: field.to_owned(),
            file: self.file.clone(),
            labels: vec![label(span, String::new())],
            help: None,
        });
        Finding { report: self, index: found.len().checked_sub(1) }
    }

    /// Whether the object cannot take effect.
    pub(crate) fn failed(&self) -> bool {
        has_error(&self.found.borrow())
    }

    /// All findings in the order of the text.
    pub(crate) fn into_diagnostics(self) -> Vec<Diagnostic> {
        let mut found = self.found.into_inner();
        found.sort_by_key(|finding| finding.labels.first().map(|label| label.start));
        found
    }
}

fn has_error(found: &[Diagnostic]) -> bool {
    found.iter().any(|finding| finding.severity == Severity::Error)
}

/// A finding just added, to say more about it.
pub(crate) struct Finding<'r> {
    report: &'r Report,
    /// `None` when the finding was not worth keeping.
    index: Option<usize>,
}

impl Finding<'_> {
    /// What to write instead.
    pub(crate) fn help(self, text: impl Into<String>) -> Self {
        self.change(|finding| finding.help = Some(text.into()));
        self
    }

    /// What to say at the first underlined place.
    pub(crate) fn label(self, text: impl Into<String>) -> Self {
        self.change(|finding| {
            if let Some(first) = finding.labels.first_mut() {
                first.text = text.into();
            }
        });
        self
    }

    /// A further place.
    pub(crate) fn also(self, span: Span, text: impl Into<String>) -> Self {
        self.change(|finding| finding.labels.push(label(span, text.into())));
        self
    }

    fn change(&self, change: impl FnOnce(&mut Diagnostic)) {
        if let Some(index) = self.index
            && let Some(finding) = self.report.found.borrow_mut().get_mut(index)
        {
            change(finding);
        }
    }
}

fn label(span: Span, text: String) -> Label {
    Label { start: span.start, length: span.length, text }
}
