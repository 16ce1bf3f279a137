#!/usr/bin/env bash
# Every Rust file that git tracks was compiled: a test file that no target names looks green for ever.
# (fuzz/engine is a workspace of its own, which `make fuzz` builds.)
# Asks cargo which artifacts a lint of the whole workspace has, and reads what went into each.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seen=$(mktemp)
trap 'rm -f "$seen"' EXIT
cargo clippy --quiet --locked --workspace --all-targets --message-format=json -- -D warnings |
  python3 -c '
import json, os, re, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("reason") != "compiler-artifact" or "path+file" not in message["package_id"]:
        continue
    for artifact in message["filenames"]:
        folder, name = os.path.split(artifact)
        info = os.path.join(folder, re.sub(r"^lib|\.[a-z]+$", "", name) + ".d")
        if os.path.exists(info):
            for word in open(info).read().split():
                if word.rstrip(":").endswith(".rs"):
                    print(os.path.relpath(word.rstrip(":")))
' | sort -u >"$seen"
failed=0
while read -r file; do
  grep -qxF "$file" "$seen" || { echo "orphan: no target compiles $file" >&2; failed=1; }
done < <(git ls-files '*.rs' ':!fuzz/engine')
[ $failed -eq 0 ] && echo "no orphans: $(wc -l <"$seen") files"
exit $failed
