# The whole of the daily work; `make help` lists it.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := test

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Run the example shop: three modules and their events, on EVENT_DRIVER
	scripts/demo

.PHONY: demo-killed
demo-killed: ## Kill the demo ten times at random, in a database, and count what is left
	scripts/demo-killed

.PHONY: test
test: ## Vet and test with the race detector, on real brokers where they can be had
	scripts/test

.PHONY: lint
lint: ## Check formatting, go vet, staticcheck and what else scripts/lint/checks.go lists
	scripts/lint/run

FUZZTIME ?= 60s
.PHONY: fuzz
fuzz: ## Feed every decoder with hostile input, FUZZTIME (60s) each
	scripts/fuzz $(FUZZTIME)

.PHONY: vulnerabilities
vulnerabilities: ## Ask the Go vulnerability database about what this is built of
	scripts/vulnerabilities

.PHONY: memory
memory: ## Measure that memory stays bounded under what ought to fill it
	scripts/memory

.PHONY: bench
bench: ## Measure against the floor and the raw client, in one run
	scripts/bench

.PHONY: ledger
ledger: ## Kill processes at named points, thirty times each, and write what the ledger counts into docs/guarantees.md
	scripts/faults ledger $(FLAGS)

.PHONY: faults
faults: ## Put every driver through every fault, silence too, and write what the ledger counts into docs/guarantees.md
	scripts/faults all $(FLAGS)
	scripts/faults silence

.PHONY: silence
silence: ## Let every broker and database fall silent, and write what was measured into docs/guarantees.md
	scripts/faults silence $(FLAGS)

.PHONY: deployments
deployments: ## Let releases that differ follow each other on every durable driver, and write what is counted into docs/guarantees.md
	scripts/faults deployments $(FLAGS)

.PHONY: compare
compare: ## Do the same work with Watermill on one PostgreSQL, side by side
	scripts/compare

.PHONY: mutants
mutants: ## Break the code on purpose and see that a test notices
	go run ./scripts/mutants

.PHONY: open-transaction
open-transaction: ## Publish for 30 seconds beside open transactions of PostgreSQL, and print how long events took
	TIDINGS_OPEN_TRANSACTION=30s TIDINGS_REQUIRE_BROKERS=1 go test ./driver/sqldb -run TestRealOpenTransaction -count=1 -v

.PHONY: interop
interop: ## Let Go and TypeScript talk over real Kafka, SQS and Redis, both ways
	scripts/interop

.PHONY: cut
cut: ## Rehearse the cut into several Go modules
	scripts/module-cut

.PHONY: fresh
fresh: ## Rehearse a new machine: .ci/run in a fresh clone with an empty home and no cache
	scripts/fresh

.PHONY: brokers-up
brokers-up: ## Start the brokers that the tests use
	scripts/brokers up

.PHONY: brokers-down
brokers-down: ## End the brokers that were started here; their data stays
	scripts/brokers down

.PHONY: brokers-status
brokers-status: ## Show the brokers, one line each
	scripts/brokers status
