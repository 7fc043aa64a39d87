#!/usr/bin/env bash
# Lays out a CUDA 13 toolkit from PyPI wheels, so that the `cuda` feature compiles on a machine without CUDA or a GPU:
#
#     .ci/cuda-toolkit.sh DIR && . DIR/env.sh && CARGO_TARGET_DIR=target/cuda cargo check --features cuda
#
# candle's kernels take about eight minutes on two cores. CUDA_COMPUTE_CAP names the GPU's generation (default 90 =
# H100; 80 = A100; 89 = L4). A linked binary needs the driver (libcuda.so.1) where it runs; here a stand-in without
# a body satisfies the linker.
set -euo pipefail
dir=$(realpath -m "${1:?a directory for the toolkit}")
mkdir -p "$dir"
python3 -m venv "$dir/wheels"
"$dir/wheels/bin/pip" install --quiet --disable-pip-version-check \
  'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*' 'nvidia-cuda-runtime==13.0.*' \
  'nvidia-cuda-cccl==13.0.*' 'nvidia-cuda-nvrtc==13.0.*' 'nvidia-cublas==13.0.*' nvidia-curand

# One tree as nvcc expects it: the wheels' files by link, lib64, and libraries under their unversioned names.
home=$dir/home
rm -rf "$home"
mkdir -p "$home"
for part in "$dir"/wheels/lib/python3*/site-packages/nvidia/cu13/*; do cp -rs "$part" "$home/"; done
ln -sfn lib "$home/lib64"
mkdir -p "$home/lib/stubs"
for library in "$home"/lib/*.so.*; do
  plain=${library##*/}
  ln -sfn "$(readlink -f "$library")" "$home/lib/${plain%%.so*}.so"
done

# The stand-in: every function that cuda.h declares, returning CUDA_ERROR_NO_DEVICE.
{
  grep -ohE '\bcu[A-Z][A-Za-z0-9_]+\b' "$home/include/cuda.h" | sort -u |
    while read -r name; do echo "int $name(void) { return 100; }"; done
} | cc -w -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$home/lib/stubs/libcuda.so" -x c -

cat > "$dir/env.sh" <<ENV
export CUDA_HOME='$home' CUDA_PATH='$home' CUDA_ROOT='$home' NVCC='$home/bin/nvcc'
export CUDA_COMPUTE_CAP=\${CUDA_COMPUTE_CAP:-90}
export PATH='$home/bin':"\$PATH" LIBRARY_PATH='$home/lib:$home/lib/stubs'
export RUSTFLAGS="-L native=$home/lib -L native=$home/lib/stubs"
ENV
"$home/bin/nvcc" --version | tail -2
echo "toolkit in $dir; next: . $dir/env.sh"
