# SPDX-License-Identifier: Apache-2.0
#
# flatd's tasks; `make help` lists them. Go alone builds it: what clang makes of
# bpf/flat.c is committed, and `make generate` makes it anew.

BIN     ?= bin
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)

# Where `make install` puts things. DESTDIR goes before each of them.
PREFIX     ?= /usr
bindir     ?= $(PREFIX)/bin
docdir     ?= $(PREFIX)/share/doc/flatd
libdir     ?= $(PREFIX)/lib
mandir     ?= $(PREFIX)/share/man
schemadir  ?= $(PREFIX)/share/flatd
sysconfdir ?= /etc

# How long `make fuzz` stays with each of its targets.
FUZZTIME ?= 10s

# Attaching programs takes root; building does not.
SUDO        := $(if $(filter 0,$(shell id -u)),,sudo)
AS_ROOT     := $(if $(SUDO),-exec 'sudo -E env PATH=$(PATH)')
GO_BUILD    := CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)'
STATICCHECK := go run honnef.co/go/tools/cmd/staticcheck@v0.8.2

.DEFAULT_GOAL := build
.PHONY: help build run test test-go test-race test-soak fuzz bench generate check-generated lint install uninstall \
	setup-run setup-test clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

build: ## build bin/flatd and bin/flatctl
	$(GO_BUILD) -o $(BIN)/ ./cmd/flatd ./cmd/flatctl

run: setup-run build ## measure this host in the foreground, with a NATS server on 127.0.0.1:4222
	$(GO_BUILD) -tags natsserver -o $(BIN)/flatd-dev ./cmd/flatd
	@echo "In another terminal: $(SUDO) $(BIN)/flatctl --socket /run/flatd/dev.sock status; Ctrl-C ends"
	@# The programs would go on measuring after that, so take them away.
	@trap : INT TERM; $(SUDO) $(BIN)/flatd-dev --config packaging/dev.toml --nats-server 127.0.0.1:4222; \
		status=$$?; $(SUDO) $(BIN)/flatctl detach --config packaging/dev.toml >/dev/null; exit $$status

test: setup-test ## run every test; installs the tools they need
	@# One package at a time: several attach programs and make namespaces.
	go test -count=1 -p 1 -timeout 20m $(AS_ROOT) ./...
	@echo "make test: every test has passed"

test-go: ## run the tests that need neither root nor a kernel, with the race detector
	go test -race -short ./flows ./outputs ./packaging

test-race: setup-test ## the tests of the daemon with the race detector, in the tests and in the daemon
	FLATD_RACE=1 GORACE=halt_on_error=1 go test -race -count=1 -p 1 -timeout 25m $(AS_ROOT) ./daemon/...

test-soak: setup-test ## the tests that stop, kill, upgrade and flood flatd, in their long form
	FLATD_SOAK=60 go test -count=1 -p 1 -timeout 150m -run 'NothingIsLost|FirstStart|Spoofed|AwayForAWhile|Upgrade|EveryStage' \
		$(AS_ROOT) ./daemon ./outputs

fuzz: ## feed every parser hostile input for FUZZTIME each, the programs in the kernel too
	packaging/fuzz.sh $(FUZZTIME) $(AS_ROOT)

bench: setup-test ## run the benchmarks: a table, and the same in bin/bench.json; five minutes
	go run ./packaging/bench -o $(BIN)/bench.json -- $(AS_ROOT)

generate: ## compile bpf/flat.c into what is committed beside it (takes clang)
	go generate ./bpf

check-generated: generate ## fail if what is committed is not what the sources make
	git diff --exit-code --stat -- 'bpf/*_bpfe[lb].*'

lint: ## check format and style of Go, C and shell
	@! gofmt -l . | grep . || { echo "gofmt -w the files above" >&2; false; }
	go vet ./...
	go vet -tags natsserver ./cmd/...
	$(STATICCHECK) ./...
	clang-format --dry-run -Werror bpf/*.[ch]
	shellcheck .ci/run packaging/*.sh packaging/deb/* systemd/*.sh
	shellcheck -x -P SCRIPTDIR systemd/guests/*.sh
	shellcheck -s sh packaging/rpm/*
	packaging/pipes.sh Makefile .ci/run packaging/*.mk packaging/*.sh packaging/deb/* packaging/rpm/* \
		systemd/*.sh systemd/guests/*.sh

setup-run:
	packaging/setup.sh run

setup-test:
	packaging/setup.sh test

clean: ## remove what was built
	rm -rf $(BIN) $(DIST)

include packaging/guests.mk packaging/install.mk packaging/package.mk
