use std::fs::File;

use selvage_ipamd_core::ids::PodName;

use super::*;

const AWS: &str = r#"{"version":"vpc-cni-ipam/1","allocations":[{"networkName":"aws-cni","containerID":"c1","ifName":"eth0","ipv4":"10.0.1.2","allocationTimestamp":1700000000000000001,"metadata":{"k8sPodNamespace":"default","k8sPodName":"web-0","interfacesCount":1}},{"networkName":"_migrated-from-cri","containerID":"c2","ifName":"unknown","ipv4":"10.0.1.3","allocationTimestamp":5,"metadata":{}}]}"#;

fn read(text: &str) -> Result<Checkpoint, CheckpointError> {
    Checkpoint::parse(text.as_bytes(), Path::new("/x/ipam.json"))
}

fn resting(last: u8, until: u64) -> (IpAddr, Timestamp) {
    (
        IpAddr::from([10, 0, 1, last]),
        Timestamp::from_unix_nanos(until),
    )
}

#[test]
fn awss_file_is_read() {
    let checkpoint = read(AWS).unwrap();
    let first = &checkpoint.entries[0];
    assert_eq!(first.key.to_string(), "aws-cni/c1/eth0");
    assert_eq!(first.pod.to_string(), "default/web-0");
    assert_eq!(first.address, IpAddr::from([10, 0, 1, 2]));
    assert_eq!(first.since.unix_nanos(), 1_700_000_000_000_000_001);
    assert_eq!(checkpoint.entries.len(), 2);
    assert_eq!(checkpoint.entries[1].pod, PodName::default());
}

#[test]
fn what_is_written_is_awss_file_byte_by_byte_whatever_rests() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ipam.json");
    let mut checkpoint = read(AWS).unwrap();
    checkpoint.entries.truncate(1);
    checkpoint.cooling.push(resting(9, 77));
    Store::new(path.clone()).write(&checkpoint).unwrap();
    let end = AWS.find(r#",{"networkName":"_migrated"#).unwrap();
    let text = std::fs::read_to_string(path).unwrap();
    assert_eq!(text, format!("{}]}}", &AWS[..end]));
}

#[test]
fn a_file_without_pods_is_a_node_without_pods() {
    for text in [
        r#"{"version":"vpc-cni-ipam/1","allocations":[]}"#,
        r#"{"version":"vpc-cni-ipam/1","allocations":null}"#,
    ] {
        assert_eq!(read(text).unwrap(), Checkpoint::default(), "{text}");
    }
}

#[test]
fn what_is_written_is_read_again_with_what_rests() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ipam.json");
    assert_eq!(Checkpoint::read(&path).unwrap(), Checkpoint::default());
    let mut checkpoint = read(AWS).unwrap();
    checkpoint.cooling.push(resting(9, 77));
    let store = Store::new(path.clone());
    store.write(&checkpoint).unwrap();
    assert_eq!(Checkpoint::read(&path).unwrap(), checkpoint);
    // One more, and one that came to its end.
    checkpoint.cooling = vec![resting(8, 99)];
    store.write(&checkpoint).unwrap();
    assert_eq!(Checkpoint::read(&path).unwrap(), checkpoint);
}

#[test]
fn what_rests_is_written_only_when_something_came_to_rest() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ipam.json");
    let store = Store::new(path.clone());
    let mut checkpoint = Checkpoint {
        entries: Vec::new(),
        cooling: vec![resting(8, 1), resting(9, 77)],
    };
    store.write(&checkpoint).unwrap();
    let mark = |text: &str| std::fs::write(cooling_path(&path), text).unwrap();
    let marked = || std::fs::read_to_string(cooling_path(&path)).unwrap() == "mark";
    mark("mark");
    checkpoint.cooling.remove(0);
    store.write(&checkpoint).unwrap();
    assert!(marked(), "an address that rests no longer is no news");
    checkpoint.cooling.push(resting(8, 78));
    store.write(&checkpoint).unwrap();
    assert!(!marked(), "an address that rests again is");
    // A write that failed may have left anything.
    mark("mark");
    std::fs::remove_file(directory.path().join("ipam-cooling.json.tmp")).unwrap();
    std::fs::create_dir(directory.path().join("ipam-cooling.json.tmp")).unwrap();
    checkpoint.cooling.push(resting(7, 79));
    store.write(&checkpoint).unwrap_err();
    std::fs::remove_dir(directory.path().join("ipam-cooling.json.tmp")).unwrap();
    store.write(&checkpoint).unwrap();
    assert!(!marked());
}

