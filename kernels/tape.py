"""Records launches of forward.py in the interpreter, for the simulated device's tests: its kernels in Rust must give
what these kernels give.

    python tape.py             writes ../tests/fixtures/kernels.tape

Of every variant the smallest launch of the cases is kept, if it is small. The file is lines of JSON with base64, under gzip: name,
grid, and of each argument what it is before and, for pointers, after the launch.
"""

import base64
import gzip
import json
from pathlib import Path

import harness  # noqa: F401  (before Triton: it switches the interpreter on)
import backward
import cases
import forward
from table import variants

OUT = Path(__file__).resolve().parent.parent / "tests/fixtures/kernels.tape.gz"
# Launches with larger arguments are left out.
MOST_BYTES = 48_000


def size(launch):
    return sum(len(a) for a in launch[2] if isinstance(a, bytes))


def main():
    cases.TAPE = []
    for _, _, fn in cases.CASES:
        for t in ("f32", "bf16"):
            fn({"forward": forward, "backward": backward}, t)
    smallest = {}
    for launch in (launch for launch in cases.TAPE if size(launch) <= MOST_BYTES):
        kept = smallest.get(launch[0])
        if kept is None or size(launch) < size(kept):
            smallest[launch[0]] = launch
    missing = sorted({v.kernel for v in variants() if v.module == "forward"}
                     - {cases.TABLE[name].kernel for name in smallest})
    assert not missing, f"not recorded: {missing}"
    lines = []
    for name in sorted(smallest):
        _, grid, before, after = smallest[name]
        args = []
        for a, b in zip(before, after):
            if not isinstance(a, bytes):
                args.append(a)
                continue
            arg = {"before": base64.b64encode(a).decode()}
            if a != b:
                arg["after"] = base64.b64encode(b).decode()
            args.append(arg)
        lines.append(json.dumps({"name": name, "grid": [*grid, 1, 1][:3], "args": args}))
    text = "\n".join(lines) + "\n"
    OUT.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{len(lines)} launches, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
