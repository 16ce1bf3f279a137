#!/usr/bin/env bash
# Makes the lab's Python environment in the cache and prints its path.
#
# The folder's name is a hash of requirements.txt: a change of pins makes a new one, and
# an environment without its .complete marker is one that was interrupted.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${SELVAGE_CACHE:-$HOME/.cache/selvage}
key=$(sha256sum < "$here/requirements.txt" | cut -c1-16)
out=$cache/venv/$key

if [ -e "$out/.complete" ]; then echo "$out"; exit 0; fi
mkdir -p "$cache/venv"
# One maker at a time: a second waits here and then finds the work done.
exec 9>"$cache/venv/lock"
flock 9
if [ -e "$out/.complete" ]; then echo "$out"; exit 0; fi
started=$SECONDS
rm -rf "$out"
{
  # Debian keeps ensurepip apart, in python3-venv.
  if ! python3 -c 'import ensurepip' 2>/dev/null; then
    apt-get update
    apt-get install -y --no-install-recommends python3-venv
  fi
  python3 -m venv "$out"
  "$out/bin/pip" install --quiet --no-input --requirement "$here/requirements.txt"
  touch "$out/.complete"
  printf '%s  venv ready in %s s: %s\n' "$(date +%T)" "$((SECONDS - started))" "$out"
} >&2
echo "$out"
