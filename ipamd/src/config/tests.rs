use super::*;

fn set(change: impl FnOnce(&mut Args)) -> Result<Config, BadSetting> {
    let mut args = Args::default();
    change(&mut args);
    Config::try_from(&args)
}

#[test]
fn nothing_set_means_what_it_means_to_awss_daemon() {
    let config = set(|_| {}).unwrap();
    assert_eq!(config.targets, Targets::default());
    assert_eq!(config.targets.warm_enis, 1);
    assert_eq!(config.cooldown, Duration::from_secs(30));
    assert_eq!(config.reconcile, Duration::from_secs(60));
    assert_eq!(config.eni_mtu, 9001);
    assert_eq!(config.pod_mtu, 9001);
    assert_eq!(config.veth_prefix, "eni");
    assert!(!config.external_snat);
    assert_eq!(config.randomize_snat, RandomizeSnat::Prng);
    assert_eq!(config.metrics_addr, Some("0.0.0.0:61678".parse().unwrap()));
}

#[test]
fn a_variable_that_is_empty_is_one_that_is_not_set() {
    let config = set(|a| {
        a.warm_ip_target = Some(String::new());
        a.max_eni = Some(" ".into());
        a.exclude_snat_cidrs = Some(String::new());
    })
    .unwrap();
    assert_eq!(config.targets, Targets::default());
    assert!(config.exclude_snat_cidrs.is_empty());
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
fn a_bad_value_is_refused_with_its_name_and_what_it_may_be() {
    type Change = fn(&mut Args, String);
    let rows: [(&str, Change, &str, &str); 15] = [
        (
            "WARM_IP_TARGET",
            |a, v| a.warm_ip_target = Some(v),
            "-1",
            "from 0 to 4096",
        ),
        (
            "WARM_ENI_TARGET",
            |a, v| a.warm_eni_target = Some(v),
            "many",
            "from 0 to 64",
        ),
        ("MAX_ENI", |a, v| a.max_eni = Some(v), "-2", "from -1 to 64"),
        (
            "RECONCILE_SECONDS",
            |a, v| a.reconcile_seconds = Some(v),
            "0",
            "from 1 to 3600",
        ),
        (
            "AWS_VPC_ENI_MTU",
            |a, v| a.eni_mtu = Some(v),
            "9002",
            "from 576 to 9001",
        ),
        (
            "POD_MTU",
            |a, v| a.pod_mtu = Some(v),
            "100",
            "from 576 to 9001",
        ),
        (
            "AWS_VPC_K8S_CNI_VETHPREFIX",
            |a, v| a.vethprefix = Some(v),
            "vlan",
            "not eth",
        ),
        (
            "AWS_VPC_K8S_CNI_VETHPREFIX",
            |a, v| a.vethprefix = Some(v),
            "a -j",
            "letters",
        ),
        (
            "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS",
            |a, v| a.exclude_snat_cidrs = Some(v),
            "10.0.0.0/8,x",
            "\"x\"",
        ),
        (
            "AWS_VPC_K8S_CNI_RANDOMIZESNAT",
            |a, v| a.randomizesnat = Some(v),
            "dice",
            "prng",
        ),
        (
            "ADDITIONAL_ENI_TAGS",
            |a, v| a.additional_eni_tags = Some(v),
            "{",
            "JSON object",
        ),
        (
            "ADDITIONAL_ENI_TAGS",
            |a, v| a.additional_eni_tags = Some(v),
            r#"{"node.k8s.amazonaws.com/x":"1"}"#,
            "reserved",
        ),
        (
            "CNI_BIN_DIR",
            |a, v| a.cni_bin_dir = Some(v),
            "opt/cni",
            "absolute",
        ),
        (
            "POLICY_READY_DIR",
            |a, v| a.policy_ready_dir = Some(v),
            "run/selvage",
            "absolute",
        ),
        (
            "POLICY_READY_TIMEOUT_SECONDS",
            |a, v| a.policy_ready_timeout_seconds = Some(v),
            "0",
            "from 1 to 60",
        ),
    ];
    for (name, change, value, want) in rows {
        let error = set(|a| change(a, value.into())).unwrap_err();
        assert_eq!(error.name, name, "{value}");
        assert!(error.to_string().contains(want), "{error}");
    }
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
