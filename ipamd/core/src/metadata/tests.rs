use std::collections::HashMap;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::*;

/// What metadata says, by path; a path that is not in it is not there. `None`: it cannot be asked.
#[derive(Default)]
struct Answers {
    texts: Mutex<HashMap<String, Option<String>>>,
    asked: Mutex<Vec<String>>,
}

impl Metadata for Answers {
    async fn get(&self, operation: Operation, path: &str) -> Result<Option<String>, CloudError> {
        self.asked.lock().unwrap().push(path.to_owned());
        match self.texts.lock().unwrap().get(path) {
            Some(Some(text)) => Ok(Some(text.clone())),
            Some(None) => Err(CloudError::unknown(operation, format!("{path}: HTTP 503"))),
            None => Ok(None),
        }
    }
}

const FIRST: &str = "02:00:00:00:00:01";
const SECOND: &str = "02:00:00:00:00:02";

/// An instance with an interface that has everything, and one that has only what each has.
fn instance() -> Reader<Answers> {
    let reader = Reader::new(Answers::default());
    for (path, text) in [
        ("mac", FIRST),
        ("instance-id", "i-0123456789abcdef0"),
        ("instance-type", "m5.large"),
        ("placement/region", "us-west-2"),
        ("placement/availability-zone", "us-west-2a"),
        ("local-ipv4", "10.0.0.5"),
        (
            "network/interfaces/macs/",
            "02:00:00:00:00:01/\n02:00:00:00:00:02/\n",
        ),
    ] {
        set(&reader, path, text);
    }
    for (mac, id, number, addresses) in [
        (FIRST, "eni-1", "0", "10.0.0.5\n10.0.0.6"),
        (SECOND, "eni-2", "1", "10.0.0.7"),
    ] {
        set_of(&reader, mac, "interface-id", id);
        set_of(&reader, mac, "device-number", number);
        set_of(&reader, mac, "local-ipv4s", addresses);
        set_of(&reader, mac, "subnet-id", "subnet-1");
        set_of(&reader, mac, "subnet-ipv4-cidr-block", "10.0.0.0/24");
    }
    for (key, text) in [
        ("vpc-id", "vpc-1"),
        ("vpc-ipv4-cidr-blocks", "10.0.0.0/16\n10.1.0.0/16"),
        ("security-group-ids", "sg-2\nsg-1"),
        ("network-card", "1"),
        ("ipv6s", "2001:db8::5"),
        ("ipv4-prefix", "10.0.0.32/28"),
        ("ipv6-prefix", "2001:db8:0:0:1::/80"),
    ] {
        set_of(&reader, FIRST, key, text);
    }
    reader
}

fn set(reader: &Reader<Answers>, path: &str, text: &str) {
    let mut texts = reader.metadata.texts.lock().unwrap();
    texts.insert(path.to_owned(), Some(text.to_owned()));
}

fn set_of(reader: &Reader<Answers>, mac: &str, key: &str, text: &str) {
    set(reader, &format!("{MACS}/{mac}/{key}"), text);
}

fn done<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("these answers are there at once"),
    }
}

#[test]
fn an_instance_is_what_metadata_says() {
    let facts = done(instance().facts()).unwrap();
    assert_eq!(facts.instance_id.as_str(), "i-0123456789abcdef0");
    assert_eq!(facts.instance_type.as_str(), "m5.large");
    assert_eq!(facts.region, "us-west-2");
    assert_eq!(facts.availability_zone, "us-west-2a");
    assert_eq!(facts.vpc_id.as_str(), "vpc-1");
    assert_eq!(facts.primary_eni.as_str(), "eni-1");
    assert_eq!(facts.primary_mac.to_string(), FIRST);
    assert_eq!(facts.primary_address, Ipv4Addr::new(10, 0, 0, 5));
    assert_eq!(facts.primary_ipv6, Some("2001:db8::5".parse().unwrap()));
    assert_eq!(facts.subnet_id.as_str(), "subnet-1");
    assert_eq!(facts.subnet.to_string(), "10.0.0.0/24");
    let groups: Vec<_> = facts.security_groups.iter().map(|it| it.as_str()).collect();
    assert_eq!(groups, ["sg-2", "sg-1"], "in metadata's order");
    let blocks = done(instance().vpc_cidrs()).unwrap();
    let blocks: Vec<_> = blocks.iter().map(ToString::to_string).collect();
    assert_eq!(blocks, ["10.0.0.0/16", "10.1.0.0/16"]);
}

#[test]
fn interfaces_are_what_metadata_says() {
    let enis = done(instance().seen_enis()).unwrap();
    let [first, second] = enis.as_slice() else {
        panic!("{enis:?}")
    };
    assert_eq!((first.id.as_str(), second.id.as_str()), ("eni-1", "eni-2"));
    assert_eq!((first.device_index, second.device_index), (0, 1));
    assert_eq!((first.card, second.card), (1, 0));
    assert_eq!(first.primary_address, Ipv4Addr::new(10, 0, 0, 5));
    assert_eq!((first.addresses.len(), second.addresses.len()), (2, 1));
    let prefixes: Vec<_> = first.prefixes.iter().map(ToString::to_string).collect();
    assert_eq!(prefixes, ["10.0.0.32/28"]);
    let prefixes: Vec<_> = first
        .ipv6_prefixes
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(prefixes, ["2001:db8:0:0:1::/80"]);
    assert!(second.prefixes.is_empty() && second.ipv6_addresses.is_empty());
}

