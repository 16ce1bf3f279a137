//! Links, addresses, routes, rules and neighbours of a node and its pods, over netlink.
