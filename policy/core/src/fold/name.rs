//! What a profile's chain and sets are called: by what they are for, never by what is in them.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use super::Kind;
use crate::index::Profile;
use crate::model::{AddressSet, Direction, NamedPort, PeerSelector};
use crate::ruleset::marker::hex;
use crate::ruleset::{ChainName, Family, SetKind, SetName};

/// 8 bytes of SHA-256 name a chain or a set: profiles of a node are hundreds, not billions.
const NAME_HASH_BYTES: usize = 8;

/// Which set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SetId {
    kind: SetKind,
    names: [SetName; 2],
}

impl SetId {
    pub(super) fn new(profile: &Profile, kind: Kind) -> Self {
        let (kind, purpose, detail) = match kind {
            Kind::Any => (SetKind::Net, 'a', String::new()),
            Kind::Protocol(protocol) => (SetKind::Net, 'n', protocol.to_string()),
            Kind::SinglePorts => (SetKind::NetPort, 'p', String::new()),
            Kind::Range(protocol, ports) => (SetKind::Net, 'r', format!("{protocol} {ports}")),
        };
        let hash = hash(profile, &detail);
        Self::named(kind, letter(profile.direction), purpose, &hash)
    }

    /// The set of all that a selector selects, whoever needs it; with numbers that they call by a
    /// name, if it is about such a port.
    pub(super) fn of_selector(selector: &PeerSelector, named: Option<&NamedPort>) -> Self {
        // Text in it is quoted there, so that two selectors never have the same.
        let text = format!("{selector:?}");
        match named {
            None => Self::shared(SetKind::Net, 's', &text),
            Some(named) => Self::shared(SetKind::NetPort, 'q', &format!("{named} {text}")),
        }
    }

    /// The set of these addresses, whoever needs it.
    pub(super) fn of_blocks(blocks: &AddressSet) -> Self {
        let mut text = String::new();
        for family in [Family::V4, Family::V6] {
            for net in blocks.nets(family) {
                text.push_str(&format!("{net}\n"));
            }
        }
        Self::shared(SetKind::Net, 'b', &text)
    }

    /// `s` stands where a profile's own set has its direction.
    fn shared(kind: SetKind, purpose: char, text: &str) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(text);
        Self::named(
            kind,
            's',
            purpose,
            &hex(&hasher.finalize()[..NAME_HASH_BYTES]),
        )
    }

    fn named(kind: SetKind, owner: char, purpose: char, hash: &str) -> Self {
        let names = [4, 6].map(|digit| {
            SetName::new(&format!("selvage-{owner}{digit}-{purpose}-{hash}"))
                .expect("29 bytes of letters, digits and dashes")
        });
        Self { kind, names }
    }

    /// Its kind.
    pub(crate) fn kind(&self) -> SetKind {
        self.kind
    }

    /// Its name in a family.
    pub(crate) fn name(&self, family: Family) -> &SetName {
        match family {
            Family::V4 => &self.names[0],
            Family::V6 => &self.names[1],
        }
    }
}

pub(super) fn chain(profile: &Profile) -> ChainName {
    let hash = hash(profile, "");
    ChainName::new(&format!("selvage-{}-{hash}", letter(profile.direction)))
        .expect("26 bytes of letters, digits and dashes")
}

fn letter(direction: Direction) -> char {
    match direction {
        Direction::Ingress => 'i',
        Direction::Egress => 'e',
    }
}

/// No two profiles have the same text: names are [`plain`], and a policy's has a slash, a port's none.
fn hash(profile: &Profile, detail: &str) -> String {
    let mut hasher = Sha256::new();
    hasher.update(format!("{} {detail}\n", profile.direction));
    for policy in &profile.policies {
        let (namespace, name) = (plain(policy.namespace.as_str()), plain(&policy.name));
        hasher.update(format!("{namespace}/{name}\n"));
    }
    for (named, numbers) in &profile.ports {
        hasher.update(format!("{named}"));
        for number in numbers {
            hasher.update(format!(" {number}"));
        }
        hasher.update("\n");
    }
    hex(&hasher.finalize()[..NAME_HASH_BYTES])
}

/// A name without what separates names here. The API server takes none that this would change; a
/// line break or a slash that got past it must not make one profile look like another.
fn plain(name: &str) -> String {
    let mut text = String::new();
    for character in name.chars() {
        if character.is_ascii_alphanumeric() || matches!(character, '-' | '.') {
            text.push(character);
        } else {
            write!(text, "%{:x};", u32::from(character)).expect("a String takes any text");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::chain;
    use crate::index::Profile;
    use crate::model::{Direction, NamespaceName, PolicyKey};

    #[test]
    fn no_name_makes_two_profiles_share_a_chain() {
        let of = |policies: &[(&str, &str)]| {
            let key = |&(namespace, name): &(&str, &str)| PolicyKey {
                namespace: NamespaceName::new(namespace),
                name: name.to_owned(),
            };
            chain(&Profile {
                direction: Direction::Ingress,
                policies: policies.iter().map(key).collect(),
                ports: BTreeMap::new(),
            })
        };
        let cases: [[&[(&str, &str)]; 2]; 3] = [
            [&[("n", "a"), ("n", "b")], &[("n", "a\nn/b")]],
            [&[("n/a", "b")], &[("n", "a/b")]],
            [&[("n", "a b")], &[("n", "a%20;b")]],
        ];
        for [one, other] in cases {
            assert_ne!(of(one), of(other), "{one:?} and {other:?}");
        }
    }
}