#[test]
fn what_rests_is_found_where_it_was_written_before() {
    let text = r#"{"version":"vpc-cni-ipam/1","allocations":[],"selvageCooling":[{"ipv4":"10.0.1.9","until":77}]}"#;
    assert_eq!(read(text).unwrap().cooling, [resting(9, 77)]);
}

#[test]
fn a_file_of_what_rests_that_cannot_be_understood_costs_no_lease() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ipam.json");
    std::fs::write(&path, AWS).unwrap();
    for text in ["", "{", r#"{"version":"selvage-cooling/2","rests":7}"#] {
        std::fs::write(cooling_path(&path), text).unwrap();
        let checkpoint = Checkpoint::read(&path).unwrap();
        assert_eq!((checkpoint.entries.len(), checkpoint.cooling.len()), (2, 0));
    }
}

#[test]
fn a_file_that_ends_at_any_byte_is_refused_and_never_half_a_checkpoint() {
    for end in 0..AWS.len() {
        let error = Checkpoint::parse(&AWS.as_bytes()[..end], Path::new("/x/ipam.json"));
        let error = error.expect_err(&AWS[..end]).to_string();
        assert!(error.contains("cannot be understood"), "{end}: {error}");
    }
    let cooling = wire::cooling_json(&[resting(9, 77)]).unwrap();
    for end in 0..cooling.len() {
        assert!(wire::parse_cooling(&cooling[..end]).is_err(), "{end}");
    }
    assert_eq!(wire::parse_cooling(&cooling).unwrap(), [resting(9, 77)]);
}

#[test]
fn a_write_that_ended_at_any_byte_leaves_the_file_of_before_and_does_not_bar_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ipam.json");
    let (mut old, mut new) = (read(AWS).unwrap(), read(AWS).unwrap());
    old.entries.truncate(1);
    new.cooling.push(resting(9, 77));
    let text = wire::leases_json(&new.entries).unwrap();
    for end in 0..=text.len() {
        Store::new(path.clone()).write(&old).unwrap();
        // A crash before the rename: what rests was written, the leases in part.
        std::fs::write(
            cooling_path(&path),
            wire::cooling_json(&new.cooling).unwrap(),
        )
        .unwrap();
        std::fs::write(directory.path().join("ipam.json.tmp"), &text[..end]).unwrap();
        let found = Checkpoint::read(&path).unwrap();
        assert_eq!(found.entries, old.entries, "after {end} bytes");
        assert_eq!(found.cooling, new.cooling, "after {end} bytes");
        Store::new(path.clone()).write(&new).unwrap();
        assert_eq!(Checkpoint::read(&path).unwrap(), new, "after {end} bytes");
    }
}

#[test]
fn a_crash_at_any_byte_of_any_later_write_leaves_the_file_of_before() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ipam.json");
    let temporary = directory.path().join("ipam.json.tmp");
    let (mut old, new) = (read(AWS).unwrap(), read(AWS).unwrap());
    old.entries.truncate(1);
    let text = new.leases_json().unwrap();
    // A file of its own for each of the first two writes; then they take turns.
    for writes in 1..5 {
        let store = Store::new(path.clone());
        for _ in 0..writes {
            store.write(&old).unwrap();
        }
        let before = std::fs::read(&temporary).unwrap_or_default();
        assert_eq!(before.is_empty(), writes == 1);
        for end in 0..=text.len() {
            let rest = before.get(end..).unwrap_or_default();
            let torn = [&text[..end], rest].concat();
            // As a write does it that ends there: over what is there already.
            std::fs::write(&temporary, torn).unwrap();
            assert_eq!(
                Checkpoint::read(&path).unwrap(),
                old,
                "{writes} writes, {end} bytes"
            );
        }
        store.write(&new).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), text, "after {writes} writes");
        Store::new(path.clone()).write(&old).unwrap();
        assert!(
            !temporary.exists(),
            "left by another process, it is nobody's"
        );
        assert_eq!(Checkpoint::read(&path).unwrap(), old);
    }
}

#[test]
fn a_file_that_shrinks_has_no_end_of_the_one_before() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ipam.json");
    let (mut short, long) = (read(AWS).unwrap(), read(AWS).unwrap());
    short.entries.truncate(1);
    let store = Store::new(path.clone());
    for checkpoint in [&long, &long, &long, &short, &short, &long, &short] {
        store.write(checkpoint).unwrap();
        let text = std::fs::read(&path).unwrap();
        assert_eq!(text, checkpoint.leases_json().unwrap());
    }
}

