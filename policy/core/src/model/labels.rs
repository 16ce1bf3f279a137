//! Labels and selectors, with exactly Kubernetes's meaning.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use thiserror::Error;

/// Keys and values that an object carries.
///
/// *Shape*: one text, each key and each value followed by a zero byte, in order of keys. A cluster
/// has as many as it has pods, most of them equal: see [`super::Pool`].
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(pub(super) Arc<str>);

/// Ends a key or a value. The API server lets none hold it.
const END: char = '\0';

impl Labels {
    /// The value of a label, if the object has it.
    ///
    /// *Cost*: linear in the labels' text.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        let mut rest = &*self.0;
        loop {
            let (name, behind) = first(rest)?;
            let (value, behind) = first(behind)?;
            if name == key {
                return Some(value);
            }
            rest = behind;
        }
    }
}

/// The first key or value, and what is behind it. They are short: a search that is made for long
/// texts takes several times as long.
fn first(text: &str) -> Option<(&str, &str)> {
    let end = text.bytes().position(|byte| byte == 0)?;
    Some((&text[..end], &text[end + END.len_utf8()..]))
}

/// A zero byte, which only an object that no API server has checked can hold, stays what it is to
/// selectors: they name no such key, and no such value.
impl From<BTreeMap<String, String>> for Labels {
    fn from(labels: BTreeMap<String, String>) -> Self {
        let lengths = labels
            .iter()
            .map(|(key, value)| key.len() + value.len() + 2);
        let mut text = String::with_capacity(lengths.sum());
        for (key, value) in labels.iter().filter(|(key, _)| !key.contains(END)) {
            text.push_str(key);
            text.push(END);
            if value.contains(END) {
                text.push(char::REPLACEMENT_CHARACTER);
            } else {
                text.push_str(value);
            }
            text.push(END);
        }
        Self(text.into())
    }
}

/// Why a label selector cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadSelector {
    /// An operator that is none of the four.
    #[error("label {key:?}: operator {operator:?} is none of In, NotIn, Exists, DoesNotExist")]
    Operator {
        /// The label's key.
        key: String,
        /// What stands there.
        operator: String,
    },
    /// `In` or `NotIn` without values: the API server refuses them.
    #[error("label {key:?}: {operator} without values")]
    NoValues {
        /// The label's key.
        key: String,
        /// Which operator.
        operator: String,
    },
    /// `Exists` or `DoesNotExist` with values: the API server refuses them.
    #[error("label {key:?}: {operator} takes no values")]
    Values {
        /// The label's key.
        key: String,
        /// Which operator.
        operator: String,
    },
    /// A key that no object can carry.
    #[error("{0:?} is no label key")]
    Key(String),
    /// A value that no object can carry.
    #[error("label {key:?}: {value:?} is no label value")]
    Value {
        /// The label's key.
        key: String,
        /// What stands there.
        value: String,
    },
}

/// One condition on one label.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Requirement {
    /// The label is there with one of these values.
    In(Box<str>, Values),
    /// The label isn't there, or has another value.
    NotIn(Box<str>, Values),
    /// The label is there.
    Exists(Box<str>),
    /// The label isn't there.
    DoesNotExist(Box<str>),
}

/// Values of a label, in order and each once.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Values(Box<[Box<str>]>);

impl Values {
    fn contains(&self, value: &str) -> bool {
        self.0
            .binary_search_by(|held| held.as_ref().cmp(value))
            .is_ok()
    }
}

impl FromIterator<Box<str>> for Values {
    fn from_iter<I: IntoIterator<Item = Box<str>>>(values: I) -> Self {
        let values: BTreeSet<Box<str>> = values.into_iter().collect();
        Self(values.into_iter().collect())
    }
}

/// A set of conditions, all of which must hold.
///
/// *Shape*: in canonical order, so that two ways to write the same conditions are equal. Without
/// conditions it selects everything. A cluster has several in each policy, many of them equal: see
/// [`super::Pool`].
///
/// *Cost*: a clone is a counter.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector(pub(super) Arc<[Requirement]>);

impl Selector {
    /// The selector without conditions.
    #[must_use]
    pub fn everything() -> Self {
        Self::default()
    }

