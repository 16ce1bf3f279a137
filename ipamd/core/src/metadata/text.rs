//! Texts of instance metadata as values. What is not exactly a value is none.

use std::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};

use crate::cloud::{CloudError, Operation, PREFIX_LEN, PREFIX_LEN_V6};

/// Several times what AWS's longest identifier has.
const LONGEST_ID: usize = 128;

/// One value a line; a listing of folders ends each with a slash.
pub(super) fn lines<T, L: FromIterator<T>>(
    operation: Operation,
    path: &str,
    text: &str,
    read: fn(&str) -> Option<T>,
) -> Result<L, CloudError> {
    text.lines()
        .map(|line| line.trim().trim_end_matches('/'))
        .filter(|line| !line.is_empty())
        .map(|line| read(line).ok_or_else(|| unreadable(operation, path, line)))
        .collect()
}

/// Nothing is where something must be.
pub(super) fn nothing(operation: Operation, path: &str) -> CloudError {
    CloudError::unknown(operation, format!("{path}: nothing there"))
}

/// What cannot be read, shortened: it may be a page.
pub(super) fn unreadable(operation: Operation, path: &str, text: &str) -> CloudError {
    let start: String = text.chars().take(60).collect();
    CloudError::unknown(operation, format!("{path}: cannot read {start:?}"))
}

/// An address, a number: whatever says itself how it is read.
pub(super) fn parse<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

/// The name of something. A page of HTML is none; it comes from something that sits where metadata should.
pub(super) fn id(text: &str) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'<' | b'>');
    let is_id = (1..=LONGEST_ID).contains(&text.len()) && text.bytes().all(plain);
    is_id.then(|| text.to_owned())
}

/// A block of a subnet or VPC, by its first address.
pub(super) fn block(text: &str) -> Option<Ipv4Net> {
    parse(text).map(|block: Ipv4Net| block.trunc())
}

/// A block that is an interface's own. Of another size it would be taken for that many addresses.
pub(super) fn prefix(text: &str) -> Option<Ipv4Net> {
    block(text).filter(|block| block.prefix_len() == PREFIX_LEN)
}

/// The same of IPv6.
pub(super) fn prefix6(text: &str) -> Option<Ipv6Net> {
    let block: Ipv6Net = parse(text)?;
    (block.prefix_len() == PREFIX_LEN_V6).then(|| block.trunc())
}
