//! One setting on its way from text to value, and what is said when it does not get there.

use std::path::PathBuf;
use std::str::FromStr;

use ipnet::Ipv4Net;
use thiserror::Error;

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{name}={value:?}: {want}{}", unset(.default))]
pub struct BadSetting {
    /// Its environment name.
    pub name: &'static str,
    /// What was set.
    pub value: String,
    /// What it may be.
    pub want: String,
    /// What holds where it is not set; empty: nothing.
    pub default: &'static str,
}

fn unset(default: &str) -> String {
    match default {
        "" => String::new(),
        default => format!(" (not set: {default})"),
    }
}

/// One setting.
pub(super) struct Setting<'a> {
    pub(super) name: &'static str,
    pub(super) text: Option<&'a str>,
    default: &'static str,
}

impl<'a> Setting<'a> {
    /// An empty text is one that is not set; then `default` holds.
    pub(super) fn new(name: &'static str, text: &'a Option<String>, default: &'static str) -> Self {
        let text = text.as_deref().map(str::trim).filter(|t| !t.is_empty());
        Self {
            name,
            text,
            default,
        }
    }

    pub(super) fn bad(&self, want: impl Into<String>) -> BadSetting {
        BadSetting {
            name: self.name,
            value: self.text.unwrap_or(self.default).to_owned(),
            want: want.into(),
            default: self.default,
        }
    }

    /// What was set, else the default.
    pub(super) fn text(&self) -> &str {
        self.text.unwrap_or(self.default)
    }

    /// The number that was set, if one was.
    pub(super) fn number(&self, low: i64, high: i64) -> Result<Option<i64>, BadSetting> {
        let Some(text) = self.text else {
            return Ok(None);
        };
        match i64::from_str(text) {
            Ok(number) if (low..=high).contains(&number) => Ok(Some(number)),
            Ok(_) | Err(_) => Err(self.bad(format!("want a number from {low} to {high}"))),
        }
    }

    pub(super) fn count(&self, low: u32, high: u32) -> Result<Option<u32>, BadSetting> {
        let number = self.number(low.into(), high.into())?;
        Ok(number.and_then(|n| u32::try_from(n).ok()))
    }

    /// As Go reads it.
    pub(super) fn truth(&self) -> Result<bool, BadSetting> {
        match self.text() {
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            _ => Err(self.bad("want true or false")),
        }
    }

    pub(super) fn path(&self) -> Result<PathBuf, BadSetting> {
        let path = PathBuf::from(self.text());
        if path.is_absolute() {
            Ok(path)
        } else {
            Err(self.bad("want an absolute path"))
        }
    }

    /// IPv4 blocks, by commas: in order, each once.
    pub(super) fn blocks(&self) -> Result<Vec<Ipv4Net>, BadSetting> {
        let mut blocks: Vec<Ipv4Net> = self
            .text()
            .split(',')
            .map(str::trim)
            .filter(|text| !text.is_empty())
            .map(|text| {
                text.parse::<Ipv4Net>()
                    .map(|net| net.trunc())
                    .map_err(|_| self.bad(format!("{text:?}: want an IPv4 block (10.0.0.0/8)")))
            })
            .collect::<Result<_, _>>()?;
        blocks.sort_unstable();
        blocks.dedup();
        Ok(blocks)
    }
}

/// A setting that is `true` or `false`.
pub(super) fn truth(
    name: &'static str,
    text: &Option<String>,
    default: &'static str,
) -> Result<bool, BadSetting> {
    Setting::new(name, text, default).truth()
}

/// A setting that is an absolute path.
pub(super) fn path(
    name: &'static str,
    text: &Option<String>,
    default: &'static str,
) -> Result<PathBuf, BadSetting> {
    Setting::new(name, text, default).path()
}
