//! The gRPC contract between the CNI plugin and ipamd.