    /// A label that must have one of some values, if there is such a condition.
    pub(crate) fn wanted_label(&self) -> Option<(&str, impl Iterator<Item = &str>)> {
        self.0.iter().find_map(|requirement| match requirement {
            Requirement::In(key, values) => {
                Some((key.as_ref(), values.0.iter().map(AsRef::as_ref)))
            }
            Requirement::NotIn(..) | Requirement::Exists(_) | Requirement::DoesNotExist(_) => None,
        })
    }

    /// Whether an object with these labels is selected.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => {
                labels.get(key).is_some_and(|value| values.contains(value))
            }
            Requirement::NotIn(key, values) => {
                labels.get(key).is_none_or(|value| !values.contains(value))
            }
            Requirement::Exists(key) => labels.get(key).is_some(),
            Requirement::DoesNotExist(key) => labels.get(key).is_none(),
        })
    }
}

/// The conditions of a [`Selector`] to be.
#[derive(Debug, Default)]
pub struct Requirements(BTreeSet<Requirement>);

impl Requirements {
    /// Adds the condition that a label has a value.
    ///
    /// *Errors*: [`BadSelector::Key`], [`BadSelector::Value`].
    pub fn require_label(&mut self, key: &str, value: &str) -> Result<(), BadSelector> {
        self.require(key, "In", &[value.to_owned()])
    }

    /// Adds a condition as `matchExpressions` writes it.
    ///
    /// *Errors*: every variant of [`BadSelector`].
    pub fn require(
        &mut self,
        key: &str,
        operator: &str,
        values: &[String],
    ) -> Result<(), BadSelector> {
        check_key(key)?;
        for value in values {
            check_value(key, value)?;
        }
        let owned = || (key.to_owned(), operator.to_owned());
        let some_values = || {
            if values.is_empty() {
                let (key, operator) = owned();
                Err(BadSelector::NoValues { key, operator })
            } else {
                Ok(values.iter().map(|value| value.as_str().into()).collect())
            }
        };
        let no_values = || {
            if values.is_empty() {
                Ok(())
            } else {
                let (key, operator) = owned();
                Err(BadSelector::Values { key, operator })
            }
        };
        let requirement = match operator {
            "In" => Requirement::In(key.into(), some_values()?),
            "NotIn" => Requirement::NotIn(key.into(), some_values()?),
            "Exists" => {
                no_values()?;
                Requirement::Exists(key.into())
            }
            "DoesNotExist" => {
                no_values()?;
                Requirement::DoesNotExist(key.into())
            }
            _ => {
                let (key, operator) = owned();
                return Err(BadSelector::Operator { key, operator });
            }
        };
        self.0.insert(requirement);
        Ok(())
    }
}

impl From<Requirements> for Selector {
    fn from(requirements: Requirements) -> Self {
        Self(requirements.0.into_iter().collect())
    }
}

/// 63: the API's limit on label values and on a key's name part.
const NAME_MAX: usize = 63;

/// 253: the API's limit on the DNS name before a key's slash.
const DOMAIN_MAX: usize = 253;

fn check_key(key: &str) -> Result<(), BadSelector> {
    let name = match key.split_once('/') {
        Some((domain, name)) if is_domain(domain) => name,
        Some(_) => return Err(BadSelector::Key(key.to_owned())),
        None => key,
    };
    if is_name(name) {
        Ok(())
    } else {
        Err(BadSelector::Key(key.to_owned()))
    }
}

fn check_value(key: &str, value: &str) -> Result<(), BadSelector> {
    if value.is_empty() || is_name(value) {
        Ok(())
    } else {
        Err(BadSelector::Value {
            key: key.to_owned(),
            value: value.to_owned(),
        })
    }
}

fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    bytes.len() <= NAME_MAX
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

