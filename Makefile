# The front door. CMakeLists.txt describes the build; this file says what to do with it. `make` lists the targets.

export DEBIAN_FRONTEND = noninteractive
JOBS ?= $(shell nproc)
PACKAGES = g++ cmake make ninja-build pkg-config nlohmann-json3-dev libpcre2-dev libutf8proc-dev libcli11-dev \
           libdnnl-dev nettle-dev libmpc-dev doctest-dev
PROGRAMS = train_grpo train_sft infer make_world

DEMO_FLAGS ?= --steps 300 --lr 4e-4 --warmup 20 --schedule cosine --eval-samples 4 --eval-every 50
RUNS ?= runs/demo
PAGE ?= runs/report.html
BASE_FLAGS ?= --no-shuffle --steps 4500 --batch-tokens 8192 --lr 3e-3 --warmup 100 --weight-decay 0.01

FUZZ_TARGETS ?= safetensors config tokenizer jsonl answer countdown
FUZZ_SECONDS ?= 600
N ?= 500

# $(call compile,FOLDER,CMAKE OPTIONS,TARGETS): Ninja where it is installed; a folder keeps the generator it began with.
define compile
	@generator=; [ -f $(1)/CMakeCache.txt ] || ! command -v ninja >/dev/null || generator="-G Ninja"; \
	cmake -S . -B $(1) $$generator -DCMAKE_BUILD_TYPE=Release $(2)
	@cmake --build $(1) --parallel $(JOBS) --target $(3)
endef

.PHONY: help deps check-deps build cuda test torture tsan conformance demo base r1 report watch bench bench-growth peers bundle mutants variants fuzz format clean
.NOTPARALLEL:

help:  ## lists the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 14

# $(missing) is a shell command that lists those of $(PACKAGES) that are not installed.
missing = for package in $(PACKAGES); do \
    dpkg -s $$package 2>/dev/null | grep -q '^Status: .* ok installed' || printf ' %s' $$package; done

