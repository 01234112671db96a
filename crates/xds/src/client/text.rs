//! The words of a NACK.

use super::Rejection;

/// Longest `error_detail` that is sent, in bytes: it travels in one message and lands in logs.
const LONGEST: usize = 16 * 1024;

/// One line per rejected resource, `NAME: MESSAGE`, cut at a character boundary when too long.
pub(super) fn nack(rejections: &[Rejection]) -> String {
    let mut text = String::new();
    for (index, rejection) in rejections.iter().enumerate() {
        let line = format!("{}{}: {}", if index == 0 { "" } else { "\n" }, rejection.name, rejection.message);
        if text.len() + line.len() > LONGEST {
            let room = LONGEST.saturating_sub(text.len());
            let cut = (0..=room.min(line.len())).rev().find(|&at| line.is_char_boundary(at)).unwrap_or(0);
            text.push_str(line.get(..cut).unwrap_or_default());
            text.push_str(&format!("\n... and {} more", rejections.len() - index - 1));
            break;
        }
        text.push_str(&line);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejection(name: &str, message: &str) -> Rejection {
        Rejection { name: name.to_owned(), message: message.to_owned() }
    }

    #[test]
    fn a_line_for_each() {
        let text = nack(&[rejection("a", "foo: bad"), rejection("b", "bar: worse")]);
        assert_eq!(text, "a: foo: bad\nb: bar: worse");
    }

    #[test]
    fn too_much_is_cut_between_characters() {
        let text = nack(&[rejection("a", &"ä".repeat(LONGEST)), rejection("b", "x")]);
        assert!(text.len() < LONGEST + 40 && text.ends_with("... and 1 more"), "{}", text.len());
    }
}
