# Every habit is a target; CI runs the same ones. `make demo` and `make test` are the two to know.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# Components, images, tools and cargo's target folder live outside the checkout, so that a fresh
# clone on the same machine is warm.
export SELVAGE_CACHE ?= $(HOME)/.cache/selvage
export CARGO_TARGET_DIR ?= $(SELVAGE_CACHE)/target
export PATH := $(SELVAGE_CACHE)/tools/bin:$(PATH)
export RUSTUP_TOOLCHAIN := $(shell sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)

# The lab's shape (docs/testing.md, "The lab"). Empty means the lab's own default.
export NODES CNI POLICY PROXY IPTABLES TYPES MODE PEERED SETTINGS KEEP FOCUS MINUTES COUNT SEED

LAB := tests/lab/lab
# The unit suites never compile the AWS SDK: its one crate is linted, released and tested on the lab.
LIGHT := --workspace --exclude selvage-ipamd-aws

.PHONY: help setup setup-test setup-ci demo cluster cluster-down conformance bench packets fuzz systemd images \
  fmt lint deny doc walls conformance-map orphans unit kernel lab-unit e2e e2e-modes faults test ci

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: ; @scripts/setup.sh
setup-test: ; @scripts/setup.sh --test
setup-ci: ; @scripts/setup.sh --ci

## The lab -------------------------------------------------------------------------------------
demo: setup ## the main job on real parts: a two-node cluster, pods on VPC addresses, policies measured
	@$(LAB) demo

cluster: setup ## a cluster that stays up; drive it with target/cluster/enter and target/cluster/kubeconfig
	@$(LAB) up

cluster-down: ## ends the cluster; always safe
	@$(LAB) down

conformance: setup ## upstream NetworkPolicy suite; FOCUS=regex picks tests
	@$(LAB) conformance

bench: setup ## every figure beside its floor, into target/bench/results.json; ONLY=prefix picks rows
	@tests/bench/bench $(if $(ONLY),--only $(ONLY))

packets: setup-test ## random clusters judged by packets: 200 a family and backend from a new seed; SEED=n repeats
	@seed=$${SEED:-$$RANDOM}; echo "seed $$seed"; SELVAGE_PACKETS=200 SELVAGE_SEED=$$seed \
	  cargo nextest run --locked -p selvage-tests -E 'test(packets_over)' --success-output immediate

fuzz: ## every parser of what others wrote, 10 CPU-minutes each; MINUTES=n shortens, TARGETS=names picks, KEEP=1 keeps
	@scripts/fuzz.sh $(TARGETS)

systemd: ## the units in packaging/ under a real systemd, in a container of its own
	@tests/systemd/check

images: setup ## the agents' images as archives, from the Dockerfiles that users build
	@images/build.sh

## Checks --------------------------------------------------------------------------------------
fmt: ## formatting, checked (cargo fmt writes it)
	cargo fmt --all --check

lint: ## clippy on everything, warnings are errors; the fuzzer's own lock file is up to date
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cd fuzz/engine && cargo metadata --locked --format-version 1 >/dev/null

deny: ## licences, sources and bans of the dependency tree
	cargo fetch --quiet --locked
	cargo deny --offline --log-level error check bans licenses sources

doc: ## public documentation, warnings are errors
	RUSTDOCFLAGS="-D warnings" cargo doc --locked $(LIGHT) --no-deps --document-private-items

conformance-map: ## every test that docs/conformance.md names exists
	@scripts/conformance-map.sh

walls: ## who may depend on whom
	@scripts/walls.sh

orphans: lint ## no Rust file is left out of every target
	@scripts/orphans.sh

unit: setup-test ## tests that need no privilege of their own and no cluster
	cargo nextest run --locked $(LIGHT) --lib --bins

kernel: setup-test ## tests on the real kernel, each in its own namespaces
	cargo nextest run --locked $(LIGHT) --test '*'

lab-unit: setup ## the lab's own rules: EC2, instance metadata, fabric
	@$(LAB) self-test

e2e: setup ## the demo as an assertion, and its POLICY=none twin that must fail
	@$(LAB) e2e

e2e-modes: setup ## every node mode through kubelet: who is seen at the far end; ONLY=part of a run's name
	@$(LAB) e2e-modes $(if $(ONLY),"$(ONLY)")

faults: setup ## random faults while pods come and go, on EC2, metadata and the node; COUNT=n, SEED=n
	@$(LAB) faults

test: unit kernel lab-unit e2e ## everything that tests

ci: setup-ci fmt lint orphans deny doc walls conformance-map test ## what CI runs
