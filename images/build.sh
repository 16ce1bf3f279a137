#!/usr/bin/env bash
# Builds the binaries and, without a Docker engine, the two images from the Dockerfile beside
# this script, as archives that `ctr image import` takes.
#
#   images/build.sh         prints ipamd=ARCHIVE and policy=ARCHIVE; the images are named
#                           localhost/selvage-ipamd:dev and localhost/selvage-policy:dev
#   images/build.sh stage   only the binaries: prints the folder, a context for `docker build`
#
# An archive's name is a hash of what goes in, so that nothing is built twice.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
cache=${SELVAGE_CACHE:-$HOME/.cache/selvage}
images=$cache/images
target=x86_64-unknown-linux-musl
say() { printf '%s  %s\n' "$(date +%T)" "$*" >&2; }

mkdir -p "$images"
# One builder at a time: cargo would wait anyway, and buildah's storage is shared.
exec 9>"$images/lock"
flock 9

# --- the binaries: always these two commands, so that features unify the same way each time
# and the AWS SDK, which costs minutes, is compiled once.
export CARGO_TARGET_DIR=$cache/target
export CC_x86_64_unknown_linux_musl=${CC_x86_64_unknown_linux_musl:-musl-gcc}
started=$SECONDS
cd "$root"
cargo build --quiet --locked --release --target $target -p selvage-ipamd-aws -p selvage-policy >&2
# The plugin starts once for each pod, and a page fault costs a hundredth of a start: it is not position-independent (nothing
# is relocated), and has two segments instead of five.
CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_RUSTFLAGS="-C relocation-model=static -C link-arg=-Wl,-z,noseparate-code -C link-arg=-Wl,-z,norelro" \
  cargo build --quiet --locked --profile plugin --target $target -p selvage-cni >&2
if [ $((SECONDS - started)) -gt 2 ]; then say "binaries built in $((SECONDS - started)) s"; fi
ipamd=$CARGO_TARGET_DIR/$target/release/selvage-ipamd
policy=$CARGO_TARGET_DIR/$target/release/selvage-policy
plugin=$CARGO_TARGET_DIR/$target/plugin/aws-cni

stage=$images/stage
rm -rf "$stage"
mkdir -p "$stage"
cp "$ipamd" "$policy" "$plugin" "$stage/"
if [ "${1:-}" = stage ]; then echo "$stage"; exit 0; fi

# --- the images
archive() { # archive NAME BINARY...: where that image's archive is, or will be
  local name=$1 key
  shift
  key=$(cat "$here/Dockerfile" "$here/base.sh" "$here/build.sh" "$@" | sha256sum | cut -c1-16)
  echo "$images/$name-$key.tar"
}
buildah() {
  command buildah --root "$images/storage" --runroot "$images/run" --storage-driver vfs "$@"
}
base=docker.io/library/debian:bookworm-slim

prepare() { # buildah, and the base image for it
  [ -z "${prepared:-}" ] || return 0
  prepared=yes
  # buildah runs RUN lines with a runc: the lab's, which is built anyway.
  PATH=$("$root/tests/components/build.sh"):$PATH
  export PATH BUILDAH_ISOLATION=chroot
  local rootfs label
  rootfs=$("$here/base.sh")
  label=$(basename "$rootfs" .tar)
  if [ "$(buildah inspect --type image --format '{{index .Docker.Config.Labels "base"}}' $base 2>/dev/null || true)" != "$label" ]; then
    say "importing $label as $base"
    printf 'FROM scratch\nADD %s /\nLABEL base=%s\nCMD ["bash"]\n' "$(basename "$rootfs")" "$label" |
      buildah bud --quiet -f - -t $base "$(dirname "$rootfs")" >&2
  fi
}

image() { # image NAME ARCHIVE
  local name=$1 out=$2 at=$SECONDS tag=localhost/selvage-$1:dev
  if [ -e "$out" ]; then return; fi
  prepare
  buildah bud --layers --pull-never -f "$here/Dockerfile" --target "$name" -t "$tag" "$stage" >"$images/$name.log" 2>&1 ||
    { tail -n 30 "$images/$name.log" >&2; say "buildah could not build $tag"; exit 1; }
  buildah push --quiet "$tag" "oci-archive:$out.part:$tag" >&2
  mv "$out.part" "$out"
  say "built $tag in $((SECONDS - at)) s"
  # Older ones of the same image, except the last two, which another checkout may be using.
  find "$images" -maxdepth 1 -name "$name-*.tar" -printf '%T@ %p\n' | sort -rn | tail -n +4 | cut -d' ' -f2- | xargs -r rm -f
  buildah rmi --prune >/dev/null 2>&1 || true
}

ipamd_archive=$(archive ipamd "$ipamd" "$plugin")
policy_archive=$(archive policy "$policy")
image ipamd "$ipamd_archive"
image policy "$policy_archive"
rm -rf "$stage"
echo "ipamd=$ipamd_archive"
echo "policy=$policy_archive"
