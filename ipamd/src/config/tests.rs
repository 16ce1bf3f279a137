use super::*;

fn set(change: impl FnOnce(&mut Args)) -> Result<Config, BadSetting> {
    let mut args = Args::default();
    change(&mut args);
    Config::try_from(&args)
}

type Field = fn(&mut Args) -> &mut Option<String>;
type Change = fn(&mut Args, Option<String>);
type Holds = fn(&Config) -> bool;

#[test]
fn nothing_set_means_what_it_means_to_awss_daemon() {
    let config = set(|_| {}).unwrap();
    let unset = Targets {
        warm_prefixes: 0,
        ..Targets::default()
    };
    assert_eq!(config.targets, unset);
    assert_eq!(config.targets.warm_enis, 1);
    assert!(!config.prefix_delegation);
    assert_eq!(config.family, Family::V4);
    assert_eq!(config.custom_networking, None);
    assert!(config.subnet_discovery);
    assert!(config.manage_untagged);
    assert!(!config.manage_unschedulable);
    assert!(config.leak_cleanup);
    assert_eq!(config.provisioning, Provisioning::Full);
    assert!(!config.annotate_pod_ip);
    assert_eq!(config.cooldown, Duration::from_secs(30));
    assert_eq!(config.eni_mtu, 9001);
    assert_eq!(config.pod_mtu, 9001);
    assert!(!config.disable_pod_v6);
    assert!(!config.bandwidth);
    assert_eq!(config.veth_prefix, "eni");
    assert!(!config.external_snat);
    assert_eq!(config.randomize_snat, RandomizeSnat::Prng);
    assert!(config.node_port);
    assert_eq!(config.connmark.get(), 0x80);
    assert!(config.external_service_cidrs.is_empty());
    assert_eq!(config.cluster_endpoint, None);
    assert_eq!(config.metrics_addr, Some("0.0.0.0:61678".parse().unwrap()));
    let page = "127.0.0.1:61679".parse().unwrap();
    assert_eq!(config.introspection, Some(Listen::Tcp(page)));
}

#[test]
fn a_variable_that_is_empty_is_one_that_is_not_set() {
    let config = set(|a| {
        a.warm_ip_target = Some(String::new());
        a.max_eni = Some(" ".into());
        a.exclude_snat_cidrs = Some(String::new());
        a.enable_ipv4 = Some(String::new());
        a.node_port_support = Some(String::new());
        a.cluster_endpoint = Some(String::new());
    })
    .unwrap();
    assert_eq!(config, set(|_| {}).unwrap());
}

#[test]
fn zero_and_minus_one_mean_no_target_and_no_limit() {
    let config = set(|a| {
        a.warm_ip_target = Some("0".into());
        a.minimum_ip_target = Some("0".into());
        a.max_eni = Some("-1".into());
        a.warm_eni_target = Some("0".into());
    })
    .unwrap();
    assert_eq!(config.targets.warm_ips, None);
    assert_eq!(config.targets.minimum_ips, None);
    assert_eq!(config.targets.max_enis, None);
    assert_eq!(config.targets.warm_enis, 0);
}

#[test]
fn a_number_is_taken_at_its_bounds_and_refused_beyond_them_by_name() {
    let rows: [(&str, Field, i64, i64); 13] = [
        ("WARM_ENI_TARGET", |a| &mut a.warm_eni_target, 0, 64),
        ("WARM_IP_TARGET", |a| &mut a.warm_ip_target, 0, 4096),
        ("MINIMUM_IP_TARGET", |a| &mut a.minimum_ip_target, 0, 4096),
        ("WARM_PREFIX_TARGET", |a| &mut a.warm_prefix_target, 0, 1024),
        ("MAX_ENI", |a| &mut a.max_eni, -1, 64),
        ("MAX_PODS", |a| &mut a.max_pods, 0, 4096),
        (
            "IP_COOLDOWN_PERIOD",
            |a| &mut a.ip_cooldown_period,
            0,
            86_400,
        ),
        ("ADD_WAIT_SECONDS", |a| &mut a.add_wait_seconds, 0, 60),
        ("RECONCILE_SECONDS", |a| &mut a.reconcile_seconds, 1, 3600),
        ("AWS_VPC_ENI_MTU", |a| &mut a.eni_mtu, 576, 9001),
        ("POD_MTU", |a| &mut a.pod_mtu, 576, 9001),
        (
            "POLICY_READY_TIMEOUT_SECONDS",
            |a| &mut a.policy_ready_timeout_seconds,
            1,
            60,
        ),
        (
            "AWS_VPC_K8S_CNI_CONNMARK",
            |a| &mut a.connmark,
            1,
            u32::MAX as i64,
        ),
    ];
    for (name, field, low, high) in rows {
        for good in [low, high] {
            set(|a| *field(a) = Some(good.to_string())).unwrap();
        }
        for bad in [(low - 1).to_string(), (high + 1).to_string(), "x".into()] {
            let error = set(|a| *field(a) = Some(bad.clone())).unwrap_err();
            assert_eq!((error.name, &error.value), (name, &bad));
            for bound in [low, high] {
                assert!(error.want.contains(&bound.to_string()), "{error}");
            }
        }
    }
}

