//! Interim answers (1xx but 101) of endpoints on their way to the client (`proxy_100_continue`).

use std::cell::RefCell;

use http::{HeaderMap, StatusCode, Version, header};

/// What waits to be sent to the client. Who fills it is held to the limits of a head, so that it stays small.
#[derive(Debug, Default)]
pub struct Interim {
    waiting: RefCell<Vec<(StatusCode, HeaderMap)>>,
}

impl Interim {
    /// One has come.
    pub fn push(&self, status: StatusCode, mut headers: HeaderMap) {
        for name in [header::CONNECTION, header::UPGRADE, header::TRANSFER_ENCODING, header::CONTENT_LENGTH] {
            headers.remove(name);
        }
        self.waiting.borrow_mut().push((status, headers));
    }

    /// What is to be sent now.
    pub fn take(&self) -> Vec<(StatusCode, HeaderMap)> {
        if self.waiting.borrow().is_empty() { Vec::new() } else { self.waiting.take() }
    }

    /// The exchange is over.
    pub fn clear(&self) {
        self.waiting.borrow_mut().clear();
    }
}

/// Whether requests of this version keep their `expect` header, because the endpoint is to answer it.
pub(super) fn keeps_expect(relay: bool, version: Version) -> bool {
    relay && matches!(version, Version::HTTP_11 | Version::HTTP_2)
}
