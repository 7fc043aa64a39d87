#!/usr/bin/env bash
# Makes the built-in model from its corpus: make.sh [OUT]   (default: builtin/)
# Needs Debian's packages bible-kjv, bible-kjv-text and dict-devil, python3, and an instructd binary ($INSTRUCTD).
# Takes about an hour on one core; a run that was cut off goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-builtin}
run=${INSTRUCTD:-target/release/instructd}
work=${WORK:-target/builtin}
mkdir -p "$work"
[ -e "$work/corpus.txt" ] || python3 scripts/builtin/corpus.py "$work/corpus.txt"
[ -e "$work/dialogues.jsonl" ] || python3 scripts/builtin/dialogues.py "$work/dialogues.jsonl"
for recipe in pretrain sft; do
  [ -e "$work/$recipe/model.safetensors" ] && continue
  sed "s|WORK|$work|g" "scripts/builtin/$recipe.json" >"$work/$recipe.args.json"
  "$run" train "$recipe" --args "$work/$recipe.args.json" | tee "$work/$recipe.metrics.json"
done
rm -rf "$work/export"
"$run" models export "$work/sft" "$work/export" --half
mkdir -p "$out"
cp "$work/export"/* "$out/"
