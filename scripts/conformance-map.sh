#!/usr/bin/env bash
# docs/conformance.md maps corner cases to tests: each test that it names exists, and each case from 1
# to the last has a row. Prints how many cases have no test.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
git ls-files '*.rs' | python3 -c '
import re, sys

# What runs as a test: a function under an attribute that says so, or in a list that makes it one.
# A property is declared inside proptest!, with the attribute as well.
tests = set()
for path in sys.stdin.read().split():
    text = open(path).read()
    tests |= set(re.findall(r"#\[(?:tokio::)?test(?:\([^]]*\))?\]\s*(?:#\[[^]]*\]\s*)*(?:async )?fn (\w+)", text))
    for listed in re.findall(r"\bon_both_backends!\s*[\[({]([^\])}]*)[\])}]", text):
        tests |= set(re.findall(r"\b\w+\b", listed))

failed, open_cases, last = False, [], 0
for row in re.findall(r"^\| *\d.*$", open("docs/conformance.md").read(), re.M):
    number, case, named = [cell.strip() for cell in row.strip("|").split("|")]
    if int(number) != last + 1:
        print(f"conformance: case {number} follows {last}", file=sys.stderr)
        failed = True
    last = int(number)
    names = re.findall(r"`(\w+)`", named)
    for name in names:
        if name not in tests:
            print(f"conformance: case {number} names {name}, which is no test", file=sys.stderr)
            failed = True
    if not names:
        open_cases.append(number)
if last == 0:
    sys.exit("conformance: docs/conformance.md has no rows")
print(f"conformance: {last - len(open_cases)} of {last} cases have a test; not: {chr(44).join(open_cases) or chr(45)}")
sys.exit(failed)
'
