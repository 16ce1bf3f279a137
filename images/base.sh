#!/usr/bin/env bash
# Makes debian:bookworm-slim where no registry can be reached: debootstrap's minimal
# system, with what Debian's own slim image leaves out (documentation, locales, caches) left out.
#
# Prints the archive of the root file system. Made once and kept in the cache, named by a
# hash of this script; packages come from the mirror that this machine's apt uses.
set -euo pipefail
cache=${SELVAGE_CACHE:-$HOME/.cache/selvage}
suite=bookworm
key=$(sha256sum "${BASH_SOURCE[0]}" | cut -c1-16)
out=$cache/images/base-$key.tar
say() { printf '%s  %s\n' "$(date +%T)" "$*" >&2; }

if [ -e "$out" ]; then echo "$out"; exit 0; fi
mkdir -p "$cache/images"
# One builder at a time: a second waits here and then finds the work done.
exec 9>"$cache/images/base.lock"
flock 9
if [ -e "$out" ]; then echo "$out"; exit 0; fi
started=$SECONDS

# What apt on this machine uses for the suite: "site suite" lines, Debian's own only.
sites=$(apt-get indextargets --format '$(ORIGIN) $(SITE) $(RELEASE)' 'Created-By: Packages' 2>/dev/null |
  sed -n 's/^Debian //p' | sort -u || true)
mirror=$(awk -v suite=$suite '$2 == suite { print $1; exit }' <<<"$sites")
mirror=${mirror:-http://deb.debian.org/debian}
proxy=$(apt-config dump Acquire::http::Proxy 2>/dev/null | sed -n 's/^Acquire::http::Proxy "\(..*\)";$/\1/p')
if [ -n "$proxy" ]; then export http_proxy=${http_proxy:-$proxy}; fi

work=$(mktemp -d "$cache/images/base.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
say "debootstrap $suite"
if ! debootstrap --variant=minbase "$suite" "$work/root" "$mirror" >"$work/log" 2>&1; then
  tail -n 20 "$work/log" >&2
  exit 1
fi

cat >"$work/root/etc/dpkg/dpkg.cfg.d/slim" <<'SLIM'
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/groff/*
path-exclude /usr/share/info/*
path-exclude /usr/share/lintian/*
path-exclude /usr/share/linda/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
SLIM
# The RUN lines of a Dockerfile install from the same mirrors, security updates among them.
awk '{ print "deb " $1 " " $2 " main" }' <<<"${sites:-$mirror $suite}" >"$work/root/etc/apt/sources.list"
(
  cd "$work/root"
  find usr/share/doc -mindepth 2 ! -name copyright ! -type d -delete
  find usr/share/doc -mindepth 1 -type d -empty -delete
  rm -rf usr/share/{groff,info,lintian,linda,locale,man}/* var/cache/apt/*.bin var/cache/apt/archives/*.deb \
    var/lib/apt/lists/* var/log/*.log var/log/apt var/cache/debconf/*-old var/lib/dpkg/*-old
  tar --numeric-owner --sort=name -cf "$work/base.tar" --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' .
)
mv "$work/base.tar" "$out"
say "base image ready in $((SECONDS - started)) s"
echo "$out"
