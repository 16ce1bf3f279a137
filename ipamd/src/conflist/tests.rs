use serde_json::json;

use super::*;
use crate::config::Args;

/// AWS's, as aws-node 1.23 writes it, with a plugin that somebody chained behind.
const AWS: &str = r#"{
  "cniVersion": "0.4.0", "name": "aws-cni", "disableCheck": true,
  "plugins": [
    {"name": "aws-cni", "type": "aws-cni", "vethPrefix": "eni", "mtu": "9001", "podSGEnforcingMode": "strict",
     "pluginLogFile": "/var/log/aws-routed-eni/plugin.log", "pluginLogLevel": "DEBUG",
     "capabilities": {"io.kubernetes.cri.pod-annotations": true}},
    {"name": "egress-cni", "type": "egress-cni", "mtu": "9001", "enabled": "false", "randomizeSNAT": "prng", "nodeIP": "",
     "ipam": {"type": "host-local", "ranges": [[{"subnet": "fd00::ac:00/118"}]], "routes": [{"dst": "::/0"}],
      "dataDir": "/run/cni/v4pd/egress-v6-ipam"}},
    {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
    {"type": "istio-cni", "name": "istio-cni", "log_level": "info"}
  ]
}"#;

struct Place {
    root: tempfile::TempDir,
    config: Config,
}

impl Place {
    fn new(change: impl Fn(&mut Args)) -> Self {
        let root = tempfile::tempdir().unwrap();
        let text = |p: &str| Some(root.path().join(p).to_string_lossy().into_owned());
        fs::create_dir_all(root.path().join("bin")).unwrap();
        fs::create_dir_all(root.path().join("net.d")).unwrap();
        fs::write(root.path().join("aws-cni"), "#!/bin/sh\n# one\n").unwrap();
        let mut args = Args {
            cni_bin_dir: text("bin"),
            cni_conf_dir: text("net.d"),
            cni_plugin: text("aws-cni"),
            ..Args::default()
        };
        change(&mut args);
        let config = Config::try_from(&args).unwrap();
        Self { root, config }
    }

    fn with(binaries: &[&str]) -> Self {
        let place = Self::new(|_| ());
        for binary in binaries {
            place.put(&format!("bin/{binary}"), "");
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn install(&self) -> Installed {
        install(&self.config, |_| Some(vec!["0.4.0".into(), "1.0.0".into()])).unwrap()
    }

    fn conflist(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path("net.d/10-aws.conflist")).unwrap()).unwrap()
    }

    fn types(&self) -> Vec<String> {
        let list = self.conflist();
        let plugins = list["plugins"].as_array().unwrap().iter();
        plugins
            .map(|one| one["type"].as_str().unwrap().to_owned())
            .collect()
    }
}

#[test]
fn the_conflist_names_the_plugin_with_texts_as_awss_plugin_wants_them() {
    let place = Place::with(&[]);
    place.install();
    assert_eq!(
        place.conflist(),
        json!({"cniVersion": "1.1.0", "name": "aws-cni", "plugins": [{
            "name": "aws-cni", "type": "aws-cni", "vethPrefix": "eni", "mtu": "9001", "podSGEnforcingMode": "strict",
            "pluginLogFile": "/var/log/aws-routed-eni/plugin.log", "pluginLogLevel": "Info",
            "capabilities": {"io.kubernetes.cri.pod-annotations": true},
        }]})
    );
}

#[test]
fn a_pods_mtu_is_its_own() {
    let place = Place::new(|args| args.pod_mtu = Some("1500".into()));
    place.install();
    assert_eq!(place.conflist()["plugins"][0]["mtu"], "1500");
}