#[test]
fn ipv6_needs_a_larger_mtu() {
    let v6 = |mtu: &str| {
        set(|a| {
            a.enable_ipv6 = Some("true".into());
            a.enable_prefix_delegation = Some("true".into());
            a.pod_mtu = Some(mtu.into());
        })
    };
    assert_eq!(v6("1280").unwrap().pod_mtu, 1280);
    let error = v6("1279").unwrap_err();
    assert_eq!(
        error.to_string(),
        "POD_MTU=\"1279\": want a number from 1280 to 9001 (not set: as AWS_VPC_ENI_MTU)"
    );
}

#[test]
fn a_truth_is_read_as_go_reads_it_and_nothing_else_is_one() {
    let fields: [(&str, Field, Holds); 13] = [
        (
            "ENABLE_PREFIX_DELEGATION",
            |a| {
                a.warm_prefix_target = Some("1".into());
                &mut a.enable_prefix_delegation
            },
            |c| c.prefix_delegation,
        ),
        (
            "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG",
            |a| &mut a.custom_network_cfg,
            |c| c.custom_networking.is_some(),
        ),
        (
            "ENABLE_SUBNET_DISCOVERY",
            |a| &mut a.enable_subnet_discovery,
            |c| c.subnet_discovery,
        ),
        (
            "MANAGE_UNTAGGED_ENI",
            |a| &mut a.manage_untagged_eni,
            |c| c.manage_untagged,
        ),
        (
            "AWS_MANAGE_ENIS_NON_SCHEDULABLE",
            |a| &mut a.manage_enis_non_schedulable,
            |c| c.manage_unschedulable,
        ),
        (
            "DISABLE_LEAKED_ENI_CLEANUP",
            |a| &mut a.disable_leaked_eni_cleanup,
            |c| !c.leak_cleanup,
        ),
        (
            "DISABLE_NETWORK_RESOURCE_PROVISIONING",
            |a| &mut a.disable_network_resource_provisioning,
            |c| c.provisioning == Provisioning::AttachedOnly,
        ),
        (
            "ENABLE_IMDS_ONLY_MODE",
            |a| &mut a.enable_imds_only_mode,
            |c| c.provisioning == Provisioning::MetadataOnly,
        ),
        (
            "ANNOTATE_POD_IP",
            |a| &mut a.annotate_pod_ip,
            |c| c.annotate_pod_ip,
        ),
        (
            "AWS_VPC_K8S_CNI_EXTERNALSNAT",
            |a| &mut a.externalsnat,
            |c| c.external_snat,
        ),
        (
            "AWS_VPC_CNI_NODE_PORT_SUPPORT",
            |a| &mut a.node_port_support,
            |c| c.node_port,
        ),
        (
            "DISABLE_POD_V6",
            |a| &mut a.disable_pod_v6,
            |c| c.disable_pod_v6,
        ),
        (
            "ENABLE_BANDWIDTH_PLUGIN",
            |a| &mut a.enable_bandwidth_plugin,
            |c| c.bandwidth,
        ),
    ];
    for (name, field, holds) in fields {
        for yes in ["1", "t", "T", "true", "TRUE", "True"] {
            let config = set(|a| *field(a) = Some(yes.into())).unwrap();
            assert!(holds(&config), "{name}={yes}");
        }
        for no in ["0", "f", "F", "false", "FALSE", "False"] {
            let config = set(|a| *field(a) = Some(no.into())).unwrap();
            assert!(!holds(&config), "{name}={no}");
        }
        let error = set(|a| *field(a) = Some("yes".into())).unwrap_err();
        assert_eq!(error.name, name);
        assert!(
            error.to_string().contains("true or false (not set: "),
            "{error}"
        );
    }
}