deps:  ## installs the Debian/Ubuntu packages that are missing
	@command -v dpkg >/dev/null || { echo "No dpkg here: install what these Debian packages hold: $(PACKAGES)"; exit 0; }; \
	missing=$$($(missing)); [ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" = 0 ]; then root=; \
	elif command -v sudo >/dev/null; then root="sudo env DEBIAN_FRONTEND=noninteractive"; \
	else echo "Missing packages, and neither root nor sudo to install them; please have someone run:" \
	          "apt-get install$$missing" >&2; exit 1; fi; \
	echo "Installing$$missing"; \
	{ $$root apt-get update && $$root apt-get install -y --no-install-recommends $$missing; } </dev/null || \
	{ echo "Could not install$$missing; see apt-get's message above" >&2; exit 1; }

check-deps:
	@command -v dpkg >/dev/null || exit 0; missing=$$($(missing)); [ -z "$$missing" ] || \
	{ echo "Packages are missing. Install them with \`make deps\`, or: apt-get install$$missing" >&2; exit 1; }

build: check-deps  ## compiles the programs into build/, and the CUDA backend where nvcc is
	$(call compile,build,,$(PROGRAMS) r1_cuda)

cuda: check-deps  ## compiles the CUDA backend for sm_80 and sm_90 (nvcc of CUDA 12.4 or 13), and lists its kernels' registers and spills
	$(call compile,build,,r1_cuda)
	@tests/gpu/registers.sh build/cuda/*.log

test: deps  ## runs the tests, and at the same time once more under AddressSanitizer and UBSan; compiles the CUDA backend if nvcc is there
	$(call compile,build,,r1_tests r1_cuda)
	$(call compile,build-asan,-DR1_SANITIZE=ON,r1_tests)
	@tests/run_tests.sh build/r1_tests build-asan/r1_tests

torture: build  ## breaks N runs in every way we could think of, and compares what they end in with others (N=500: half an hour)
	tests/torture.py --build build --n $(N)

tsan: deps  ## looks for races: runs of every kind, whole, killed and signalled, under ThreadSanitizer
	$(call compile,build-tsan,-DR1_TSAN=ON,train_grpo train_sft infer)
	TSAN_OPTIONS=exitcode=66 setarch -R tests/torture.py --build build-tsan --threads 4 --n 50 --only kills,signals,programs

conformance: check-deps  ## compiles build/r1_conformance, the suite for devices alone: R1_BACKEND=NAME build/r1_conformance
	$(call compile,build,,r1_conformance)

demo: deps build  ## R1-Zero on a laptop: GRPO takes the shipped tiny base model through the countdown game (DEMO_FLAGS)
	build/train_grpo --model data/world/base --train data/world/countdown_train.jsonl \
	    --eval data/world/countdown_test.jsonl --out runs/demo --overwrite $(DEMO_FLAGS)

base: build  ## makes the base model anew into runs/base: a synthetic corpus, then pretraining (about 10 minutes)
	build/make_world --corpus runs/base/corpus.jsonl --documents 900000
	build/train_sft --model data/world/base/config.json --tokenizer data/world/base --data runs/base/corpus.jsonl \
	    --out runs/base --overwrite $(BASE_FLAGS)
	@cmp -s runs/base/model.safetensors data/world/base/model.safetensors && echo "It is the shipped one, byte for byte." || \
	echo "It differs from the shipped one: other flags, or another kind of CPU (rounding)."

r1: deps build  ## the whole recipe: R1-Zero, cold start, R1, distillation, and a report (SETTINGS, OUT, SEED; see data/r1)
	data/r1/r1.sh $(SETTINGS)

report:  ## one HTML page about runs: make report RUNS="runs/demo runs/other", or the seeds of a recipe (PAGE)
	data/r1/report.sh --out $(PAGE) $(RUNS)

watch:  ## the same page, written anew every 5 seconds while runs go on, until Ctrl-C; reload it in the browser
	@while :; do data/r1/report.sh --out $(PAGE) $(RUNS) >/dev/null || true; sleep 5; done

fuzz: deps  ## feeds the parsers hostile input under clang's sanitizers, FUZZ_SECONDS each
	@$(MAKE) --no-print-directory deps PACKAGES="clang libomp-dev"
	@[ -d build-fuzz ] || CC=clang CXX=clang++ cmake -S . -B build-fuzz -DR1_FUZZ=ON -DCMAKE_BUILD_TYPE=Release
	@cmake --build build-fuzz --parallel $(JOBS) --target r1_fuzz
	@printf '%s\n' $(FUZZ_TARGETS) | xargs -P $(JOBS) -I{} tests/fuzz/run.sh {} $(FUZZ_SECONDS)

bench: deps  ## times training and decoding beside the machine's peaks
	$(call compile,build,,r1_bench)
	build/r1_bench

bench-growth: deps  ## how speed and memory grow with lengths, batches, vocabulary and model, as a table (an hour)
	$(call compile,build,,r1_bench)
	tests/growth.py --record

peers: build  ## sets us beside PyTorch, transformers, TRL and llama.cpp: MODEL=folder DATA=problems.jsonl (pip, 7 GB, an hour)
	@[ -d "$(MODEL)" ] && [ -f "$(DATA)" ] || { echo "make peers wants MODEL, a model folder such as SmolLM2-135M-Instruct, and DATA, problems such as GSM8K's"; exit 2; }
	$(call compile,build,,r1_bench)
	@[ -d build-peers ] || python3 -m venv build-peers
	build-peers/bin/pip install -q torch transformers trl datasets safetensors gguf llama-cpp-python
	build-peers/bin/python tests/peers/peers.py --model "$(MODEL)" --data "$(DATA)" --record

variants: build  ## trains the tiny base with every preset, three seeds each, and prints a table (STEPS, SEEDS, PRESETS)
	@BUILD=build tests/variants.sh

mutants: deps  ## plants faults in the device layer, one at a time, and counts those that the tests catch (an hour)
	tests/mutants.sh

bundle: deps  ## makes bundle/, which runs on a GPU machine without installing anything: bundle/gpu-check
	$(call compile,build-bundle,-DR1_NATIVE=OFF -DCMAKE_DISABLE_FIND_PACKAGE_MPI=ON,$(PROGRAMS) r1_conformance r1_bench r1_cuda)
	tests/gpu/bundle.sh build-bundle bundle

format:  ## applies .clang-format to every source file
	find . -path './build*' -prune -o \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) -print0 \
	    | xargs -0 clang-format -i

clean:  ## removes what was built; runs/ stays
	rm -rf build build-peers build-asan build-tsan build-fuzz build-mutants build-bundle bundle