#[test]
fn an_add_waits_for_policy_only_where_the_daemon_was_told_a_directory() {
    let rows = [
        (None, None, json!(null)),
        (Some(""), Some("9"), json!(null)),
        (
            Some("/run/ready"),
            None,
            json!({"directory": "/run/ready", "timeoutSeconds": 20}),
        ),
        (
            Some("/run/ready"),
            Some("60"),
            json!({"directory": "/run/ready", "timeoutSeconds": 60}),
        ),
    ];
    for (directory, seconds, expected) in rows {
        let place = Place::new(|args| {
            args.policy_ready_dir = directory.map(ToOwned::to_owned);
            args.policy_ready_timeout_seconds = seconds.map(ToOwned::to_owned);
        });
        place.install();
        assert_eq!(
            place.conflist()["plugins"][0]["policyReady"],
            expected,
            "{directory:?}"
        );
    }
}

#[test]
fn what_the_node_does_not_have_is_left_out_and_said() {
    let place = Place::with(&[]);
    let installed = place.install();
    assert_eq!(place.types(), ["aws-cni"]);
    let words = installed.missing[0].to_string();
    assert!(words.contains("bin/portmap is missing"), "{words}");
    assert!(words.contains("hostPort does not work"), "{words}");
    // It comes later: the next look chains it.
    place.put("bin/portmap", "");
    let installed = place.install();
    assert_eq!(installed.missing, []);
    assert_eq!(place.types(), ["aws-cni", "portmap"]);
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true});
    assert_eq!(place.conflist()["plugins"][1], portmap);
}

#[test]
fn bandwidth_and_tuning_are_chained_by_their_settings_and_go_with_them() {
    let mut place = Place::with(&["portmap", "bandwidth", "tuning"]);
    (place.config.bandwidth, place.config.disable_pod_v6) = (true, true);
    assert_eq!(place.install().missing, []);
    assert_eq!(place.types(), ["aws-cni", "portmap", "bandwidth", "tuning"]);
    let list = place.conflist();
    assert_eq!(list["plugins"][2]["capabilities"]["bandwidth"], true);
    for link in ["all", "default", "lo"] {
        let key = format!("net.ipv6.conf.{link}.disable_ipv6");
        assert_eq!(list["plugins"][3]["sysctl"][key], "1", "{link}");
    }
    (place.config.bandwidth, place.config.disable_pod_v6) = (false, false);
    place.install();
    assert_eq!(place.types(), ["aws-cni", "portmap"]);
}

#[test]
fn what_others_chained_stays_as_it_is_and_what_goes_with_aws_node_goes() {
    let mut place = Place::with(&["portmap", "tuning", "istio-cni"]);
    place.put("net.d/10-aws.conflist", AWS);
    place.install();
    assert_eq!(place.types(), ["aws-cni", "portmap", "istio-cni"]);
    let list = place.conflist();
    assert_eq!(list["plugins"][2]["log_level"], "info");
    assert_eq!(list.get("disableCheck"), None, "our plugin has a CHECK");
    // Theirs of a kind that we chain, too, with what they set.
    let mut edited = list;
    edited["plugins"][1] =
        json!({"type": "portmap", "capabilities": {"portMappings": true}, "masqAll": true});
    let sysctl = json!({"type": "tuning", "sysctl": {"net.core.somaxconn": "512"}});
    edited["plugins"].as_array_mut().unwrap().push(sysctl);
    edited["disableGC"] = json!(true);
    place.put("net.d/10-aws.conflist", &edited.to_string());
    place.config.disable_pod_v6 = true;
    place.install();
    assert_eq!(
        place.types(),
        ["aws-cni", "portmap", "tuning", "istio-cni", "tuning"]
    );
    let list = place.conflist();
    assert_eq!(list["plugins"][1]["masqAll"], true);
    assert_eq!(list["plugins"][4]["sysctl"]["net.core.somaxconn"], "512");
    assert_eq!(list["disableGC"], true);
}

