#!/usr/bin/env bash
# Fuzzes every target in turn, or those that are named, each for MINUTES of processor time (10), and
# prints how many inputs were tried. What is found is kept in the build folder and tried first next
# time; KEEP=1 makes of it and of fuzz/corpus the new corpus, minimised.
# Stable Rust: libFuzzer needs coverage and comparisons, which are options of LLVM, and no sanitizer.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../fuzz"
host=$(rustc -vV | sed -n 's/^host: //p')
build=${CARGO_TARGET_DIR:-$PWD/../target}/fuzz
flags="--cfg fuzzing -C codegen-units=1 -C passes=sancov-module"
for option in level=4 inline-8bit-counters pc-table trace-compares; do
  flags+=" -C llvm-args=-sanitizer-coverage-$option"
done
(cd engine && RUSTFLAGS=$flags nice cargo build --quiet --locked --release --target "$host" --target-dir "$build")
engine=$build/$host/release/selvage-fuzz
seconds=$(awk "BEGIN { print int(60 * ${MINUTES:-10}) }")
targets=("$@")
[ $# -gt 0 ] || targets=($(sed -n 's/^ *name: "\(.*\)",$/\1/p' src/lib.rs))
failed=0
printf '%-12s %12s %8s %10s %7s\n' target executions "cpu s" "per cpu s" inputs
for target in "${targets[@]}"; do
  found=$build/corpus/$target log=$build/$target.log
  mkdir -p "$found" "corpus/$target"
  used=0 executions=0
  # libFuzzer counts the clock's seconds, and a loaded machine gives fewer: again, until enough.
  while [ "$used" -lt "$seconds" ]; do
    TIMEFORMAT='%U %S'
    status=0
    spent=$({ time SELVAGE_FUZZ=$target nice "$engine" "$found" "corpus/$target" -max_total_time=$((seconds - used)) \
      -timeout=10 -rss_limit_mb=1024 -max_len=8192 -print_final_stats=1 -artifact_prefix="$build/$target-" >"$log" 2>&1; } 2>&1) || status=$?
    used=$(awk "BEGIN { split(\"$spent\", t, \" \"); print int($used + t[1] + t[2] + 0.999) }")
    executions=$((executions + $(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | grep . || echo 0)))
    if [ $status -ne 0 ]; then
      failed=1
      grep -E -A3 "panicked at|^==[0-9]+==|Test unit written" "$log" >&2 || tail "$log" >&2
      break
    fi
  done
  if [ -n "${KEEP:-}" ]; then
    # One input for each branch, not for each number of times that it was taken.
    rm -rf "$build/kept" && mkdir "$build/kept"
    SELVAGE_FUZZ=$target nice "$engine" -set_cover_merge=1 -use_counters=0 -max_len=8192 \
      "$build/kept" "corpus/$target" "$found" >>"$log" 2>&1
    rm -r "corpus/$target" && cp -r "$build/kept" "corpus/$target"
  fi
  printf '%-12s %12d %8d %10d %7d\n' "$target" "$executions" "$used" $((executions / (used > 0 ? used : 1))) "$(ls "$found" | wc -l)"
done
exit $failed
