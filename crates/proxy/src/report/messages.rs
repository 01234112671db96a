//! Counts gRPC messages in a body as it passes.

/// Bytes before each message: a flag and the length.
const HEAD: u32 = 5;

/// Where in the sequence of messages a body is. A message counts once its head has passed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Messages {
    count: u64,
    /// Bytes of the current head that have passed.
    head: u32,
    /// The length as far as it is known; of a whole head, what is still to pass of the message.
    length: u32,
}

impl Messages {
    /// How many have begun.
    pub fn count(self) -> u64 {
        self.count
    }

    /// Takes the next bytes of the body, however they are cut.
    pub fn pass(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.head < HEAD {
                if self.head > 0 {
                    self.length = self.length << 8 | u32::from(*first);
                }
                self.head += 1;
                bytes = rest;
                if self.head == HEAD {
                    self.count += 1;
                }
            } else {
                let step = bytes.len().min(self.length as usize);
                self.length -= u32::try_from(step).unwrap_or(self.length);
                bytes = bytes.get(step..).unwrap_or_default();
            }
            if self.head == HEAD && self.length == 0 {
                self.head = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_a_body_is_cut_its_messages_are_counted() {
        let body: Vec<u8> =
            [&[0, 0, 0, 0, 0][..], &[0, 0, 0, 0, 3, 7, 7, 7], &[1, 0, 0, 1, 0], &[9; 256], &[0, 0]].concat();
        for size in 1..=body.len() {
            let mut messages = Messages::default();
            body.chunks(size).for_each(|chunk| messages.pass(chunk));
            assert_eq!(messages.count(), 3, "in pieces of {size}");
        }
    }
}
