//! What CHECK compares.

use super::*;

#[test]
fn check_names_whatever_is_not_as_add_made_it() {
    let node = Node::new();
    let _ipamd = Ipamd::start(&[SECOND]);
    let sandbox = node.sandbox("cni-1", "web-0");
    let result = node.add(&sandbox).ok();
    let mut config = node.config("1.1.0");
    config["prevResult"] = serde_json::from_str(&result).unwrap();
    let check = || node.command("CHECK", &sandbox, &config);
    assert_eq!(check().ok(), "");
    let in_pod = ["-n", "cni-1"];
    let breaks: [(&[&str], &[&str], &str); 8] = [
        (
            &[],
            &["rule", "delete", "to", SECOND.0, "priority", "512"],
            "no rule 512: from all to 10.40.1.8/32 lookup 254",
        ),
        (
            &[],
            &["rule", "delete", "from", SECOND.0, "priority", "1536"],
            "no rule 1536: from 10.40.1.8/32 lookup 3",
        ),
        (
            &[],
            &["route", "delete", SECOND.0],
            "the host has no route 10.40.1.8/32",
        ),
        (
            &in_pod,
            &[
                "neighbour",
                "replace",
                "169.254.1.1",
                "lladdr",
                "02:00:00:00:00:99",
                "dev",
                "eth0",
            ],
            "no permanent neighbour 169.254.1.1",
        ),
        (
            &in_pod,
            &["neighbour", "delete", "169.254.1.1", "dev", "eth0"],
            "no permanent neighbour 169.254.1.1",
        ),
        (
            &in_pod,
            &["route", "delete", "default"],
            "the pod has no route 0.0.0.0/0",
        ),
        (
            &in_pod,
            &["address", "flush", "dev", "eth0"],
            "the pod has no address 10.40.1.8/32",
        ),
        (
            &[],
            &["link", "set", VETH, "down"],
            "eni0d7763386da is down",
        ),
    ];
    for (namespace, command, says) in breaks {
        run("ip", &[namespace, command].concat());
        let (code, _, details) = check().error();
        assert_eq!(code, 100, "{command:?}: {details}");
        assert!(details.contains(says), "{command:?}: {details}");
    }
    run("ip", &["link", "delete", VETH]);
    assert!(check().error().2.contains("the pod has no interface eth0"));
    config["prevResult"] = json!({ "interfaces": [], "ips": [] });
    let (_, _, details) = node.command("CHECK", &sandbox, &config).error();
    assert!(details.contains("not one of this plugin's"), "{details}");
}
