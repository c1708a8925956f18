# SPDX-License-Identifier: Apache-2.0
#
# make install, make uninstall. Included by the Makefile, which says where to.

UNITS     := flatd.service flatd.socket flatd-metrics.socket
MAN_PAGES := $(wildcard packaging/man/*.[1-8])
DOCS      := README.md outputs/scale.md
EXAMPLES  := $(wildcard packaging/examples/*)
LEAF_NODE := $(wildcard packaging/leafnode/*)

bashdir     ?= $(PREFIX)/share/bash-completion/completions
fishdir     ?= $(PREFIX)/share/fish/vendor_completions.d
zshdir      ?= $(PREFIX)/share/zsh/site-functions
licensefile ?= $(docdir)/LICENSE

# The flatctl that writes the completions: one that runs on this machine.
COMPLETER ?= $(BIN)/flatctl

# put FILE writes its standard input there, whatever the umask.
put := install -Dm644 /dev/stdin

# Only what is missing is built, so that `sudo make install` needs no Go.
$(BIN)/flatd $(BIN)/flatctl:
	$(MAKE) build

install: $(BIN)/flatd $(BIN)/flatctl ## install below $(DESTDIR)$(PREFIX)
	install -D -t $(DESTDIR)$(bindir) $(BIN)/flatd $(BIN)/flatctl
	for unit in $(UNITS); do \
		sed 's|/usr/bin/fla|$(bindir)/fla|' systemd/$$unit | \
			$(put) $(DESTDIR)$(libdir)/systemd/system/$$unit || exit; \
	done
	install -Dm644 systemd/flatd.sysusers $(DESTDIR)$(libdir)/sysusers.d/flatd.conf
	install -Dm644 systemd/flatd.tmpfiles $(DESTDIR)$(libdir)/tmpfiles.d/flatd.conf
	install -Dm644 -t $(DESTDIR)$(libdir)/systemd/catalog systemd/flatd.catalog
	install -Dm644 -t $(DESTDIR)$(schemadir) packaging/flatd-event.schema.json packaging/grafana-dashboard.json
	install -Dm644 -t $(DESTDIR)$(docdir) $(DOCS)
	install -Dm644 -t $(DESTDIR)$(docdir)/examples $(EXAMPLES)
	install -Dm644 -t $(DESTDIR)$(docdir)/examples/leafnode $(LEAF_NODE)
	install -Dm644 LICENSE $(DESTDIR)$(licensefile)
	for page in $(MAN_PAGES); do \
		gzip -9nc $$page | $(put) $(DESTDIR)$(mandir)/man$${page##*.}/$${page##*/}.gz || exit; \
	done
	$(COMPLETER) completion bash | $(put) $(DESTDIR)$(bashdir)/flatctl
	$(COMPLETER) completion fish | $(put) $(DESTDIR)$(fishdir)/flatctl.fish
	$(COMPLETER) completion zsh | $(put) $(DESTDIR)$(zshdir)/_flatctl
	@# A file that is there already is the administrator's.
	[ -e $(DESTDIR)$(sysconfdir)/flatd/flatd.toml ] || \
		install -Dm644 -t $(DESTDIR)$(sysconfdir)/flatd packaging/flatd.toml
	install -d $(DESTDIR)$(sysconfdir)/flatd/flatd.toml.d
	@[ -n "$(DESTDIR)" ] || echo "Now: systemd-sysusers && journalctl --update-catalog &&" \
		"systemctl daemon-reload && systemctl enable --now flatd"

uninstall: ## stop measuring and remove what install has put there, but the config
	@# With DESTDIR it is a tree of files and nothing runs from it.
	[ -n "$(DESTDIR)" ] || for unit in $(UNITS); do \
		! systemctl cat $$unit >/dev/null 2>&1 || systemctl disable --now $$unit || exit; done
	[ -n "$(DESTDIR)" ] || [ ! -x $(bindir)/flatctl ] || $(bindir)/flatctl detach
	rm -f $(addprefix $(DESTDIR),$(addprefix $(bindir)/,flatd flatctl) \
		$(addprefix $(libdir)/,systemd/catalog/flatd.catalog sysusers.d/flatd.conf tmpfiles.d/flatd.conf) \
		$(addprefix $(libdir)/systemd/system/,$(UNITS)) \
		$(foreach page,$(notdir $(MAN_PAGES)),$(mandir)/man$(subst .,,$(suffix $(page)))/$(page).gz) \
		$(bashdir)/flatctl $(fishdir)/flatctl.fish $(zshdir)/_flatctl $(licensefile))
	rm -rf $(DESTDIR)$(docdir) $(DESTDIR)$(schemadir)
