#!/usr/bin/env bash
# Puts the programs of a build folder, the shared libraries they need, the tiny models, the recipe, tests
# and benchmarks into one folder that can be carried to another machine. It leaves out the libraries of
# C and C++, because every machine has them and an older one could not load ours, and those of CUDA,
# because they are too large.
#     tests/gpu/bundle.sh BUILD BUNDLE
set -euo pipefail
cd "$(dirname "$0")/../.."
build=$1 bundle=$2
rm -rf "$bundle"
mkdir -p "$bundle/lib" "$bundle/data/world"
for program in train_grpo train_sft infer make_world r1_conformance r1_bench \
    libr1_cuda.so; do
    [ -f "$build/$program" ] || { echo "$build/$program is missing (the CUDA backend wants nvcc)" >&2; exit 2; }
    cp "$build/$program" "$bundle/"
    strip "$bundle/$program" 2>/dev/null || true
done
ldd "$build/train_grpo" "$build/r1_bench" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
    grep -Ev '/lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s|cublas|cublasLt|cuda)\.so' | xargs cp -L -t "$bundle/lib"
strip "$bundle"/lib/* 2>/dev/null || true
cp -r data/r1 data/presets "$bundle/data/"
cp -r data/world/base data/world/student-* data/world/*.jsonl "$bundle/data/world/"
cp tests/gpu/gpu-check tests/gpu/predict.py tests/gpu/torch_bench.py "$bundle/"
nvcc=$(sed -n 's/^NVCC:FILEPATH=//p' "$build/CMakeCache.txt")
cuda=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
echo "r1.cpp at $(git describe --always --dirty), built with CUDA $cuda" | tee "$bundle/VERSION"
du -sh "$bundle"
