//! The name of the host's end of a pod's veth: the one thing that both halves of a node agree on.

use sha1::{Digest, Sha1};

/// Hex digits of the hash in a name: with a prefix of 4 bytes that is 15, the kernel's limit.
const DIGITS: usize = 11;

/// The first 11 hex digits of `sha1("<namespace>.<pod>")`.
fn hash(namespace: &str, pod: &str) -> String {
    let digest = Sha1::new()
        .chain_update(namespace)
        .chain_update(".")
        .chain_update(pod)
        .finalize();
    let mut hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    hex.truncate(DIGITS);
    hex
}

/// Name of the host's end of the veth: `eni0d7763386da`. By name and not by UID: a pod that is made again
/// gets the same one, which is what lets a policy agent compute it before the pod has a sandbox.
pub fn host_veth(prefix: &str, namespace: &str, pod: &str) -> String {
    format!("{prefix}{}", hash(namespace, pod))
}

/// Name of the entry in the result that carries the device number; there is no such link.
pub fn dummy(namespace: &str, pod: &str) -> String {
    format!("dummy{}", hash(namespace, pod))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_calico_and_aws_compute() {
        for (namespace, pod, name) in [
            ("default", "nginx", "enic440f455693"),
            ("default", "web-0", "eni0d7763386da"),
            ("kube-system", "coredns-5d78c9869d-abcde", "eni4d5f75c480c"),
            ("kube-system", "aws-node", "eni91c0f2ebbec"),
        ] {
            assert_eq!(host_veth("eni", namespace, pod), name, "{namespace}/{pod}");
        }
        assert_eq!(host_veth("cali", "default", "nginx"), "calic440f455693");
        assert_eq!(dummy("default", "nginx"), "dummyc440f455693");
    }
}