#[test]
fn a_bad_value_is_refused_with_its_name_and_what_it_may_be() {
    let long = "x".repeat(64);
    let rows: [(&str, Field, &str, &str); 17] = [
        (
            "AWS_VPC_K8S_CNI_VETHPREFIX",
            |a| &mut a.vethprefix,
            "vlan",
            "not eth",
        ),
        (
            "AWS_VPC_K8S_CNI_VETHPREFIX",
            |a| &mut a.vethprefix,
            "abcde",
            "1 to 4",
        ),
        (
            "AWS_VPC_K8S_CNI_VETHPREFIX",
            |a| &mut a.vethprefix,
            "a -j",
            "letters",
        ),
        (
            "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS",
            |a| &mut a.exclude_snat_cidrs,
            "10.0.0.0/8,x",
            "\"x\"",
        ),
        (
            "AWS_EXTERNAL_SERVICE_CIDRS",
            |a| &mut a.external_service_cidrs,
            "fd00::/8",
            "IPv4 block",
        ),
        (
            "AWS_VPC_K8S_CNI_RANDOMIZESNAT",
            |a| &mut a.randomizesnat,
            "dice",
            "prng",
        ),
        (
            "ADDITIONAL_ENI_TAGS",
            |a| &mut a.additional_eni_tags,
            "{",
            "JSON object",
        ),
        (
            "ADDITIONAL_ENI_TAGS",
            |a| &mut a.additional_eni_tags,
            r#"{"node.k8s.amazonaws.com/x":"1"}"#,
            "reserved",
        ),
        (
            "HOST_CNI_BIN_PATH",
            |a| &mut a.cni_bin_dir,
            "opt/cni",
            "absolute",
        ),
        (
            "POLICY_READY_DIR",
            |a| &mut a.policy_ready_dir,
            "run/selvage",
            "absolute",
        ),
        (
            "ENI_CONFIG_LABEL_DEF",
            |a| &mut a.eni_config_label_def,
            "a/b/c",
            "[domain/]name",
        ),
        (
            "ENI_CONFIG_ANNOTATION_DEF",
            |a| &mut a.eni_config_annotation_def,
            &long,
            "[domain/]name",
        ),
        (
            "INTROSPECTION_BIND_ADDRESS",
            |a| &mut a.introspection_bind_address,
            "61679",
            "a port",
        ),
        (
            "INTROSPECTION_BIND_ADDRESS",
            |a| &mut a.introspection_bind_address,
            "unix:run/x",
            "unix:/path",
        ),
        (
            "METRICS_ADDR",
            |a| &mut a.metrics_addr,
            "everywhere",
            "0.0.0.0:61678",
        ),
        (
            "CLUSTER_ENDPOINT",
            |a| &mut a.cluster_endpoint,
            "ftp://x",
            "https://",
        ),
        (
            "NETWORK_POLICY_ENFORCING_MODE",
            |a| &mut a.network_policy_enforcing_mode,
            "loose",
            "standard",
        ),
    ];
    for (name, field, value, want) in rows {
        let error = set(|a| *field(a) = Some(value.into())).unwrap_err();
        assert_eq!(error.name, name, "{value}");
        assert!(error.to_string().contains(want), "{error}");
    }
}

#[test]
fn keys_that_kubernetes_takes_are_taken() {
    for key in [
        "k8s.amazonaws.com/eniConfig",
        "zone",
        "a-b_c.9",
        &"x".repeat(63),
    ] {
        let config = set(|a| {
            a.custom_network_cfg = Some("true".into());
            a.eni_config_label_def = Some(key.into());
        });
        let custom = config.unwrap().custom_networking.unwrap();
        assert_eq!(custom.label, key);
        assert_eq!(custom.annotation, "k8s.amazonaws.com/eniConfig");
    }
    for key in ["", "/x", "x/", "a b", "-a", "a.", "A.com/x"] {
        assert_eq!(cloud_key(key), key.is_empty(), "{key:?}");
    }
}

/// Whether a label's key is taken; an empty one is not set.
fn cloud_key(key: &str) -> bool {
    set(|a| a.eni_config_label_def = Some(key.into())).is_ok()
}

#[test]
fn combinations_that_awss_daemon_does_not_start_with_are_refused_with_what_would_do() {
    let yes = || Some("true".to_owned());
    let rows: [(&str, Change, &str); 9] = [
        (
            "ENABLE_PREFIX_DELEGATION",
            |a, yes| a.enable_prefix_delegation = yes,
            "WARM_PREFIX_TARGET",
        ),
        (
            "ENABLE_IPv4",
            |a, yes| {
                a.enable_ipv4 = yes.clone();
                a.enable_ipv6 = yes.clone();
                a.enable_prefix_delegation = yes;
            },
            "ENABLE_IPv6 is true too",
        ),
        (
            "ENABLE_IPv4",
            |a, _| a.enable_ipv4 = Some("false".into()),
            "ENABLE_IPv6 is not true either",
        ),
        (
            "ENABLE_IPv6",
            |a, yes| a.enable_ipv6 = yes,
            "ENABLE_PREFIX_DELEGATION=true",
        ),
        (
            "ENABLE_IPv6",
            |a, yes| {
                a.enable_ipv6 = yes.clone();
                a.enable_prefix_delegation = yes.clone();
                a.custom_network_cfg = yes;
            },
            "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG=false",
        ),
        (
            "ENABLE_POD_ENI",
            |a, yes| a.enable_pod_eni = yes,
            "want false",
        ),
        (
            "ENABLE_MULTI_NIC",
            |a, yes| a.enable_multi_nic = yes,
            "want false",
        ),
        (
            "ENABLE_V6_EGRESS",
            |a, yes| a.enable_v6_egress = yes,
            "want false",
        ),
        (
            "AWS_VPC_K8S_CNI_CONNMARK",
            |a, _| a.connmark = Some("0x100000000".into()),
            "0xffffffff",
        ),
    ];
    for (name, change, want) in rows {
        let error = set(|a| change(a, yes())).unwrap_err();
        assert_eq!(error.name, name, "{error}");
        assert!(error.to_string().contains(want), "{error}");
    }
}

