"""Records launches of the kernels in the interpreter, for the simulated device's tests: its kernels in Rust must give
what these kernels give.

    python tape.py             writes ../tests/fixtures/kernels*.tape.gz

Of every variant the smallest launch of the cases is kept, if it is small. A file is lines of JSON with base64, under
gzip: name, grid, and of each argument what it is before and, for pointers, after the launch.
"""

import base64
import gzip
import json
from pathlib import Path

import harness  # noqa: F401  (before Triton: it switches the interpreter on)
import adapters
import backward
import cases
import cases_adapters  # noqa: F401
import cases_backward  # noqa: F401
import cases_encoders  # noqa: F401
import encoders
import forward
from table import variants

FIXTURES = Path(__file__).resolve().parent.parent / "tests/fixtures"
# For each module its file, and the size of the arguments from which launches are left out.
FILES = {"forward": ("kernels.tape.gz", 48_000), "backward": ("kernels_backward.tape.gz", 130_000),
         "adapters": ("kernels_adapters.tape.gz", 48_000), "encoders": ("kernels_encoders.tape.gz", 130_000)}


def size(launch):
    return sum(len(a) for a in launch[2] if isinstance(a, bytes))


def line(launch):
    name, grid, before, after = launch
    args = []
    for a, b in zip(before, after):
        if not isinstance(a, bytes):
            args.append(a)
            continue
        arg = {"before": base64.b64encode(a).decode()}
        if a != b:
            arg["after"] = base64.b64encode(b).decode()
        args.append(arg)
    return json.dumps({"name": name, "grid": [*grid, 1, 1][:3], "args": args})


def smallest(module, most):
    """The smallest launch of every variant of a module, by name."""
    kept = {}
    for launch in cases.TAPE:
        if cases.TABLE[launch[0]].module == module and size(launch) <= most:
            if launch[0] not in kept or size(launch) < size(kept[launch[0]]):
                kept[launch[0]] = launch
    missing = {v.kernel for v in variants() if v.module == module} - {cases.TABLE[name].kernel for name in kept}
    assert not missing, f"not recorded: {sorted(missing)}"
    return kept


def main():
    cases.TAPE = []
    for _, fn, t in cases.jobs():
        fn({"forward": forward, "backward": backward, "adapters": adapters, "encoders": encoders}, t)
    for module, (name, most) in FILES.items():
        kept = smallest(module, most)
        text = "".join(line(kept[name]) + "\n" for name in sorted(kept))
        (FIXTURES / name).write_bytes(gzip.compress(text.encode(), 9, mtime=0))
        print(f"{name}: {len(kept)} launches, {(FIXTURES / name).stat().st_size} bytes")


if __name__ == "__main__":
    main()