fn is_domain(text: &str) -> bool {
    text.len() <= DOMAIN_MAX
        && text.split('.').all(|part| {
            let bytes = part.as_bytes();
            let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            bytes.first().is_some_and(plain)
                && bytes.last().is_some_and(plain)
                && bytes.iter().all(|byte| plain(byte) || *byte == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        let pairs = pairs.iter();
        let pairs: BTreeMap<_, _> = pairs
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        Labels::from(pairs)
    }

    fn selector(key: &str, operator: &str, values: &[&str]) -> Result<Selector, BadSelector> {
        let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
        let mut requirements = Requirements::default();
        requirements.require(key, operator, &values)?;
        Ok(requirements.into())
    }

    #[test]
    fn operators_mean_what_kubernetes_says() {
        type Object<'a> = &'a [(&'a str, &'a str)];
        let cases: &[(&str, &[&str], Object, bool, &str)] = &[
            ("In", &["a", "b"], &[("k", "b")], true, "one of the values"),
            ("In", &["a", "b"], &[("k", "c")], false, "another value"),
            ("In", &["a"], &[], false, "missing key"),
            ("In", &[""], &[("k", "")], true, "empty value, present"),
            ("In", &[""], &[], false, "empty value is not a missing key"),
            ("NotIn", &["a"], &[("k", "a")], false, "listed value"),
            ("NotIn", &["a"], &[("k", "b")], true, "another value"),
            ("NotIn", &["a"], &[], true, "missing key satisfies NotIn"),
            ("Exists", &[], &[("k", "")], true, "empty value exists"),
            ("Exists", &[], &[("j", "a")], false, "another key"),
            ("DoesNotExist", &[], &[("j", "a")], true, "another key"),
            ("DoesNotExist", &[], &[("k", "")], false, "empty value"),
        ];
        for (operator, values, object, want, message) in cases {
            let selector = selector("k", operator, values).unwrap();
            assert_eq!(
                selector.matches(&labels(object)),
                *want,
                "{operator}: {message}"
            );
        }
    }

    #[test]
    fn no_label_is_taken_for_part_of_another() {
        let labels = labels(&[
            ("a", ""),
            ("aa", "a"),
            ("b", "aa"),
            ("x\0evil", "yes"),
            ("z", "\0good\0yes"),
        ]);
        for (key, value) in [("a", Some("")), ("aa", Some("a")), ("b", Some("aa"))] {
            assert_eq!(labels.get(key), value, "{key}");
        }
        for key in ["", "x", "evil", "yes", "good"] {
            assert_eq!(labels.get(key), None, "{key}");
        }
        assert!(labels.get("z").is_some(), "there, whatever its value");
    }

    #[test]
    fn every_condition_must_hold() {
        let mut both = Requirements::default();
        both.require_label("app", "web").unwrap();
        both.require("tier", "Exists", &[]).unwrap();
        let both = Selector::from(both);
        assert!(both.matches(&labels(&[("app", "web"), ("tier", "1")])));
        assert!(!both.matches(&labels(&[("app", "web")])));
        assert!(!both.matches(&labels(&[("tier", "1")])));
        assert!(Selector::everything().matches(&labels(&[])));
    }

    #[test]
    fn the_same_key_twice_is_two_conditions() {
        let mut never = Requirements::default();
        never.require_label("app", "web").unwrap();
        never.require_label("app", "db").unwrap();
        let never = Selector::from(never);
        assert!(!never.matches(&labels(&[("app", "web")])));
    }

    #[test]
    fn what_the_api_server_refuses_is_not_understood() {
        let long = "x".repeat(64);
        let cases: &[(&str, &str, &[&str], &str)] = &[
            ("k", "in", &["a"], "operators are case sensitive"),
            ("k", "Gt", &["1"], "an operator of node selectors"),
            ("k", "", &["1"], "no operator"),
            ("k", "In", &[], "In without values"),
            ("k", "NotIn", &[], "NotIn without values"),
            ("k", "Exists", &["a"], "Exists with a value"),
            ("k", "DoesNotExist", &["a"], "DoesNotExist with a value"),
            ("", "Exists", &[], "empty key"),
            ("a/b/c", "Exists", &[], "two slashes"),
            ("Bad_Domain/x", "Exists", &[], "bad domain"),
            ("-x", "Exists", &[], "dash at the edge"),
            ("k", "NotIn", &["a b"], "a value that nothing can carry"),
            ("k", "In", &[&long], "64 bytes"),
        ];
        for (key, operator, values, message) in cases {
            assert!(selector(key, operator, values).is_err(), "{message}");
        }
        selector("kubernetes.io/metadata.name", "In", &["kube-system"]).unwrap();
    }
}
