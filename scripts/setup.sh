#!/usr/bin/env bash
# Installs what the build, the tests and the lab need and this machine lacks: Debian packages,
# the pinned Rust toolchain with the musl target, what the tests run with. Assumes a Debian 12 with root,
# git, make, rustup, Go and Python 3.11. Idempotent; silent and quick when nothing is missing.
#
#   scripts/setup.sh           what `make demo` needs
#   scripts/setup.sh --test    and cargo-nextest, for `make test` (built from source)
#   scripts/setup.sh --ci      and cargo-deny, which only `make ci` needs (built from source)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cache=${SELVAGE_CACHE:-$HOME/.cache/selvage}
nextest=0.9.151
deny=0.20.2
say() { printf '%s  setup: %s\n' "$(date +%T)" "$*" >&2; }

packages=(
  iptables ipset nftables conntrack iproute2 util-linux procps curl openssl ca-certificates # the lab and its observers
  busybox-static buildah debootstrap                                        # images without a Docker engine
  gcc libc6-dev musl-tools libseccomp-dev pkg-config protobuf-compiler      # builds: ring on musl, runc, the proto check
)
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  say "apt-get install ${missing[*]}"
  log=$(mktemp)
  if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -20 "$log" >&2
    say "apt-get failed: the packages above come from Debian's own archive; the log is $log"
    exit 1
  fi
  rm -f "$log"
fi

for tool in go rustup python3 git make; do
  command -v $tool >/dev/null || { say "$tool is missing: install it first (README, \"What it needs\")"; exit 1; }
done

toolchain=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
if ! rustup +"$toolchain" target list --installed 2>/dev/null | grep -q x86_64-unknown-linux-musl ||
  ! rustup +"$toolchain" component list --installed 2>/dev/null | grep -q clippy; then
  say "rust $toolchain with clippy, rustfmt and the musl target"
  rustup toolchain install "$toolchain" --profile minimal --component clippy,rustfmt --target x86_64-unknown-linux-musl >&2
fi

# Tools that cargo builds live in the cache, beside the lab's components, not on the machine.
tool() { # tool NAME VERSION: cargo install, once per version
  local name=$1 version=$2 root=$cache/tools
  [ -e "$root/.$name-$version" ] && return
  say "building $name $version (a few minutes, once)"
  mkdir -p "$root"
  CARGO_TARGET_DIR=$root/build cargo install --quiet --locked --force --root "$root" "$name@$version" >&2
  rm -rf "$root/build"
  touch "$root/.$name-$version"
}
case ${1:-} in
  "") ;;
  --test) tool cargo-nextest $nextest ;;
  --ci) tool cargo-nextest $nextest; tool cargo-deny $deny ;;
  *) say "what is $1? See the head of scripts/setup.sh"; exit 2 ;;
esac
