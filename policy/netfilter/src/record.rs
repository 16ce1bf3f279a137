//! How the kernel held our chains when they were right, for the process that comes next.
//!
//! A chain's marker says what was meant, not what is there: without this, a rule that somebody
//! replaced in place while no agent ran would be believed.

use std::collections::BTreeMap;
use std::fmt;

use selvage_policy_core::ruleset::{ChainName, Family};

use crate::content::Fingerprint;
use crate::iptables::Backend;

/// What the first line begins with. The number is that of the form.
const HEAD: &str = "selvage-policy chains 1";

/// Fingerprints of chains in one backend. As text, which is what its `Display` gives, it outlives a
/// process, not a boot: then the chains are gone, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    backend: Backend,
    chains: BTreeMap<(Family, ChainName), Fingerprint>,
}

impl Record {
    /// A record of these chains.
    pub(crate) fn new(
        backend: Backend,
        chains: impl Iterator<Item = (Family, ChainName, Fingerprint)>,
    ) -> Self {
        Self {
            backend,
            chains: chains
                .map(|(family, name, fingerprint)| ((family, name), fingerprint))
                .collect(),
        }
    }

    /// One that knows no chain: whatever is found is doubted.
    #[must_use]
    pub fn empty(backend: Backend) -> Self {
        Self {
            backend,
            chains: BTreeMap::new(),
        }
    }

    /// Reads what was written; `None` when it is no record.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (head, rest) = text.split_once('\n')?;
        let backend = head.strip_prefix(HEAD)?.strip_prefix(' ')?;
        let backend = Backend::ALL.into_iter().find(|it| it.as_str() == backend)?;
        // Written to the end, or not at all.
        let chains = rest.strip_suffix("end\n")?.lines().map(|line| {
            let mut words = line.split(' ');
            let family = match words.next()? {
                "4" => Family::V4,
                "6" => Family::V6,
                _ => return None,
            };
            let name = ChainName::new(words.next()?).ok()?;
            let fingerprint = Fingerprint::parse(words.next()?)?;
            words
                .next()
                .is_none()
                .then_some(((family, name), fingerprint))
        });
        Some(Self {
            backend,
            chains: chains.collect::<Option<_>>()?,
        })
    }

    /// Whether a chain of a family, in a backend, was held like this.
    pub(crate) fn holds(
        &self,
        backend: Backend,
        family: Family,
        name: &ChainName,
        fingerprint: Fingerprint,
    ) -> bool {
        let known = self.chains.get(&(family, name.clone()));
        backend == self.backend && known == Some(&fingerprint)
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEAD} {}", self.backend)?;
        for ((family, name), fingerprint) in &self.chains {
            let family = match family {
                Family::V4 => '4',
                Family::V6 => '6',
            };
            writeln!(f, "{family} {name} {fingerprint}")?;
        }
        f.write_str("end\n")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> ChainName {
        ChainName::new(text).unwrap()
    }

    #[test]
    fn what_is_written_is_read_and_what_is_cut_short_is_no_record() {
        let fingerprint = |text| Fingerprint::parse(text).unwrap();
        let (one, other) = (
            fingerprint("00000000000000ff"),
            fingerprint("fedcba9876543210"),
        );
        let record = Record::new(
            Backend::Nft,
            [
                (Family::V4, name("selvage-to"), one),
                (Family::V6, name("selvage-to"), other),
            ]
            .into_iter(),
        );
        let text = record.to_string();
        assert_eq!(Record::parse(&text), Some(record.clone()));
        for end in 0..text.len() {
            assert_eq!(Record::parse(&text[..end]), None, "{end}");
        }
        let holds = |backend, family, fingerprint| {
            record.holds(backend, family, &name("selvage-to"), fingerprint)
        };
        assert!(holds(Backend::Nft, Family::V4, one));
        assert!(!holds(Backend::Nft, Family::V4, other));
        assert!(!holds(Backend::Nft, Family::V6, one));
        assert!(!holds(Backend::Legacy, Family::V4, one));
        assert!(!record.holds(Backend::Nft, Family::V4, &name("selvage-from"), one));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reading_panic(text in "(selvage-policy chains 1 nft\n)?.{0,80}(end\n)?") {
            let _ = Record::parse(&text);
        }
    }
}
