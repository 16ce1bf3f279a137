#!/usr/bin/env bash
# Who may depend on whom (docs/architecture.md, "Walls"): a dependency that crosses fails here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
failed=0
tree() { cargo tree --quiet --locked --edges normal,build --prefix none --package "$1" | awk '{print $1}' | sort -u; }

# forbid PACKAGE WHY REGEX: no dependency of PACKAGE, at any depth, has a name that matches.
forbid() {
  local crossed
  crossed=$(tree "$1" | grep -Ex "$3" || true)
  if [ -n "$crossed" ]; then
    printf 'wall: %s depends on %s: %s\n' "$1" "$(echo $crossed)" "$2" >&2
    failed=1
  fi
}

for package in selvage-policy selvage-policy-core selvage-netfilter; do
  forbid $package "enforcement never meets addressing" 'selvage-(cni|nodenet|ipamd.*)'
done
for package in selvage-cni selvage-nodenet selvage-ipamd selvage-ipamd-core selvage-ipamd-rpc selvage-ipamd-kube selvage-ipamd-aws; do
  forbid $package "addressing never meets enforcement" 'selvage-(policy.*|netfilter)'
done
for package in selvage-policy-core selvage-ipamd-core; do
  forbid $package "a core crate has no I/O, clock or runtime" 'tokio.*|kube.*|k8s-openapi|aws-.*|rustix|nix|hyper.*|tonic.*|async-.*'
done
for package in selvage-cni selvage-nodenet selvage-ipamd selvage-ipamd-core selvage-ipamd-rpc selvage-ipamd-kube; do
  forbid $package "only ipamd/aws compiles the AWS SDK" 'aws-(sdk|config|smithy|runtime).*'
done
forbid selvage-oracle "the second reading shares nothing with the code that it judges" 'selvage-([^o].*)|ipnet.*|cidr.*|kube.*|k8s-openapi'
forbid selvage-sim "the simulator runs the pool as it is, and nothing else of ours" \
  'selvage-(policy.*|netfilter|cni|nodenet|ipamd|ipamd-(rpc|aws)|tests|oracle|bench.*)|tokio.*|kube.*|aws-.*'

# A core crate does no I/O through the standard library either; its clippy.toml bans the calls one by one.
for core in policy/core ipamd/core; do
  if grep -rnE 'std::(process|fs|net::(Tcp|Udp)|time::(Instant|SystemTime)|thread)' "$core/src" | grep -vE '^[^:]+:[0-9]+: *//'; then
    echo "wall: $core: the lines above do I/O or read a clock" >&2
    failed=1
  fi
  [ -f "$core/clippy.toml" ] || { echo "wall: $core/clippy.toml is missing: it holds the banned calls" >&2; failed=1; }
done

[ $failed -eq 0 ] && echo "walls hold"
exit $failed
