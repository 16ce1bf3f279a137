"""A VPC in a box: EC2's API, a network that obeys it, instance metadata, and an internet.

One process is the only truth. A call of the EC2 API changes moto's state under rules that
moto lacks (README.md lists them with their sources), changes the network accordingly, and
only then is answered: an ENI that is "attached" has its interface in the node.

    nodes (namespaces)            fabric (namespace)                 internet (namespace)
    ens5, ens6 … ── veth per ENI ── one /32 route per address ────── records the sources
                                    EC2, IMDS, subnet gateways

Security groups are not modelled beyond the check that their ids exist and belong to the
VPC: the fabric passes whatever sources and destinations are held. Nor are network ACLs, and
public addresses other than the instance's primary one. A second VPC is peered with the
first: packets pass both ways, though EC2's API has no peering to show for it.
"""
