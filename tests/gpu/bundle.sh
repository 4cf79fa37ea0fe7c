#!/usr/bin/env bash
# Puts the programs of a build folder, the shared libraries they need (but for libc's, which every machine has, and CUDA's,
# which are too large), the tiny model, tests and benchmarks into one folder that can be carried to another machine.
#     tests/gpu/bundle.sh BUILD BUNDLE
set -euo pipefail
cd "$(dirname "$0")/../.."
build=$1 bundle=$2
rm -rf "$bundle"
mkdir -p "$bundle/lib" "$bundle/data"
for program in train_grpo train_sft infer r1_conformance r1_bench libr1_cuda.so; do
    [ -f "$build/$program" ] || { echo "$build/$program is missing (the CUDA backend wants nvcc)" >&2; exit 2; }
    cp "$build/$program" "$bundle/"
    strip "$bundle/$program" 2>/dev/null || true
done
ldd "$build/train_grpo" "$build/r1_bench" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
    grep -Ev '/(libc|libm|libdl|librt|libpthread|ld-linux-x86-64|libcublas|libcublasLt|libcuda)\.so' |
    xargs cp -L -t "$bundle/lib"
strip "$bundle"/lib/* 2>/dev/null || true
cp -r data/tiny data/countdown "$bundle/data/"
cp tests/gpu/gpu-check tests/gpu/torch_bench.py "$bundle/"
du -sh "$bundle"
