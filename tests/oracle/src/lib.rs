//! A second reading of NetworkPolicy, and random clusters on which both must agree.
//!
//! ```text
//!              ┌─► reading   the API's documentation, word by word ─────────► allowed?
//! seed ─► cluster as JSON                                                       ║ same
//!              └─► policy-core: convert ─► index ─► compile ─► eval ──────────► passed?
//! ```
//!
//! [`reading`] is slow and plain: it asks each policy about each flow, from the raw JSON. It shares
//! nothing with the crate that it judges, so a misreading has to be made twice to go unseen.
//! [`generator`] makes small crowded clusters, where names, labels and addresses meet often;
//! [`probe`] picks the flows to ask about; [`shrink`] takes away what a difference doesn't need.
//!
//! ```
//! use selvage_oracle::probe::{End, Traffic};
//! use selvage_oracle::reading::allowed;
//! use serde_json::json;
//!
//! let cluster = json!({
//!     "pods": [{
//!         "metadata": {"namespace": "shop", "name": "web"},
//!         "spec": {"nodeName": "node-a"},
//!         "status": {"podIPs": [{"ip": "10.0.0.1"}]},
//!     }],
//!     "policies": [{
//!         "metadata": {"namespace": "shop", "name": "deny"},
//!         "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
//!     }],
//! });
//! let web = End::pod("shop", "web", "10.0.0.1".parse().unwrap());
//! let world = End::Address("198.51.100.1".parse().unwrap());
//! let http: Traffic = Traffic::Tcp(80);
//! assert!(!allowed(&cluster, &world, &web, http));
//! assert!(allowed(&cluster, &web, &world, http));
//! ```

pub mod generator;
pub mod probe;
pub mod random;
pub mod reading;
pub mod shrink;
