//! A dedicated client for statistics: many requests as fast as they are answered, along the visitor's own way.

use std::rc::Rc;

use anyhow::Context;

use super::cast::Part;
use super::record::{BURST, Entry, VISITOR};
use super::world::World;

impl World {
    /// Asks the catalog `requests` times from the visitor's place, and gives back what was seen of each.
    ///
    /// # Errors
    /// When the client cannot be started, or ends otherwise than well.
    pub(crate) async fn burst(self: &Rc<Self>, requests: usize) -> anyhow::Result<Vec<Entry>> {
        let (number, part) = Part::numbered().find(|(_, part)| part.name == VISITOR).context("no visitor")?;
        let args = ["demo", "app", "burst", "--requests", &requests.to_string()].map(str::to_owned);
        let mut program = self.program(number, part, args.to_vec());
        program.log = self.place.of(part.name).join("burst.log");
        let mut child = program.spawn(self.myself())?;
        let output = child.stdout.take().context("the burst's output")?;
        let before = self.record.of(BURST).len();
        self.record.clone().follow(BURST, output).await;
        let status = child.wait().await?;
        anyhow::ensure!(status.success(), "the burst ended with {status}");
        let seen = self.record.of(BURST).split_off(before);
        anyhow::ensure!(seen.len() == requests, "the burst told of {} requests, not {requests}", seen.len());
        Ok(seen)
    }
}
