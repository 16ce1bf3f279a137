"""Run and terminate instances, and their metadata options."""

from __future__ import annotations

from typing import Any

from moto.ec2.models.instances import Instance

from vpc import errors, layout, limits
from vpc.actions import Call, action
from vpc.attachments import attach
from vpc.enis import Wanted, create, delete, find, groups_of
from vpc.interfaces import Interface
from vpc.world import World, netns_of

DEFAULT_HOP_LIMIT = 2  # what EKS node images are launched with, so that pods reach IMDS


@action("RunInstances")
def run_instances(world: World, call: Call) -> Any:
    """API reference, RunInstances; of it what concerns the network, the rest is moto's."""
    token, parameters = call.text("ClientToken"), call.parameters()
    earlier = world.tokens.earlier("RunInstances", token, parameters)
    if earlier is not None:
        return earlier
    instance_type = call.text("InstanceType") or "m1.small"
    allowed = limits.of(instance_type)
    specs = _specs(world, call)
    if len(specs) > allowed.interfaces:
        raise errors.too_many_interfaces(len(specs), instance_type)
    tags = call.response._parse_tag_specification()
    netns = tags.get("instance", {}).get(layout.NETNS_TAG)
    count = _how_many(world, call, specs)
    if netns is not None:
        _check_netns(world, netns, count)

    reservation = world.backend.run_instances(
        call.text("ImageId"),
        count,
        None,
        [],
        instance_type=instance_type,
        is_instance_type_default=False,
        placement=None,
        region_name=world.region,
        subnet_id=specs[0]["subnet"].id,
        key_name=call.text("KeyName"),
        security_group_ids=[group.id for group in specs[0]["groups"]],
        tags=tags,
        metadata_options=_options(call.structure("MetadataOptions"), {}),
        client_token=token or "",
    )
    try:
        if netns is not None:
            world.fabric.ensure_node(netns)
        for instance in reservation.instances:
            for spec in specs:
                _launch_interface(world, instance, spec)
    except Exception:
        for instance in reservation.instances:
            _take_interfaces(world, instance)
        del world.backend.reservations[reservation.id]
        raise
    world.tokens.remember("RunInstances", token, parameters, reservation)
    return reservation


def _specs(world: World, call: Call) -> list[dict[str, Any]]:
    """What each interface shall be; the primary one first."""
    groups = call.listed("SecurityGroupIds")
    listed = call.listed("NetworkInterfaces")
    if not listed:
        if call.text("SubnetId") is None:
            # codes: VPCIdNotSpecified; the lab has no default VPC to fall back on.
            raise errors.Refusal("VPCIdNotSpecified", "No default VPC for this user.")
        single = call.text("PrivateIpAddress")
        listed = [
            {
                "DeviceIndex": 0,
                "SubnetId": call.text("SubnetId"),
                "Groups": groups,
                "Ipv6AddressCount": call.count("Ipv6AddressCount"),
                **({"PrivateIpAddress": single} if single else {}),
            }
        ]
    elif call.text("SubnetId") or groups:
        raise errors.bad_combination(
            "Network interfaces and an instance-level subnet ID or security groups may not be"
            " specified on the same request"
        )
    specs = [_spec(world, given) for given in listed]
    specs.sort(key=lambda spec: (spec["card"], spec["index"]))
    if (specs[0]["index"], specs[0]["card"]) != (0, 0):
        # seen: aws-cloudformation-user-guide#449.
        raise errors.bad_value(
            "When specifying network interfaces, you must include a device at index 0."
        )
    return specs


def _spec(world: World, given: dict[str, Any]) -> dict[str, Any]:
    existing = given.get("NetworkInterfaceId")
    if existing is not None:
        eni = find(world, existing)
        if eni.attached is not None:
            raise errors.interface_attached(eni.id)
        subnet, groups = eni.subnet, eni.group_set
    else:
        eni = None
        subnet = world.backend.get_subnet(given.get("SubnetId"))
        groups = groups_of(world, given.get("Groups") or [], subnet)
    addresses = [item["PrivateIpAddress"] for item in given.get("PrivateIpAddresses") or []]
    if given.get("PrivateIpAddress"):
        addresses.insert(0, given["PrivateIpAddress"])
    # An interface made at launch goes with its instance unless told otherwise; one that
    # was there before stays (API reference, InstanceNetworkInterfaceSpecification).
    ends = given.get("DeleteOnTermination", existing is None)
    return {
        "eni": eni,
        "subnet": subnet,
        "groups": groups,
        "index": int(given.get("DeviceIndex", 0)),
        "card": int(given.get("NetworkCardIndex", 0)),
        "wanted": Wanted(
            explicit=addresses,
            secondary=int(given.get("SecondaryPrivateIpAddressCount") or 0),
            prefix_count=int(given.get("Ipv4PrefixCount") or 0),
            ipv6_count=int(given.get("Ipv6AddressCount") or 0),
            ipv6_prefix_count=int(given.get("Ipv6PrefixCount") or 0),
        ),
        "description": given.get("Description") or "",
        "delete": str(ends).lower() == "true",
    }


