# The front door. What is more than a line lives in xtask/.
.DEFAULT_GOAL := help
.PHONY: up test test-templates lint bench fuzz clean help

up: ## Install what is missing, build, start the whole cloud here and push an example (ARGS="--listen …" passes flags)
	@cargo xtask up $(ARGS)

test: ## Install what the tests need, check format and lints, run every test
	@cargo xtask test $(ARGS)

test-templates: ## Build and call the sample function of every language, Go and Rust included (minutes)
	@cargo xtask test-templates $(ARGS)

lint: ## Format check, clippy with warnings as errors, repository rules
	@cargo xtask lint

bench: ## Measure the budgets side by side with a peer and print them as a table
	@cargo xtask bench $(ARGS)

fuzz: ## Throw random bytes at what strangers send (TARGET=host_and_path|place|query|sealed|alert, SECONDS=60)
	@cargo xtask fuzz $(or $(TARGET),host_and_path) $(or $(SECONDS),60)

clean: ## Remove what the build and the tests left
	@cargo xtask clean

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
