#!/usr/bin/env bash
# Every Rust file that git tracks was compiled: a test file that no target names looks green for ever.
# Run after `cargo clippy --workspace --all-targets`, whose dep-info files it reads.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=${CARGO_TARGET_DIR:-target}
seen=$(mktemp)
trap 'rm -f "$seen"' EXIT
find "$target" -name '*.d' -path '*/deps/*' -print0 | xargs -0 cat | tr ' ' '\n' | sed -n 's/\.rs:\?$/.rs/p' | sort -u >"$seen"
failed=0
while read -r file; do
  # cargo writes paths of workspace members relative to the workspace root.
  grep -qxF "$file" "$seen" || grep -qxF "$PWD/$file" "$seen" || { echo "orphan: no target compiles $file" >&2; failed=1; }
done < <(git ls-files '*.rs')
[ $failed -eq 0 ] && echo "no orphans"
exit $failed
