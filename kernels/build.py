"""Compiles every kernel of table.py to PTX ahead of time, without a GPU.

    python build.py            writes aot/*.ptx.gz and aot/manifest.json
    python build.py --check    compiles into memory and compares with what is there

PTX is made for compute capability 8.0 and PTX ISA 8.0: a driver from 525 on compiles it for the GPU that it finds.
One instruction set for all means one order of sums for all (mma.sync, never wgmma).
"""

import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from multiprocessing import Pool
from pathlib import Path

os.environ["TRITON_DISABLE_LINE_INFO"] = "1"

HERE = Path(__file__).resolve().parent
AOT = HERE / "aot"
CAPABILITY = 80
PTX_VERSION = 80
SHARED_MOST = 99 * 1024
TRITON = "3.6.0"


def compiled(variant):
    """PTX, metadata and resources of one variant."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module = __import__(variant.module)
    fn = getattr(module, variant.kernel)
    names = {"f32": "fp32", "f64": "fp64", "f16": "fp16"}
    signature = {}
    for name, kind in variant.params.items():
        star, plain = ("*", kind[1:]) if kind[0] == "*" else ("", kind.partition("/")[0])
        signature[name] = star + names.get(plain, plain)
    signature.update({name: "constexpr" for name in variant.constants})
    order = list(fn.arg_names)
    assert list(signature) == order, f"{variant.name}: {list(signature)} is not {order}"
    aligned = {(order.index(n),): [["tt.divisibility", 16]] for n, k in variant.params.items() if k[0] == "*"}
    promised = ((n, k.partition("/")[2]) for n, k in variant.params.items())
    aligned.update({(order.index(n),): [["tt.divisibility", int(of)]] for n, of in promised if of})
    source = ASTSource(fn=fn, signature=signature, constexprs=variant.constants, attrs=aligned)
    options = {"num_warps": variant.warps, "num_stages": variant.stages, "ptx_version": PTX_VERSION}
    made = triton.compile(source, target=GPUTarget("cuda", CAPABILITY, 32), options=options)
    ptx = made.asm["ptx"]
    return ptx, made.metadata, resources(made.asm["cubin"])


def resources(cubin):
    """Registers and local (spilled) bytes of a thread, as cuobjdump reads them."""
    import triton
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text.stdout))
    return {"registers": int(found["REG"]), "spilled": int(found["STACK"]) + int(found["LOCAL"])}


def entry(variant, ptx, metadata, used):
    return {
        "name": variant.name,
        "kernel": variant.kernel,
        "entry": re.search(r"\.entry (\w+)", ptx).group(1),
        "params": [[name, kind] for name, kind in variant.params.items()],
        "constants": {name: int(value) for name, value in variant.constants.items()},
        "warps": metadata.num_warps,
        "shared": metadata.shared,
        **used,
        "sha256": hashlib.sha256(ptx.encode()).hexdigest(),
    }


def described(variant):
    ptx, metadata, used = compiled(variant)
    return entry(variant, ptx, metadata, used), ptx


def main():
    import triton

    from table import variants

    if triton.__version__ != TRITON:
        sys.exit(f"build.py: triton {triton.__version__} is installed, hashes are those of {TRITON}")
    check = "--check" in sys.argv[1:]
    entries, texts = [], {}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        with Pool() as pool:
            for e, ptx in pool.imap(described, variants(), chunksize=4):
                entries.append(e)
                texts[e["name"]] = ptx
    wrong = []
    for e in entries:
        if e["shared"] > SHARED_MOST:
            wrong.append(f"{e['name']}: {e['shared']} bytes of shared memory, more than {SHARED_MOST}")
        if e["spilled"]:
            wrong.append(f"{e['name']}: {e['spilled']} bytes a thread are spilled")
        if "wgmma" in texts[e["name"]]:
            wrong.append(f"{e['name']}: wgmma")
    manifest = {"triton": TRITON, "capability": CAPABILITY, "ptx": PTX_VERSION, "kernels": entries}
    text = json.dumps(manifest, indent=None, separators=(",", ":")).replace('{"name"', '\n{"name"') + "\n"
    if check:
        there = AOT / "manifest.json"
        if not there.exists() or there.read_text() != text:
            old = {e["name"]: e for e in json.loads(there.read_text())["kernels"]} if there.exists() else {}
            differ = [e["name"] for e in entries if old.get(e["name"]) != e]
            wrong.append(f"aot/manifest.json differs from a rebuild: {', '.join(differ) or 'kernels are gone'}")
        for name, ptx in texts.items():
            file = AOT / f"{name}.ptx.gz"
            if not file.exists() or gzip.decompress(file.read_bytes()).decode() != ptx:
                wrong.append(f"aot/{name}.ptx.gz differs from a rebuild")
        for file in AOT.glob("*.ptx.gz"):
            if file.name.removesuffix(".ptx.gz") not in texts:
                wrong.append(f"aot/{file.name} belongs to no kernel")
    else:
        AOT.mkdir(exist_ok=True)
        for file in AOT.glob("*.ptx.gz"):
            file.unlink()
        for name, ptx in texts.items():
            (AOT / f"{name}.ptx.gz").write_bytes(gzip.compress(ptx.encode(), 9, mtime=0))
        (AOT / "manifest.json").write_text(text)
    shared = max(e["shared"] for e in entries)
    registers = max(e["registers"] for e in entries)
    print(f"{len(entries)} kernels, at most {shared} bytes of shared memory and {registers} registers")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
