# SPDX-License-Identifier: Apache-2.0
#
# make package. Included by the Makefile. Equal sources make equal bytes: no
# time, path, user or umask of the machine that builds gets into a package.

DIST    ?= dist
ARCHES  ?= amd64 arm64
FORMATS ?= deb rpm
# Newer ones need modules, for formats of others, that not every proxy hands out.
NFPM    := go run github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.44.1

# Where distributions differ: zsh's functions, and the file with the licence.
zshdir_deb      := /usr/share/zsh/vendor-completions
zshdir_rpm      := /usr/share/zsh/site-functions
licensefile_deb := /usr/share/doc/flatd/copyright
licensefile_rpm := /usr/share/licenses/flatd/LICENSE

PACKAGES := $(foreach format,$(FORMATS),$(ARCHES:%=package-$(format)-%))
.PHONY: package $(PACKAGES)

package: $(PACKAGES) ## build deb and rpm packages into dist/, the same bytes each time

# What git says of the commit; without git, give VERSION=v1.2.3 SOURCE_DATE_EPOCH=0.
package%: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)
package%: export PACKAGE_VERSION    = $(shell packaging/version.sh $(VERSION) $(SOURCE_DATE_EPOCH))
package%: export ARCH               = $(lastword $(subst -, ,$@))
package%: format                    = $(word 2,$(subst -, ,$@))
package%: stage                     = $(DIST)/.stage/$(ARCH)-$(format)

# flatctl of this machine's architecture writes the completions.
$(PACKAGES): build
	rm -rf $(stage)
	install -d $(stage)
	GOARCH=$(ARCH) $(GO_BUILD) -o $(stage)/bin/ ./cmd/flatd ./cmd/flatctl
	$(MAKE) --no-print-directory install BIN=$(stage)/bin COMPLETER=$(BIN)/flatctl \
		DESTDIR=$(stage)/root PREFIX=/usr sysconfdir=/etc \
		zshdir=$(zshdir_$(format)) licensefile=$(licensefile_$(format))
	GOARCH=$(ARCH) packaging/licenses.sh | $(put) $(stage)/root$(licensefile_$(format))
	install -Dm644 packaging/lintian-overrides $(stage)/root/usr/share/lintian/overrides/flatd
	install -t $(stage) packaging/nfpm.yaml packaging/$(format)/*
	packaging/changelog.sh >$(stage)/changelog.yaml
	cd $(stage) && $(NFPM) package -f nfpm.yaml -p $(format) -t $(abspath $(DIST))
	rm -rf $(stage)
