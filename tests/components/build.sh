#!/usr/bin/env bash
# Builds the real components the lab runs on, from pinned modules, into the cache:
# Kubernetes, etcd, agnhost, the upstream e2e suite, containerd, runc and the CNI plugins.
#
# Prints the folder that holds them. The folder's name is a hash of what goes in, so a
# fresh clone on the same machine finds it warm, and a change of pins builds anew.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${SELVAGE_CACHE:-$HOME/.cache/selvage}
key=$(cd "$here" && cat build.sh kubernetes/go.sum containerd/go.sum | sha256sum | cut -c1-16)
out=$cache/components/$key
say() { printf '%s  %s\n' "$(date +%T)" "$*" >&2; }

if [ -e "$out/.complete" ]; then echo "$out"; exit 0; fi
mkdir -p "$cache/components"
# One builder at a time: a second waits here and then finds the work done.
exec 9>"$cache/components/lock"
flock 9
if [ -e "$out/.complete" ]; then echo "$out"; exit 0; fi
mkdir -p "$out"
started=$SECONDS

version=v1.36.3
flags="-s -w -X k8s.io/component-base/version.gitVersion=$version -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36 -X k8s.io/client-go/pkg/version.gitVersion=$version"
package() { # package NAME IMPORT-PATH FLAGS...
  local name=$1 path=$2; shift 2
  [ -x "$out/$name" ] && return
  local at=$SECONDS
  go build -trimpath "$@" -o "$out/.$name.part" "$path" >&2
  mv "$out/.$name.part" "$out/$name"
  say "built $name in $((SECONDS - at)) s"
}

export CGO_ENABLED=0
cd "$here/kubernetes"
for name in kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubectl kubelet; do
  package $name k8s.io/kubernetes/cmd/$name -ldflags "$flags"
done
package etcd go.etcd.io/etcd/server/v3 -ldflags "-s -w"
package agnhost k8s.io/kubernetes/test/images/agnhost -ldflags "-s -w"
if [ ! -x "$out/e2e.test" ]; then
  at=$SECONDS
  go test -c -trimpath -ldflags "$flags" -o "$out/.e2e.part" k8s.io/kubernetes/test/e2e >&2
  mv "$out/.e2e.part" "$out/e2e.test"
  say "built e2e.test in $((SECONDS - at)) s"
fi

cd "$here/containerd"
containerd=github.com/containerd/containerd/v2/cmd
plugins=github.com/containernetworking/plugins/plugins
for path in $containerd/containerd $containerd/containerd-shim-runc-v2 $containerd/ctr \
  $plugins/main/loopback $plugins/main/ptp $plugins/meta/portmap $plugins/meta/bandwidth \
  $plugins/meta/tuning $plugins/ipam/host-local; do
  package "${path##*/}" "$path" -ldflags "-s -w" -tags "no_btrfs no_zfs no_devmapper"
done
# runc without libseccomp starts no sandbox ("seccomp not supported"): the one that needs C.
CGO_ENABLED=1 package runc github.com/opencontainers/runc -ldflags "-s -w" -tags seccomp

touch "$out/.complete"
say "components ready in $((SECONDS - started)) s: $out"
echo "$out"
