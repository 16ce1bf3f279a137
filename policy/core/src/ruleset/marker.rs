//! How a chain is recognised after a restart: a hash of its content, kept in the chain itself.

use std::fmt;
use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use super::Chain;
use crate::render::rule_text;

/// How every marker's comment begins.
const COMMENT_PREFIX: &str = "selvage:";

/// 8 bytes: a chain is rewritten when content and hash differ, never on trust of a collision at random.
const HASH_BYTES: usize = 8;

/// The first bytes of SHA-256 over a chain's rules as text, in hex.
///
/// It stands in a comment on an unreachable rule at the end of the chain: one comment a chain and
/// none on a packet's way, since comments double the size of a table and cost 25 ns each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Marker(u64);

impl Marker {
    pub(super) fn of(chain: &Chain) -> Self {
        let mut hasher = Sha256::new();
        for rule in chain.rules() {
            hasher.update(rule_text(rule));
            hasher.update("\n");
        }
        let mut first = [0; HASH_BYTES];
        first.copy_from_slice(&hasher.finalize()[..HASH_BYTES]);
        Self(u64::from_be_bytes(first))
    }

    /// Reads the comment of a rule; `None` when it is no marker of ours.
    #[must_use]
    pub fn from_comment(comment: &str) -> Option<Self> {
        let hash = comment.strip_prefix(COMMENT_PREFIX)?;
        let well_formed = hash.len() == HASH_BYTES * 2
            && hash
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let number = u64::from_str_radix(hash, 16).ok();
        number.filter(|_| well_formed).map(Self)
    }
}

impl fmt::Display for Marker {
    /// The comment's text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{COMMENT_PREFIX}{:016x}", self.0)
    }
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes any text");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::Action;

    #[test]
    fn a_marker_is_read_back_and_nothing_else_is_taken_for_one() {
        let marker = Chain::ending_in(Action::Drop, Vec::new()).marker();
        assert_eq!(Marker::from_comment(&marker.to_string()), Some(marker));
        for other in [
            "",
            "selvage:",
            "selvage:0",
            "cali:0123456789abcdef",
            "selvage:0123456789ABCDEF",
        ] {
            assert_eq!(Marker::from_comment(other), None, "{other:?}");
        }
    }

    #[test]
    fn chains_that_differ_have_different_markers() {
        let allow = Chain::ending_in(Action::Return, Vec::new());
        let deny = Chain::ending_in(Action::Drop, Vec::new());
        assert_ne!(allow.marker(), deny.marker());
    }
}
