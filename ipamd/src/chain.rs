//! An error with all that caused it, in one line.

use std::error::Error;

/// The messages of the chain, joined by colons. What a message already contains is not said twice (some libraries
/// repeat their cause), and the whole is bounded: a proxy's error page may be in it.
pub fn chain(error: &dyn Error) -> String {
    const LONGEST: usize = 400;
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    // Some causes are lists over several lines.
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says its cause itself, or leaves that to the reader of the chain.
    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("outer: {0}")]
        Repeats(#[source] std::io::Error),
        #[error("outer")]
        Silent(#[source] std::io::Error),
    }

    fn cause(words: &str) -> std::io::Error {
        std::io::Error::other(words)
    }

    #[test]
    fn a_chain_is_told_once_in_one_line_and_not_at_any_length() {
        assert_eq!(chain(&Outer::Silent(cause("inner"))), "outer: inner");
        assert_eq!(chain(&Outer::Repeats(cause("inner"))), "outer: inner");
        assert_eq!(chain(&cause("one\n  two")), "one two");
        assert_eq!(chain(&cause(&"x".repeat(5000))).chars().count(), 401);
    }
}