def _how_many(world: World, call: Call, specs: list[dict[str, Any]]) -> int:
    """As many as there are addresses for, between MinCount and MaxCount (API reference)."""
    least, most = call.count("MinCount") or 1, call.count("MaxCount") or 1
    if not 1 <= least <= most:
        raise errors.bad_value(f"Invalid counts: {least} to {most}")
    needed: dict[str, int] = {}
    subnets = {}
    for spec in specs:
        if spec["eni"] is None:
            subnets[spec["subnet"].id] = spec["subnet"]
            taken = max(1, len(spec["wanted"].explicit)) + spec["wanted"].secondary
            needed[spec["subnet"].id] = needed.get(spec["subnet"].id, 0) + taken
    for subnet_id, each in needed.items():
        subnet = subnets[subnet_id]
        most = min(most, world.ledger(subnet.vpc_id).free(subnet) // each)
    if most < least:
        raise errors.no_free_addresses()
    return most


def _check_netns(world: World, netns: str, count: int) -> None:
    """A rule of the lab's own: one instance, one namespace."""
    if count != 1:
        raise errors.bad_value(f"{layout.NETNS_TAG} binds one instance, not {count}")
    for instance in world.instances():
        if netns_of(world.backend, instance.id) == netns:
            raise errors.bad_value(f"namespace {netns} is bound to {instance.id}")


def _launch_interface(world: World, instance: Instance, spec: dict[str, Any]) -> None:
    eni: Interface = spec["eni"] or create(
        world,
        spec["subnet"],
        [group.id for group in spec["groups"]],
        spec["description"],
        {},
        spec["wanted"],
    )
    try:
        attach(world, eni, instance, spec["index"], spec["card"])
    except Exception:
        if spec["eni"] is None:
            delete(world, eni)
        raise
    eni.set_delete_on_termination(world, spec["delete"])


def _take_interfaces(world: World, instance: Instance) -> None:
    """Takes all interfaces away; ENIs go by their DeleteOnTermination."""
    for eni in list(instance.nics.values()):
        ends = eni.attached.delete_on_termination
        world.fabric.detach(eni.id)
        eni.set_available(world)
        if ends:
            delete(world, eni)


@action("TerminateInstances")
def terminate_instances(world: World, call: Call) -> dict[str, Any]:
    """API reference, TerminateInstances: interfaces go by their DeleteOnTermination, and a
    second call is no error."""
    ids = call.listed("InstanceIds")
    if not ids:
        raise errors.bad_combination("No instances specified")
    answered = []
    for instance in world.backend.get_multi_instances_by_id(ids):
        before = {"Code": instance.state_code, "Name": instance.state}
        if instance.state != "terminated":
            _take_interfaces(world, instance)
            instance._state.name, instance._state.code = "terminated", 48
        answered.append(
            {
                "InstanceId": instance.id,
                "CurrentState": {"Code": 32, "Name": "shutting-down"},
                "PreviousState": before,
            }
        )
    return {"TerminatingInstances": answered}


@action("ModifyInstanceMetadataOptions")
def modify_instance_metadata_options(world: World, call: Call) -> dict[str, Any]:
    """API reference, ModifyInstanceMetadataOptions: what is not given stays as it is."""
    instance = world.backend.get_instance(call.needed("InstanceId"))
    given = {
        name: call.text(name)
        for name in ("HttpTokens", "HttpPutResponseHopLimit", "HttpEndpoint")
        if call.text(name) is not None
    }
    now = instance.metadata_options
    options = _options(
        given,
        {
            "HttpTokens": now.http_tokens,
            "HttpPutResponseHopLimit": now.http_put_response_hop_limit,
            "HttpEndpoint": now.http_endpoint,
        },
    )
    world.backend.modify_instance_metadata_options(
        instance.id,
        http_tokens=options["HttpTokens"],
        hop_limit=options["HttpPutResponseHopLimit"],
        http_endpoint=options["HttpEndpoint"],
        http_protocol="disabled",
        metadata_tags="disabled",
    )
    return {
        "InstanceId": instance.id,
        "InstanceMetadataOptions": {"State": "pending", **options},
    }


def _options(given: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """API reference, InstanceMetadataOptionsRequest: 1 to 64 hops."""
    options = {
        "HttpTokens": "required",
        "HttpPutResponseHopLimit": DEFAULT_HOP_LIMIT,
        "HttpEndpoint": "enabled",
        **before,
        **given,
    }
    options["HttpPutResponseHopLimit"] = int(options["HttpPutResponseHopLimit"])
    if not 1 <= options["HttpPutResponseHopLimit"] <= 64:
        raise errors.bad_value("HttpPutResponseHopLimit: 1 to 64")
    if options["HttpTokens"] not in ("required", "optional"):
        raise errors.bad_value(f"Invalid value '{options['HttpTokens']}' for HttpTokens")
    return options


def patch_instances() -> None:
    """moto's Instance makes interfaces of its own, and cannot be without one."""

    def no_interfaces(instance: Any, *_: Any, **__: Any) -> None:
        instance.nics = {}

    def of_primary(field: str) -> property:
        def get(instance: Any) -> Any:
            primary = instance.nics.get(0)
            return getattr(primary, field) if primary is not None else None

        return property(get)

    Instance.prep_nics = no_interfaces
    for name in ("private_ip", "private_ip_address"):
        setattr(Instance, name, of_primary("private_ip_address"))
    for name in ("public_ip", "public_ip_address"):
        setattr(Instance, name, of_primary("public_ip"))
    Instance.private_dns_name = of_primary("private_dns_name")
