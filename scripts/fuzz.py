#!/usr/bin/env python3
"""Runs the libFuzzer targets of fuzz/ one after the other, each within limits of time and memory, and prints a line for each.

    scripts/fuzz.py [--seconds 3600] [--pack] [TARGET…]
    (needs a nightly toolchain and cargo-fuzz: rustup toolchain install nightly; cargo install cargo-fuzz)

The corpora begin with fuzz/corpora (those of earlier long runs, packed), fuzz/seeds and the fixtures of the tests, and stay
in fuzz/corpus for the next run. `--pack` writes them to fuzz/corpora. An input that ends a target is written to
fuzz/artifacts/TARGET; the script then ends with 1.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FUZZ = ROOT / "fuzz"
TARGETS = ["gguf", "safetensors", "config", "tokenizer", "imports", "parquet", "chat_template"]
# No input may take longer than this many seconds, or more memory than this many MiB.
SECONDS, MIB = 20, 1024


def seeds(target):
    """Files that the corpus begins with, by name."""
    found = {f"seed-{p.name}": p for p in sorted((FUZZ / "seeds" / target).glob("*"))}
    fixtures = ROOT / "tests/fixtures"
    if target in ("config", "tokenizer"):
        for path in sorted(fixtures.glob(f"**/{target}.json")):
            if path.stat().st_size < 100_000:
                found[f"fixture-{path.parent.name}"] = path
    if target == "safetensors":
        found["fixture"] = fixtures / "llama-tiny/model.safetensors"
    if target == "parquet":
        found["fixture"] = fixtures / "formats/preferences.parquet"
    return found


def unpack(target):
    packed = FUZZ / "corpora" / f"{target}.tar.xz"
    if packed.exists():
        with tarfile.open(packed) as archive:
            archive.extractall(FUZZ / "corpus", filter="data")


def pack(target):
    """Inputs that libFuzzer found; the others are in the repository already. The same corpus gives the same bytes."""
    def plain(entry):
        entry.mtime = entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    found = sorted(p for p in (FUZZ / "corpus" / target).iterdir() if not p.name.startswith(("seed-", "fixture")))
    (FUZZ / "corpora").mkdir(exist_ok=True)
    with tarfile.open(FUZZ / "corpora" / f"{target}.tar.xz", "w:xz", preset=9) as archive:
        for path in found:
            archive.add(path, f"{target}/{path.name}", filter=plain)


def run(target, seconds):
    """Runs one target; returns whether it ended well."""
    corpus, artifacts = FUZZ / "corpus" / target, FUZZ / "artifacts" / target
    for directory in (corpus, artifacts):
        directory.mkdir(parents=True, exist_ok=True)
    unpack(target)
    for name, path in seeds(target).items():
        shutil.copyfile(path, corpus / name)
    binary = next((FUZZ / "target").glob(f"*/release/{target}"))
    command = [binary, corpus, f"-max_total_time={seconds}", f"-timeout={SECONDS}", f"-rss_limit_mb={2 * MIB}",
               f"-malloc_limit_mb={MIB}", f"-artifact_prefix={artifacts}/", "-print_final_stats=1"]
    log = FUZZ / "artifacts" / f"{target}.log"
    with log.open("w") as out:
        status = subprocess.run(command, stdout=out, stderr=out).returncode
    text = log.read_text(errors="replace")
    stat = lambda name: (re.findall(rf"stat::{name}:\s+(\d+)", text) or ["?"])[-1]
    end = "nothing found" if status == 0 else f"ended with {status}, see {log}"
    print(f"{target}: {stat('number_of_executed_units')} inputs, slowest {stat('slowest_unit_time_sec')} s, peak "
          f"{stat('peak_rss_mb')} MB, {len(list(corpus.iterdir()))} kept: {end}", flush=True)
    return status == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--pack", action="store_true", help="keep the corpora in fuzz/corpora afterwards")
    parser.add_argument("targets", nargs="*", default=TARGETS)
    options = parser.parse_args()
    # Without a sanitizer: the few unsafe blocks are Miri's, and a target runs several times as fast.
    for target in options.targets:
        subprocess.run(["cargo", "+nightly", "fuzz", "build", "-s", "none", target], cwd=FUZZ, check=True)
    well = [run(target, options.seconds) for target in options.targets]
    if options.pack:
        for target in options.targets:
            pack(target)
    sys.exit(0 if all(well) else 1)


if __name__ == "__main__":
    main()
