# What must pass before a change lands is `make test`; everything else is for people. `make help` lists it.

CARGO ?= cargo

.PHONY: help build demo test fmt lint unit simulate prove doc bench bench-detect bench-failure bench-memory clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  %-14s %s\n", $$1, $$2 }'

build: ## Build the optimised binary, target/release/shoal
	$(CARGO) build --release --locked

demo: build ## Run three nodes on this machine, with lines to try
	./target/release/shoal demo

test: fmt lint unit simulate doc ## Everything that must pass

fmt: ## Check the format
	$(CARGO) fmt --check

lint: ## Clippy, warnings denied, with and without the simulated network
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --lib --test simulation --features sim -- -D warnings

unit: ## Unit, property, system and documentation tests
	$(CARGO) test --locked

simulate: ## Whole clusters on a simulated network: SEEDS=5000 of them, or one with its logs, SEED=17
	$(CARGO) test --locked --features sim --test simulation -- --nocapture

# A seed that fails anyhow proves nothing, so that those of an unbroken node have to pass first.
FAULTS := no-tombstones early-drop no-versions restart-is-renewal

prove: simulate ## Break the node on purpose, in four ways, and see that the simulation finds each
	@for fault in $(FAULTS); do \
	  echo "fault-$$fault:"; \
	  if SEEDS=$(or $(SEEDS),200) UNTIL_FAILURE=1 $(CARGO) test --locked --features sim,fault-$$fault \
	    --test simulation promises -- --nocapture >target/prove-$$fault.log 2>&1; \
	  then echo "  NOT FOUND"; exit 1; \
	  elif ! grep -aE "^[0-9]+ seeds in" -A4 target/prove-$$fault.log; \
	  then tail -20 target/prove-$$fault.log; exit 1; fi; \
	done

doc: ## The API documentation, without warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items

bench: ## CPU of a local and of a forwarded request beside a bare hyper server; needs wrk
	$(CARGO) bench --locked --bench forward

bench-detect: ## How soon every node knows of a death, at 5 and 20 nodes
	$(CARGO) bench --locked --bench detect

bench-failure: ## Clients' view of kills, stops, restarts, joins and a split; needs root for the split. FLAGS="kill join" for some
	$(CARGO) bench --locked --bench failure -- $(FLAGS)

bench-memory: ## Resident bytes of an entry, and whether the memory bound holds
	$(CARGO) bench --locked --bench memory

clean: ## Remove everything that was built
	$(CARGO) clean
