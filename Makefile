# SPDX-License-Identifier: MIT
# A thin front: installs what is missing, then calls CMake and CTest, which do the work and can be called directly.
.DEFAULT_GOAL := release
.PHONY: release demo test check asan tsan emu cuda gpu-bundle kernel-table fuzz bench format test-peers docs install clean help
JOBS ?= $(shell nproc)
SECONDS ?= 20
PREFIX ?= /usr/local
GPU_ARCHITECTURES ?= 80;90a;100;120
build = cmake --preset $(1) $(2) && cmake --build --preset $(1) -j $(JOBS)

release: ## set-up and release build: build/release/pfx (plain `make`)
	@scripts/setup.sh build
	$(call build,release,-D PFX_TESTS=OFF)

demo: ## train a prefix for a 135M-parameter model and see its text change, in a few minutes
	@scripts/setup.sh demo
	$(call build,release,-D PFX_TESTS=OFF)
	@scripts/demo.sh

test: ## everything: release, sanitizer, race and fuzz builds, all tests (about 20 minutes on 2 cores)
	@scripts/setup.sh test
	@scripts/fetch_model.sh || echo "pfx: no model: the tests that need it will be skipped" >&2
	$(call build,asan)
	$(call build,tsan)
	$(call build,fuzz)
	$(call build,emu)
	$(call build,cuda,-D PFX_TESTS=OFF -D PFX_BENCH=OFF)
	$(call build,release,-D PFX_TESTS=ON -D PFX_TEST_VARIANTS=ON)
	ctest --test-dir build/release --output-on-failure -j 2

check: ## the everyday part of the tests (under 5 minutes)
	@scripts/setup.sh test
	$(call build,release,-D PFX_TESTS=ON)
	ctest --test-dir build/release --output-on-failure -j 2 -L check

asan: ## the tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@scripts/setup.sh test
	$(call build,asan)
	ctest --test-dir build/asan --output-on-failure -j 2

tsan: ## the threaded tests under ThreadSanitizer (clang, libomp with Archer, the plain C product)
	@scripts/setup.sh test
	$(call build,tsan)
	ctest --test-dir build/tsan --output-on-failure -j 2

emu: ## build/emu/pfx, whose --device cuda is emulated, and the tests of the CUDA backend over it
	@scripts/setup.sh test
	$(call build,emu)
	ctest --test-dir build/emu --output-on-failure -j 2 -L emu

cuda: ## build/cuda/pfx, with the CUDA backend; fetches nvcc where there is no toolkit; see docs/gpu.md
	@scripts/setup.sh cuda
	$(call build,cuda)

gpu-bundle: ## build/gpu-bundle: what bench/gpu_check.sh needs on a machine with a GPU and no package registry (MODEL=FILE goes with it)
	@scripts/setup.sh cuda
	$(call build,gpu,-D "PFX_CUDA_ARCHITECTURES=$(GPU_ARCHITECTURES)")
	@scripts/gpu_bundle.sh $(MODEL)

kernel-table: cuda ## tests/kernels/resources.csv again: registers, shared memory, instructions of every kernel
	python3 tests/tools/kernel_table.py build/cuda "$$(scripts/fetch_cuda.sh tools)" --write

fuzz: ## every fuzzer for SECONDS=20 each, starting from its corpus
	@scripts/setup.sh fuzz
	$(call build,fuzz,-D PFX_FUZZ_SECONDS=$(SECONDS))
	ctest --test-dir build/fuzz --output-on-failure -j 2

bench: ## speed and memory against PEFT on this machine, about 25 minutes; see docs/performance.md
	@scripts/setup.sh peers
	$(call build,release,-D PFX_TESTS=OFF)
	@scripts/fetch_model.sh
	@bench/cpu_vs_peft.sh

test-peers: ## checks that need torch, transformers and peft, in a Python environment of their own
	@scripts/setup.sh peers
	@scripts/fetch_model.sh
	$(call build,release,-D PFX_TESTS=OFF)
	@tests/peers/run.sh

format: ## clang-format over the tree
	@scripts/setup.sh format
	@find include host kernels tests examples bench -name '*.[ch]' | xargs clang-format -i

docs: release ## docs/cli.md from the command's own tables
	build/release/pfx --help-markdown >docs/cli.md

install: ## install the release build under PREFIX=/usr/local
	$(call build,release,-D CMAKE_INSTALL_PREFIX=$(PREFIX) -D PFX_TESTS=OFF)
	cmake --install build/release
	@[ "$$(id -u)" != 0 ] || ldconfig # lets programs find the shared library; other folders than the system's are not touched

clean: ## remove build/
	rm -rf build

help: ## this list
	@sed -n 's/^\([a-z-]*\):.* ## \(.*\)/  make \1 \t\2/p' $(MAKEFILE_LIST) | expand -t 20
