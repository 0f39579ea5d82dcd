# A thin front over CMake presets; `make help` lists what there is. Everything built lies in build/<preset>.
SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup configure build dev test check format demo model chat clean distclean

PRESET ?= full
JOBS ?= $(shell nproc)
BUILD := build/$(PRESET)
MODEL := .deps/models/all-MiniLM-L6-v2
CHAT_MODEL := .deps/models/SmolLM2-135M-Instruct
PROMPT ?= Why is the sky blue?

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18
	@echo "  PRESET=full|dev|debug|sanitize chooses the build (now: $(PRESET)), JOBS=N the compilers at a time (now: $(JOBS))"

setup:  ## install what is missing: Debian packages, a CUDA toolkit
	@scripts/setup.sh

configure: setup
	@source .deps/env.sh && { test $(BUILD)/build.ninja -nt CMakePresets.json || cmake --preset $(PRESET); }

build: configure  ## build everything for PRESET
	@start=$$SECONDS; cmake --build $(BUILD) --parallel $(JOBS); echo "built $(BUILD) in $$((SECONDS - start)) s"

dev:  ## build with one tile only: seconds, for working on the code
	@$(MAKE) --no-print-directory build PRESET=dev

test: build  ## build and run all tests; those that need a GPU are skipped and counted where there is none
	@scripts/run_tests.sh $(BUILD) $(JOBS)

check: build  ## formatting, include rule, headers alone, kernel build guards
	@scripts/check.sh $(BUILD)

format:  ## lay out the sources with clang-format
	@scripts/format.sh

model:  ## fetch the demo's model
	@scripts/fetch_demo_model.sh

demo: build model  ## the main job: quantize a real model, write it, read it back, run every layer
	$(BUILD)/nybble demo $(MODEL)

chat: build  ## let a real 4-bit language model answer PROMPT
	@scripts/fetch_chat_model.sh
	$(BUILD)/nybble-llama generate $(CHAT_MODEL) --chat --prompt "$(PROMPT)"

clean:  ## remove what was built
	rm -rf build

distclean: clean  ## remove what was fetched, too
	rm -rf .deps