#[test]
fn after_a_write_that_failed_no_file_is_written_over() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ipam.json");
    let temporary = directory.path().join("ipam.json.tmp");
    let checkpoint = read(AWS).unwrap();
    let store = Store::new(path.clone());
    for _ in 0..3 {
        store.write(&checkpoint).unwrap();
    }
    // The disk may have this one under the file's name still, if what failed was the exchange.
    let older = File::open(&temporary).unwrap();
    let aside = directory.path().join("aside");
    std::fs::rename(&temporary, &aside).unwrap();
    std::fs::create_dir(&temporary).unwrap();
    store.write(&checkpoint).unwrap_err();
    std::fs::remove_dir(&temporary).unwrap();
    std::fs::rename(&aside, &temporary).unwrap();
    store.write(&Checkpoint::default()).unwrap();
    let text = std::io::read_to_string(older).unwrap();
    assert_eq!(text.as_bytes(), checkpoint.leases_json().unwrap());
    assert_eq!(Checkpoint::read(&path).unwrap(), Checkpoint::default());
}

#[test]
fn files_that_somebody_removes_are_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ipam.json");
    let temporary = directory.path().join("ipam.json.tmp");
    let checkpoint = read(AWS).unwrap();
    let store = Store::new(path.clone());
    for gone in [&path, &temporary, &path, &path, &temporary] {
        store.write(&checkpoint).unwrap();
        store.write(&checkpoint).unwrap();
        std::fs::remove_file(gone).unwrap();
        store.write(&checkpoint).unwrap();
        assert_eq!(Checkpoint::read(&path).unwrap(), checkpoint);
    }
}

#[test]
fn a_file_that_cannot_be_understood_is_refused_with_what_to_do() {
    for (text, want) in [
        ("", "cannot be understood"),
        ("{", "cannot be understood"),
        (r#"{"allocations":[]}"#, "version"),
        (r#"{"version":"vpc-cni-ipam/2","pods":7}"#, "vpc-cni-ipam/2"),
        (
            r#"{"version":"vpc-cni-ipam/1","allocations":[{"networkName":"n","containerID":"c","ifName":"i","ipv4":"x"}]}"#,
            "address \"x\"",
        ),
        (
            r#"{"version":"vpc-cni-ipam/1","allocations":[{"networkName":"n","containerID":"c","ifName":"i","ipv4":"10.0.1.2","ipv6":"fd00::1"}]}"#,
            "either family",
        ),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(want), "{text}: {error}");
        assert!(error.contains("drain the node"), "{error}");
        assert!(error.contains("/x/ipam.json"), "{error}");
    }
}

#[test]
fn an_ipv6_nodes_file_is_read_and_written() {
    let text = r#"{"version":"vpc-cni-ipam/1","allocations":[{"networkName":"aws-cni","containerID":"c1","ifName":"eth0","ipv6":"2001:db8::5","allocationTimestamp":1,"metadata":{"k8sPodNamespace":"default","k8sPodName":"web-0","interfacesCount":1}}]}"#;
    let checkpoint = Checkpoint::parse(text.as_bytes(), Path::new("/x/ipam.json")).unwrap();
    let address: IpAddr = "2001:db8::5".parse().unwrap();
    assert_eq!(checkpoint.entries[0].address, address);
    assert_eq!(checkpoint.leases_json().unwrap(), text.as_bytes());
}

#[test]
fn whatever_leases_come_and_go_the_file_is_as_if_it_were_written_anew() {
    let lease = |pod: u8, time: u64| {
        let text = AWS.replace("c1", &format!("c1-{pod}"));
        let mut entry = Entry::clone(&read(&text).unwrap().entries[0]);
        entry.since = Timestamp::from_unix_nanos(time);
        Arc::new(entry)
    };
    let pods: Vec<_> = (0..5).map(|pod| [lease(pod, 1), lease(pod, 2)]).collect();
    // Of each pod: none, the one lease, the other.
    let some = |which: u32| -> Vec<Arc<Entry>> {
        let of = |(pod, leases): (u32, &[Arc<Entry>; 2])| match which / 3u32.pow(pod) % 3 {
            0 => None,
            n => Some(leases[n as usize - 1].clone()),
        };
        (0..).zip(&pods).filter_map(of).collect()
    };
    let mut leases = wire::Leases::default();
    let all = 3u32.pow(5);
    for step in [1, 5, 29, 100, 241] {
        for at in 0..all {
            let now = some(at * step % all);
            let text = leases.text(&now).unwrap();
            assert_eq!(text, wire::leases_json(&now).unwrap(), "{at} times {step}");
            let found = Checkpoint::parse(text, Path::new("/x/ipam.json")).unwrap();
            assert_eq!(found.entries, now, "{at} times {step}");
        }
    }
}
