"""The variables of the lab."""
import pytest

from cluster.config import CHECKOUT, CHOICES, COMPONENTS, SETTINGS_OF, Config, ConfigError, read
from cluster.node import Limits


def test_an_empty_environment_gives_two_small_nodes_with_both_halves():
    config = read({})
    assert (config.nodes, config.cni, config.policy, config.types) == (2, "selvage", "selvage", ("t3.small", "t3.small"))
    assert config.agents() == ["selvage-ipamd", "selvage-policy"]


def test_an_empty_value_is_the_default():
    assert read({"CNI": "", "NODES": "", "TYPES": ""}) == read({})


def test_one_type_is_for_every_node():
    assert read({"NODES": "3", "TYPES": "m5.large"}).types == ("m5.large",) * 3


def test_a_caller_may_choose_another_default_type_but_not_for_ptp():
    assert read({}, default_type="c5.large").types[0] == "c5.large"
    # One ENI of a c5.large has nine addresses for pods.
    assert read({"CNI": "ptp"}, default_type="c5.large").types[0] == "m5.4xlarge"
    assert read({"TYPES": "t3.large"}, default_type="c5.large").types[0] == "t3.large"


@pytest.mark.parametrize("environment, says", [
    ({"CNI": "calico"}, "CNI=calico: must be one of selvage, ptp, none"),
    ({"PROXY": "ipvs"}, "PROXY=ipvs"),
    ({"NODES": "0"}, "NODES=0"),
    ({"NODES": "many"}, "NODES=many"),
    ({"NODES": "3", "TYPES": "a,b"}, "TYPES=a,b"),
    ({"TYPES": "a,"}, "TYPES=a,"),
])
def test_a_value_that_means_nothing_is_refused_by_name(environment, says):
    with pytest.raises(ConfigError, match=says):
        read(environment)


def test_a_mode_says_which_components_and_which_family():
    assert read({}).mode == "secondary" and read({}).family == 4 and not read({}).peered
    assert set(COMPONENTS) == set(CHOICES["MODE"])
    config = read({"MODE": "ipv6", "PEERED": "1", "SETTINGS": "MAX_ENI=2  WARM_IP_TARGET=3"})
    assert (config.family, config.peered) == (6, True)
    assert config.settings == (("MAX_ENI", "2"), ("WARM_IP_TARGET", "3"))
    with pytest.raises(ConfigError, match="MAX_ENI: must be NAME=value"):
        read({"SETTINGS": "MAX_ENI"})
    with pytest.raises(ConfigError, match="ptp"):
        read({"MODE": "prefix", "CNI": "ptp"})


@pytest.mark.parametrize("cni, told, pods", [("selvage", 20, 20), ("none", None, 29), ("ptp", None, 11)])
def test_a_kubelet_is_given_as_many_pods_as_there_will_be_addresses(cni, told, pods):
    assert Limits(enis=3, addresses=10, told=told).max_pods(Config(cni=cni)) == pods


def test_what_a_component_sets_is_told_to_the_binary_too():
    assert set(SETTINGS_OF) == {name for names in COMPONENTS.values() for name in names}
    for component, settings in SETTINGS_OF.items():
        shipped = (CHECKOUT / "manifests" / "components" / component / "kustomization.yaml").read_text()
        for name, value in settings.items():
            assert f'{{name: {name}, value: "{value}"}}' in shipped, component
