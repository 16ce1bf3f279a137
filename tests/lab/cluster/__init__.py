"""The cluster half of the lab: control plane, nodes, demo and conformance on the VPC of ../vpc."""
