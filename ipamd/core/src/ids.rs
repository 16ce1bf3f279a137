//! Names of things: interfaces, subnets, pods, moments. A string of one kind cannot be passed for another.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

macro_rules! text_id {
    ($(#[$doc:meta] $name:ident),+ $(,)?) => {$(
        #[$doc]
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Takes the text as the cloud wrote it.
            pub fn new(text: impl Into<String>) -> Self {
                Self(text.into())
            }

            /// The text as the cloud wrote it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )+};
}

text_id! {
    /// An elastic network interface, `eni-…`.
    EniId,
    /// An attachment of an ENI to an instance, `eni-attach-…`.
    AttachmentId,
    /// A subnet, `subnet-…`.
    SubnetId,
    /// A security group, `sg-…`.
    SecurityGroupId,
    /// A VPC, `vpc-…`.
    VpcId,
    /// An instance, `i-…`.
    InstanceId,
    /// An instance type, such as `c5.large`.
    InstanceType,
    /// What makes a create call idempotent: EC2 answers the same token with the same interface.
    ClientToken,
}

/// The hardware address of an interface; what ties an ENI to a link in the kernel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

/// A text that is not a hardware address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("hardware address {0:?}: want six hexadecimal bytes separated by colons")]
pub struct BadMac(String);

impl FromStr for Mac {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Self, BadMac> {
        let bad = || BadMac(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            // `from_str_radix` takes a sign for the first digit.
            let part = parts
                .next()
                .filter(|p| p.len() == 2 && p.bytes().all(|digit| digit.is_ascii_hexdigit()))
                .ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() {
            return Err(bad());
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a lease belongs to: one interface of one sandbox in one network. The runtime repeats it on DEL.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodKey {
    /// Name of the CNI network, `aws-cni`.
    pub network_name: String,
    /// Identifier of the sandbox.
    pub container_id: String,
    /// Name of the interface in the sandbox, `eth0`.
    pub if_name: String,
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}/{}",
            self.network_name, self.container_id, self.if_name
        )
    }
}

/// A pod by name, for people and for the name of its veth. Either part may be empty (a sandbox that is no pod's).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct PodName {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A moment: nanoseconds since 1970 (UTC). The core never asks for one; it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The moment that is `since` after the start of 1970.
    pub fn from_unix(since: Duration) -> Self {
        Self(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }

    /// The moment `nanos` nanoseconds after the start of 1970.
    pub fn from_unix_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the start of 1970.
    pub fn unix_nanos(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to here, nothing if `earlier` is later.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Reads a date of RFC 3339, in whole seconds and from 1970 on: `2026-01-31T09:05:00Z`, `…T11:05:00.25+02:00`.
    /// `None` if it is none.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let number = |from: usize, to: usize| -> Option<u64> {
            let digits = text.get(from..to)?;
            let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| digits.parse().ok()).flatten()
        };
        let marks = [(4, "-"), (7, "-"), (13, ":"), (16, ":")];
        let marked = marks
            .iter()
            .all(|(at, mark)| text.get(*at..at + 1) == Some(*mark));
        if !marked || !matches!(text.get(10..11), Some("T" | "t" | " ")) {
            return None;
        }
        let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
        let (hours, minutes, seconds) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
        if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
            return None;
        }
        if hours > 23 || minutes > 59 || seconds > 60 {
            return None;
        }
        let rest = text.get(19..)?;
        let zone = rest.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
        let offset = match zone.as_bytes() {
            [b'Z' | b'z'] => 0,
            [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
                let start = text.len() - 5;
                let ahead = number(start, start + 2)? * 3600 + number(start + 3, start + 5)? * 60;
                let ahead = i64::try_from(ahead).ok()?;
                if *sign == b'+' { -ahead } else { ahead }
            }
            _ => return None,
        };
        let local = days(year, month, day) * 86_400 + hours * 3600 + minutes * 60 + seconds;
        let seconds = local.checked_add_signed(offset)?;
        Some(Self::from_unix(Duration::from_secs(seconds)))
    }

    /// As RFC 3339 in whole seconds: `2026-01-31T09:05:00Z`.
    pub fn rfc3339(self) -> String {
        let seconds = self.0 / 1_000_000_000;
        let (days, rest) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = civil(days);
        format!(
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
            rest / 3600,
            rest / 60 % 60,
            rest % 60
        )
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Timestamp;

    fn add(self, gap: Duration) -> Timestamp {
        let nanos = u64::try_from(gap.as_nanos()).unwrap_or(u64::MAX);
        Timestamp(self.0.saturating_add(nanos))
    }
}

/// Days since 1970-01-01 as year, month, day of the Gregorian calendar (years start in March while counting,
/// so that the leap day is the last).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

/// The reverse of [`civil`].
fn days(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month <= 2 {
        (year - 1, month + 9)
    } else {
        (year, month - 3)
    };
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_is_written_as_the_date_it_is() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            let moment = Timestamp::from_unix(Duration::from_secs(seconds));
            assert_eq!(moment.rfc3339(), text, "{seconds}");
            assert_eq!(Timestamp::parse_rfc3339(text), Some(moment), "{text}");
        }
    }

    #[test]
    fn a_date_is_read_with_its_zone_and_nonsense_is_none() {
        let noon = Timestamp::parse_rfc3339("2026-01-31T12:00:00Z");
        for text in [
            "2026-01-31T14:00:00+02:00",
            "2026-01-31T07:30:00-04:30",
            "2026-01-31T12:00:00.987654Z",
            "2026-01-31t12:00:00z",
        ] {
            assert_eq!(Timestamp::parse_rfc3339(text), noon, "{text}");
        }
        for text in [
            "",
            "2026-01-31",
            "2026-01-31T12:00:00",
            "2026-13-31T12:00:00Z",
            "2026-01-31T12:00:00+2:00",
            "1969-12-31T12:00:00Z",
            "+026-01-31T12:00:00Z",
            "2026-01-31T12:00:00ü",
            "1970-01-01T00:00:00+02:00",
        ] {
            assert_eq!(Timestamp::parse_rfc3339(text), None, "{text}");
        }
    }

    #[test]
    fn a_hardware_address_is_read_and_written_alike_and_nothing_else_is_taken() {
        let mac: Mac = "02:0A:ff:00:1b:2c".parse().unwrap();
        assert_eq!(mac.to_string(), "02:0a:ff:00:1b:2c");
        for bad in [
            "",
            "02:0a:ff:00:1b",
            "02:0a:ff:00:1b:2c:3d",
            "020aff001b2c",
            "02:0a:ff:0:1b:2c",
            "02:0a:ff:+0:1b:2c",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad:?}");
        }
    }
}