#[test]
fn prefixes_go_with_any_of_their_targets_and_ipv6_with_none() {
    let fields: [Field; 3] = [
        |a| &mut a.warm_prefix_target,
        |a| &mut a.warm_ip_target,
        |a| &mut a.minimum_ip_target,
    ];
    for field in fields {
        let config = set(|a| {
            a.enable_prefix_delegation = Some("true".into());
            *field(a) = Some("1".into());
        });
        assert!(config.unwrap().prefix_delegation);
    }
    let config = set(|a| {
        a.enable_prefix_delegation = Some("true".into());
        a.enable_ipv6 = Some("true".into());
    })
    .unwrap();
    assert_eq!(config.family, Family::V6);
    assert!(!config.leak_cleanup, "AWS's daemon looks for none in IPv6");
}

#[test]
fn leaked_interfaces_are_looked_for_only_where_interfaces_are_made() {
    let fields: [Field; 2] = [
        |a| &mut a.enable_imds_only_mode,
        |a| &mut a.disable_network_resource_provisioning,
    ];
    for field in fields {
        let config = set(|a| *field(a) = Some("true".into())).unwrap();
        assert!(!config.leak_cleanup);
    }
}

#[test]
fn the_nodes_object_is_watched_where_a_mode_needs_it() {
    let needs = |manages_unschedulable, change: fn(&mut Args)| {
        set(|a| {
            a.manage_enis_non_schedulable = Some(String::from(manages_unschedulable));
            change(a);
        })
        .unwrap()
        .needs_node()
    };
    assert!(needs("false", |_| {}));
    assert!(!needs("true", |_| {}));
    assert!(!needs("false", |a| a.enable_imds_only_mode = Some("true".into())));
    assert!(needs("true", |a| a.custom_network_cfg = Some("true".into())));
}

#[test]
fn init_knows_its_two_settings_and_needs_no_other() {
    let prepared = |change: fn(&mut Args)| {
        let mut args = Args::default();
        change(&mut args);
        prepare(&args)
    };
    let plain = prepared(|_| {}).unwrap();
    assert_eq!(plain.family, hostnet::Family::V4);
    assert!(plain.tcp_early_demux);
    let v6 = prepared(|a| a.enable_ipv6 = Some("true".into())).unwrap();
    assert_eq!(v6.family, hostnet::Family::V6);
    let off = prepared(|a| a.disable_tcp_early_demux = Some("true".into())).unwrap();
    assert!(!off.tcp_early_demux);
    let error = prepared(|a| a.disable_tcp_early_demux = Some("maybe".into())).unwrap_err();
    assert_eq!(error.name, "DISABLE_TCP_EARLY_DEMUX");
}

#[test]
fn blocks_that_are_left_alone_are_kept_in_order_and_once() {
    let config = set(|a| {
        a.exclude_snat_cidrs = Some("172.16.5.1/12, 10.0.0.0/8,10.0.0.0/8".into());
    })
    .unwrap();
    let texts: Vec<String> = config
        .exclude_snat_cidrs
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(texts, ["10.0.0.0/8", "172.16.0.0/12"]);
}

#[test]
fn an_api_server_is_a_url_or_a_host() {
    for (text, url) in [
        ("https://api.example.com:443", "https://api.example.com:443"),
        ("api.example.com", "https://api.example.com"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("[fd00::1]:443", "https://[fd00::1]:443"),
    ] {
        let config = set(|a| a.cluster_endpoint = Some(text.into())).unwrap();
        assert_eq!(config.cluster_endpoint.as_deref(), Some(url));
    }
}

#[test]
fn what_is_turned_off_is_not_served() {
    let config = set(|a| {
        a.disable_metrics = Some("true".into());
        a.disable_introspection = Some("true".into());
    })
    .unwrap();
    assert_eq!(config.metrics_addr, None);
    assert_eq!(config.introspection, None);
    let config = set(|a| a.introspection_bind_address = Some("unix:/run/x".into())).unwrap();
    assert_eq!(config.introspection, Some(Listen::Unix("/run/x".into())));
}
