# SPDX-License-Identifier: Apache-2.0
#
# make install, make uninstall. Included by the Makefile, which says where to.

MAN_PAGES := $(wildcard packaging/man/*.[1-8])
DOCS      := $(wildcard README.md LICENSE docs/*)

# Only what is missing is built, so that `sudo make install` needs no Go.
$(BIN)/flatd $(BIN)/flatctl:
	$(MAKE) build

install: $(BIN)/flatd $(BIN)/flatctl ## install below $(DESTDIR)$(PREFIX)
	install -D -t $(DESTDIR)$(bindir) $(BIN)/flatd $(BIN)/flatctl
	install -d $(DESTDIR)$(libdir)/systemd/system
	for unit in flatd.service flatd.socket flatd-metrics.socket; do \
		sed 's|/usr/bin/fla|$(bindir)/fla|' systemd/$$unit \
			>$(DESTDIR)$(libdir)/systemd/system/$$unit || exit; \
	done
	install -Dm644 systemd/flatd.sysusers $(DESTDIR)$(libdir)/sysusers.d/flatd.conf
	install -Dm644 systemd/flatd.tmpfiles $(DESTDIR)$(libdir)/tmpfiles.d/flatd.conf
	install -Dm644 -t $(DESTDIR)$(libdir)/systemd/catalog systemd/flatd.catalog
	install -Dm644 -t $(DESTDIR)$(schemadir) packaging/flatd-event.schema.json
	install -Dm644 -t $(DESTDIR)$(docdir) $(DOCS)
	for page in $(MAN_PAGES); do \
		install -Dm644 -t $(DESTDIR)$(mandir)/man$${page##*.} $$page || exit; \
	done
	@# A file that is there already is the administrator's.
	[ -e $(DESTDIR)$(sysconfdir)/flatd/flatd.toml ] || \
		install -Dm644 -t $(DESTDIR)$(sysconfdir)/flatd packaging/flatd.toml
	install -d $(DESTDIR)$(sysconfdir)/flatd/flatd.toml.d
	@[ -n "$(DESTDIR)" ] || echo "Now: systemd-sysusers && journalctl --update-catalog &&" \
		"systemctl daemon-reload && systemctl enable --now flatd"

uninstall: ## stop measuring and remove what install has put there, but the config
	@# With DESTDIR it is a tree of files and nothing runs from it.
	[ -n "$(DESTDIR)" ] || for unit in flatd.service flatd.socket flatd-metrics.socket; do \
		! systemctl cat $$unit >/dev/null 2>&1 || systemctl disable --now $$unit || exit; done
	[ -n "$(DESTDIR)" ] || [ ! -x $(bindir)/flatctl ] || $(bindir)/flatctl detach
	rm -f $(addprefix $(DESTDIR)$(bindir)/,flatd flatctl)
	rm -f $(addprefix $(DESTDIR)$(libdir)/,systemd/catalog/flatd.catalog sysusers.d/flatd.conf \
		tmpfiles.d/flatd.conf $(addprefix systemd/system/,flatd.service flatd.socket \
		flatd-metrics.socket))
	rm -f $(foreach page,$(MAN_PAGES),$(DESTDIR)$(mandir)/man$(subst .,,$(suffix $(page)))/$(notdir $(page)))
	rm -rf $(DESTDIR)$(docdir) $(DESTDIR)$(schemadir)
