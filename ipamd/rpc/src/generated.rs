//! Made from `proto/` by `tests/generated.rs`; run that test with `SELVAGE_BLESS=1` to make it again.

/// Messages of the gRPC health protocol, and its client and server.
pub mod health;
/// Messages of ipamd, and its clients and servers.
pub mod ipam;
/// Messages for those who look at a running ipamd, and its client and server.
pub mod inspection;
