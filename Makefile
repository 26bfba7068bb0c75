# What must pass before a change lands is `make test`; everything else is for people. `make help` lists it.

CARGO ?= cargo

.PHONY: help build demo test fmt lint deny advisories unit simulate test-net model prove fuzz doc bench bench-detect bench-failure bench-idle bench-memory clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  %-14s %s\n", $$1, $$2 }'

build: ## Build the optimised binary, target/release/shoal
	$(CARGO) build --release --locked

demo: build ## Run three nodes on this machine, with lines to try
	./target/release/shoal demo

test: fmt lint deny unit simulate doc ## Everything that must pass

fmt: ## Check the format
	$(CARGO) fmt --check

lint: ## Clippy, warnings denied, with and without the simulated network
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --test network -- -D warnings
	$(CARGO) clippy --locked --lib --test simulation --features sim -- -D warnings

deny: ## Licences, sources and bans of all crates that are built on
	@if $(CARGO) deny --version >/dev/null 2>&1; \
	then $(CARGO) deny check bans licenses sources; \
	else echo "cargo-deny is not installed: licences, sources and bans of crates are NOT checked (cargo install --locked cargo-deny)"; fi

# Apart from `make test`: an advisory of today says nothing of a change. Exits 1 for a finding alone.
advisories: ## What RustSec knows of the crates that are built on; needs cargo-deny and, to be of today, the network
	@if ! $(CARGO) deny --version >/dev/null 2>&1; then \
	  echo "cargo-deny is not installed: advisories are NOT checked (cargo install --locked cargo-deny)"; \
	elif $(CARGO) deny fetch db; then \
	  $(CARGO) deny check --disable-fetch advisories; \
	else \
	  echo "the database of advisories cannot be fetched, for the reason above: advisories are NOT checked"; \
	fi

unit: ## Unit, property, system and documentation tests
	$(CARGO) test --locked

simulate: ## Whole clusters on a simulated network: SEEDS=5000 new ones, or one with its logs, SEED=17
	$(CARGO) test --locked --features sim --test simulation -- --nocapture

# Apart from `make test`, which asks for no rights on this machine; CI runs both.
test-net: ## Nodes in network namespaces under partial faults, as a table; needs root, iptables and faketime. ONLY="pair udp" for some
	$(CARGO) test --locked --test network -- --nocapture --test-threads=1

# A seed that fails anyhow proves nothing, so that those of an unbroken node have to pass first.
# Partial failures and aimed ones come from seed 10000 on.
FAULTS := 0:no-tombstones 0:early-drop 0:no-versions 0:restart-is-renewal 0:hasty-bootstrap \
  10000:no-wake 10000:decide-unfenced 10000:debts-stay 10000:refused-is-gone 10000:evict-without-mark \
  10200:finish-unseen

model: ## All states of the model of leases and conditional writes that fit: the tests that `make test` leaves out, some minutes
	$(CARGO) test --locked --release --test model -- --ignored

prove: simulate model ## Break the node on purpose, in eleven ways, and see that the simulation finds each
	@for planted in $(FAULTS); do \
	  first=$${planted%%:*}; fault=$${planted#*:}; \
	  echo "fault-$$fault:"; \
	  if FIRST=$(or $(FIRST),$$first) SEEDS=$(or $(SEEDS),500) UNTIL_FAILURE=1 $(CARGO) test --locked --features sim,fault-$$fault \
	    --test simulation promises -- --nocapture >target/prove-$$fault.log 2>&1; \
	  then echo "  NOT FOUND"; exit 1; \
	  elif ! grep -aE "^[0-9]+ seeds in" -A4 target/prove-$$fault.log; \
	  then tail -20 target/prove-$$fault.log; exit 1; fi; \
	done

FUZZ := gossip link batch request config

fuzz: ## Ten minutes of fuzzing for each of what strangers can send; needs a nightly compiler and cargo-fuzz. TARGETS="gossip link" for some
	$(CARGO) +nightly run --release --manifest-path tests/fuzz/Cargo.toml --bin corpus -- tests/fuzz/corpus
	for target in $(or $(TARGETS),$(FUZZ)); do \
	  $(CARGO) +nightly fuzz run --fuzz-dir tests/fuzz $$target -- -max_total_time=$(or $(SECONDS_EACH),600) -max_len=16384 || exit 1; \
	done

doc: ## The API documentation, without warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items

bench: ## CPU of a local and of a forwarded request beside a bare hyper server; needs wrk
	$(CARGO) bench --locked --bench forward

bench-detect: ## How soon every node knows of a death, at 5 and 20 nodes
	$(CARGO) bench --locked --bench detect

bench-failure: ## Clients' view of kills, stops, restarts, joins and a split; needs root for the split. FLAGS="kill join" for some
	$(CARGO) bench --locked --bench failure -- $(FLAGS)

bench-idle: ## CPU of a node at rest at 3, 10 and 40 nodes. FLAGS="--base BINARY" compares with another build
	$(CARGO) bench --locked --bench idle -- $(FLAGS)

bench-memory: ## Resident bytes of an entry, and whether the memory bound holds
	$(CARGO) bench --locked --bench memory

clean: ## Remove everything that was built
	$(CARGO) clean