#[test]
fn the_version_is_the_newest_that_every_plugin_in_the_list_speaks() {
    let speak = |versions: &[&str]| Some(versions.iter().map(|v| (*v).to_owned()).collect());
    let rows: [(Option<Vec<String>>, &str); 5] = [
        (speak(&["0.4.0", "1.0.0", "1.1.0"]), "1.1.0"),
        (speak(&["0.3.1", "0.4.0", "1.0.0"]), "1.0.0"),
        (speak(&["0.4.0"]), "0.4.0"),
        // Nothing that we know in common: its own ADD will say so.
        (speak(&["9.0.0"]), "0.4.0"),
        (None, "0.4.0"),
    ];
    for (spoken, expected) in rows {
        let place = Place::with(&["portmap"]);
        install(&place.config, |_| spoken.clone()).unwrap();
        assert_eq!(place.conflist()["cniVersion"], expected, "{spoken:?}");
        // The same list again: nobody is asked.
        install(&place.config, |path| panic!("{} is asked", path.display())).unwrap();
        assert_eq!(place.conflist()["cniVersion"], expected, "{spoken:?}");
    }
}

#[tokio::test]
async fn a_plugin_is_asked_for_its_versions_and_one_that_does_not_answer_is_not_known() {
    let place = Place::with(&[]);
    let script = |name: &str, text: &str| {
        place.put(name, text);
        let path = place.path(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    let answers = script(
        "answers",
        "#!/bin/sh\n[ \"$CNI_COMMAND\" = VERSION ] && echo '{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.4.0\"]}'\n",
    );
    assert_eq!(versions_of(&answers).await, Some(vec!["0.4.0".to_owned()]));
    let babbles = script("babbles", "#!/bin/sh\necho hello\n");
    assert_eq!(versions_of(&babbles).await, None);
    let hangs = script("hangs", "#!/bin/sh\nexec sleep 60\n");
    assert_eq!(versions_of(&hangs).await, None);
    assert_eq!(versions_of(&place.path("is-not-there")).await, None);
}

#[test]
fn a_conflist_that_is_not_json_is_replaced() {
    for text in ["", "{", "[]", "7"] {
        let place = Place::with(&[]);
        place.put("net.d/10-aws.conflist", text);
        place.install();
        assert_eq!(place.types(), ["aws-cni"], "{text:?}");
    }
}

/// A float prints in the shortest way that reads back as itself, if it is read back exactly.
#[test]
fn a_number_of_any_length_in_a_chained_plugin_is_written_once() {
    for number in [
        "9999999999909999999909",
        "0.1000000000000000055511151231257827",
        "123456789012345678e-250",
        "18446744073709551616",
    ] {
        let place = Place::with(&["tuning"]);
        place.put(
            "net.d/10-aws.conflist",
            &format!(r#"{{"plugins": [{{"type": "tuning", "n": {number}}}]}}"#),
        );
        place.install();
        assert_eq!(place.types(), ["aws-cni", "tuning"]);
        assert_eq!(place.install().changed, Vec::<PathBuf>::new(), "{number}");
    }
}

#[test]
fn what_is_right_is_not_written_again_and_what_is_wrong_is() {
    let place = Place::with(&[]);
    assert_eq!(place.install().changed.len(), 2);
    assert_eq!(place.install().changed, Vec::<PathBuf>::new());

    let plugin = place.path("bin/aws-cni");
    assert_eq!(
        fs::metadata(&plugin).unwrap().permissions().mode() & 0o777,
        0o755
    );
    // Same length, other content.
    place.put("aws-cni", "#!/bin/sh\n# two\n");
    assert_eq!(place.install().changed, [plugin.as_path()]);
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(place.install().changed, [plugin.as_path()]);

    let conflist = place.path("net.d/10-aws.conflist");
    place.put("net.d/10-aws.conflist", "{}");
    assert_eq!(place.install().changed, [conflist.as_path()]);
    let left: Vec<_> = fs::read_dir(place.path("net.d")).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn a_directory_that_is_missing_is_named() {
    let place = Place::with(&[]);
    fs::remove_dir(place.path("net.d")).unwrap();
    let error = install(&place.config, |_| None).unwrap_err().to_string();
    assert!(error.contains("net.d/10-aws.conflist"), "{error}");
}
