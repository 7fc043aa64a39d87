#!/usr/bin/env python3
"""Packs a built binary as a Python wheel, so that `pip install FILE.whl` gives people without Rust the program.

    cargo build --release && scripts/wheel.py [--binary target/release/instructd] [--out DIR]

The wheel holds the program alone, stripped of symbols where `strip` is installed, and no Python code. Its platform tag
names the newest symbol version of the C library that the binary asks for (`manylinux_2_34_x86_64` needs glibc 2.34 or
newer), so pip refuses it where it would not start. Equal binaries give equal wheels. Prints the path.
"""

import argparse
import base64
import hashlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def platform_tag(binary):
    """The tag of a Linux or macOS binary that was built on this machine."""
    machine = platform.machine()
    if sys.platform == "darwin":
        return f"macosx_11_0_{machine}"
    if sys.platform != "linux":
        sys.exit(f"wheels for {sys.platform} are not supported: build on Linux or macOS")
    found = {tuple(map(int, version.split(b"."))) for version in re.findall(rb"GLIBC_(2\.\d+)\b", binary)}
    if not found:
        return f"linux_{machine}"
    major, minor = max(found)
    return f"manylinux_{major}_{minor}_{machine}"


def stripped(path):
    """The bytes of the binary without its symbol table."""
    if not shutil.which("strip"):
        return path.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        shutil.copy(path, copy)
        subprocess.run(["strip", copy], check=True)
        return copy.read_bytes()


def pack(binary, out):
    package = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]
    name, version = package["name"], package["version"]
    data = stripped(binary)
    tag = f"py3-none-{platform_tag(data)}"
    info = f"{name}-{version}.dist-info"
    metadata = [
        "Metadata-Version: 2.4",
        f"Name: {name}",
        f"Version: {version}",
        f"Summary: {package['description']}",
        f"License-Expression: {package['license']}",
        "License-File: LICENSE",
        "Description-Content-Type: text/markdown",
        "",
        (ROOT / "README.md").read_text(),
    ]
    wheel = ["Wheel-Version: 1.0", "Generator: instructd", "Root-Is-Purelib: false", f"Tag: {tag}", ""]
    files = {
        f"{name}-{version}.data/scripts/{name}": data,
        f"{info}/METADATA": "\n".join(metadata).encode(),
        f"{info}/WHEEL": "\n".join(wheel).encode(),
        f"{info}/licenses/LICENSE": (ROOT / "LICENSE").read_bytes(),
    }
    record = []
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record.append(f"{path},sha256={digest},{len(content)}")
    record.append(f"{info}/RECORD,,")
    files[f"{info}/RECORD"] = ("\n".join(record) + "\n").encode()
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for path, content in files.items():
            entry = zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o100755 if "/scripts/" in path else 0o100644) << 16
            archive.writestr(entry, content)
    return target


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/instructd")
    parser.add_argument("--out", type=Path, default=ROOT / "target/wheel")
    known = parser.parse_args()
    if not known.binary.is_file():
        sys.exit(f"{known.binary} is missing: run cargo build --release, or name a binary with --binary")
    print(pack(known.binary, known.out))


if __name__ == "__main__":
    main()
