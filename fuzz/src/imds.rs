//! What instance metadata, or whatever sits in its place, answers.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::pin::pin;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use ipnet::Ipv4Net;
use selvage_ipamd_core::cloud::{CloudError, CloudErrorKind, Operation, SeenEni};
use selvage_ipamd_core::metadata::{Metadata, Reader};

/// Answers in the order of the questions; nothing is where no answer is left.
struct Answers(Mutex<Vec<Option<String>>>);

/// An answer of its own: there is nothing at the path that was asked for.
const NOTHING: &[u8] = b"404";

impl Metadata for Answers {
    async fn get(&self, _: Operation, path: &str) -> Result<Option<String>, CloudError> {
        assert!(!path.contains(char::is_whitespace), "a question {path:?}");
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(left.pop().flatten())
    }
}

/// What to ask for, then answers with NULs between. The interfaces are asked for twice: what an attached one keeps is
/// not read again.
pub(crate) fn any(bytes: &[u8]) {
    let (what, answers) = bytes.split_first().unwrap_or((&b'e', &[]));
    let answer = |text: &[u8]| (text != NOTHING).then(|| String::from_utf8_lossy(text).into());
    let mut answers: Vec<_> = answers.split(|byte| *byte == 0).map(answer).collect();
    answers.reverse();
    let reader = Reader::new(Answers(Mutex::new(answers)));
    match what {
        b'f' => facts(&reader),
        b'v' => match done(reader.vpc_cidrs()) {
            Ok(blocks) => {
                assert!(!blocks.is_empty());
                blocks.iter().for_each(block);
            }
            Err(error) => refused(&error, Operation::VpcCidrs),
        },
        _ => {
            let first = seen(&reader);
            let again = seen(&reader);
            for eni in &again {
                if let Some(before) = first.iter().find(|one| one.mac == eni.mac) {
                    let kept = |eni: &SeenEni| (eni.id.clone(), eni.card, eni.subnet);
                    assert_eq!(kept(before), kept(eni), "it stays attached");
                }
            }
        }
    }
}

fn facts(reader: &Reader<Answers>) {
    let facts = match done(reader.facts()) {
        Ok(facts) => facts,
        Err(error) => return refused(&error, Operation::Facts),
    };
    for name in [
        facts.instance_id.as_str(),
        facts.instance_type.as_str(),
        &facts.region,
        &facts.availability_zone,
        facts.vpc_id.as_str(),
        facts.primary_eni.as_str(),
        facts.subnet_id.as_str(),
    ] {
        id(name);
    }
    assert!(!facts.security_groups.is_empty(), "a group is lost");
    facts.security_groups.iter().for_each(|it| id(it.as_str()));
    same(facts.primary_mac);
    block(&facts.subnet);
}

fn seen(reader: &Reader<Answers>) -> Vec<SeenEni> {
    let enis = match done(reader.seen_enis()) {
        Ok(enis) => enis,
        Err(error) => {
            refused(&error, Operation::SeenEnis);
            return Vec::new();
        }
    };
    let macs: BTreeSet<_> = enis.iter().map(|eni| eni.mac).collect();
    assert_eq!(macs.len(), enis.len(), "an interface twice");
    for eni in &enis {
        same(eni.mac);
        id(eni.id.as_str());
        id(eni.subnet_id.as_str());
        block(&eni.subnet);
        assert!(eni.addresses.contains(&eni.primary_address));
        // Each address in them is a pod's to have.
        for prefix in &eni.prefixes {
            assert_eq!((prefix.prefix_len(), prefix.trunc()), (28, *prefix));
        }
        for prefix in &eni.ipv6_prefixes {
            assert_eq!((prefix.prefix_len(), prefix.trunc()), (80, *prefix));
        }
    }
    enis
}

/// A name goes into calls to EC2 and into lines of the log.
fn id(name: &str) {
    assert!((1..=128).contains(&name.len()), "{name:?}");
    let odd = |c: char| !c.is_ascii_graphic() || ['<', '>'].contains(&c);
    assert!(!name.contains(odd), "{name:?}");
}

fn block(block: &Ipv4Net) {
    same(*block);
    assert_eq!(block.trunc(), *block);
}

/// What is written is read again the same.
fn same<T: Display + FromStr + PartialEq>(value: T) {
    let again = value.to_string().parse().ok();
    assert!(again.is_some_and(|it: T| it == value), "{value}");
}

/// Asked again later; and one line that says what of.
fn refused(error: &CloudError, operation: Operation) {
    assert_eq!(error.kind, CloudErrorKind::Unknown);
    assert_eq!(error.operation, operation);
    assert!(!error.message.contains(['\n', '\r']), "{error}");
    assert!(error.message.len() < 1000, "a page: {error}");
}

fn done<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("each answer is there at once"),
    }
}