#[test]
fn what_an_attached_interface_keeps_is_asked_once_until_it_goes() {
    let reader = instance();
    done(reader.seen_enis()).unwrap();
    let path = format!("{MACS}/{SECOND}/interface-id");
    let asked = || {
        let asked = reader.metadata.asked.lock().unwrap();
        asked.iter().filter(|one| **one == path).count()
    };
    done(reader.seen_enis()).unwrap();
    assert_eq!(asked(), 1);
    set(&reader, "network/interfaces/macs/", FIRST);
    assert_eq!(done(reader.seen_enis()).unwrap().len(), 1);
    set(&reader, "network/interfaces/macs/", SECOND);
    set_of(&reader, SECOND, "interface-id", "eni-3");
    let enis = done(reader.seen_enis()).unwrap();
    assert_eq!(enis[0].id.as_str(), "eni-3", "another with its address");
    assert_eq!(asked(), 2);
}

#[test]
fn an_interface_that_goes_while_it_is_read_is_left_out() {
    for key in [
        "interface-id",
        "subnet-id",
        "subnet-ipv4-cidr-block",
        "local-ipv4s",
        "device-number",
    ] {
        let reader = instance();
        let path = format!("{MACS}/{SECOND}/{key}");
        reader.metadata.texts.lock().unwrap().remove(&path);
        let enis = done(reader.seen_enis()).unwrap();
        assert_eq!(enis.len(), 1, "{key}");
    }
}

#[test]
fn a_listing_of_macs_is_read_with_or_without_slashes_and_nonsense_is_refused_by_name() {
    let reader = instance();
    set(
        &reader,
        "network/interfaces/macs/",
        "02:00:00:00:00:01/\r\n\n 02:00:00:00:00:02\n\n",
    );
    assert_eq!(done(reader.seen_enis()).unwrap().len(), 2);
    set(&reader, "network/interfaces/macs/", "<html>");
    let error = done(reader.seen_enis()).unwrap_err();
    assert!(
        error.may_have_happened(),
        "metadata that lies is asked again"
    );
    assert_eq!(
        error.message,
        r#"network/interfaces/macs: cannot read "<html>""#
    );
}

#[test]
fn what_every_instance_has_must_be_there_and_metadata_must_answer() {
    for path in ["mac", "instance-id", "placement/region", "local-ipv4"] {
        let reader = instance();
        set(&reader, path, " \n");
        let error = done(reader.facts()).unwrap_err();
        assert_eq!(error.message, format!("{path}: nothing there"));
        let silent = (path.to_owned(), None);
        reader.metadata.texts.lock().unwrap().extend([silent]);
        let error = done(reader.facts()).unwrap_err();
        assert_eq!(error.message, format!("{path}: HTTP 503"));
    }
    let reader = instance();
    set_of(&reader, FIRST, "vpc-ipv4-cidr-blocks", "/\n");
    let error = done(reader.vpc_cidrs()).unwrap_err();
    assert!(error.message.ends_with("blocks: nothing there"), "{error}");
}

#[test]
fn what_is_not_exactly_a_value_is_refused_and_a_page_is_cut_short() {
    for (key, text) in [
        ("interface-id", "<!DOCTYPE html>"),
        ("interface-id", "eni 1"),
        ("subnet-id", "subnet-1\0"),
        ("subnet-id", "subnet-é"),
        ("subnet-ipv4-cidr-block", "10.0.0.0"),
        ("subnet-ipv4-cidr-block", "10.0.0.0/33"),
        ("device-number", "65536"),
        ("network-card", "-1"),
        ("local-ipv4s", "10.0.0.256"),
        // Taken for pods' addresses, it would be all of them.
        ("ipv4-prefix", "0.0.0.0/0"),
        ("ipv4-prefix", "10.0.0.32/27"),
        ("ipv6-prefix", "2001:db8::/64"),
    ] {
        let reader = instance();
        set_of(&reader, SECOND, key, text);
        let error = done(reader.seen_enis()).unwrap_err();
        let expected = format!("{MACS}/{SECOND}/{key}: cannot read {text:?}");
        assert_eq!(error.message, expected);
    }
    for (path, text) in [
        ("instance-id", "i-1\ni-2"),
        ("instance-type", "<html>"),
        ("placement/region", &"x".repeat(1000)),
        ("mac", "02:00:00:00:00:+1"),
    ] {
        let reader = instance();
        set(&reader, path, text);
        let error = done(reader.facts()).unwrap_err();
        let start = format!("{path}: cannot read ");
        assert!(error.message.starts_with(&start), "{error}");
        assert!(error.message.len() < 100, "{error}");
        assert!(!error.message.contains('\n'), "{error}");
    }
}

#[test]
fn a_block_is_named_by_its_first_address() {
    let reader = instance();
    set_of(&reader, FIRST, "subnet-ipv4-cidr-block", "10.0.0.5/24");
    let facts = done(reader.facts()).unwrap();
    assert_eq!(facts.subnet.to_string(), "10.0.0.0/24");
}
