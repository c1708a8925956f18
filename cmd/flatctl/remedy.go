package main

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/flatd/flatd/daemon/api"
)

// remedies are what to do about what a status reports, each once.
func remedies(s *api.Status) (all []string) {
	add := func(needed bool, format string, args ...any) {
		if needed {
			all = append(all, fmt.Sprintf(format, args...))
		}
	}
	add(len(s.Interfaces) == 0, "name the interfaces in flatd.toml, such as `interfaces = [\"eth0\"]`, then: systemctl reload flatd")
	failing := slices.ContainsFunc(s.Interfaces, func(i api.InterfaceStatus) bool { return i.Error != "" })
	add(failing, "why an interface fails: journalctl -u flatd -p warning; it is tried again every 30 s, or leave it out by `exclude`")
	for _, o := range s.Outputs {
		add(o.Down, "%s; %d events wait in its queue", repairs[o.Name], o.Queued)
		add(o.Dropped > 0 && !o.Down, "output %s is up, but its queue was too short for a time: raise outputs.%s.queue if that happens again", o.Name, o.Name)
	}
	add(s.Books.RingFull > 0, "flatd could not read as fast as the kernel reported: is the host overloaded? `sample` or `results` in flatd.toml has less reported; counts and histograms have it all")
	add(s.Books.LostBefore > 0, "an output was away for too long: bring it back before flatd is restarted while flatctl status says that events are at risk")
	add(s.Books.PendingFull > 0, "more requests were open than fit: a flood? flatctl top shows to whom; a shorter measure.timeout, or filter.exclude, leaves fewer open")
	add(s.Stuck != "", "systemctl restart flatd: it loses nothing, for the kernel goes on measuring; its journal says what held it up")
	return all
}

// repairs say by output what to do when it is down.
var repairs = map[string]string{
	"journald": "systemctl status systemd-journald",
	"nats":     "is the NATS server up, and may flatd log in? flatctl doctor tries to reach it",
	"stdout":   "whoever reads flatd's standard output does not",
}

// losses says what is lost and where, "nothing" if nothing is. What is withheld
// or left out on purpose is not lost.
func losses(s *api.Status) string {
	var parts []string
	add := func(n uint64, why string) {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, why))
		}
	}
	add(s.Books.RingFull, "events, as the ring was full")
	add(s.Books.TakenOverLost, "events of programs of another layout")
	add(s.Books.LostBefore, "events before this start")
	add(s.Books.PendingFull, "requests, as the table was full")
	for _, o := range s.Outputs {
		add(o.Dropped+o.Failed, "events by output "+o.Name)
	}
	if len(parts) == 0 {
		return "nothing"
	}
	return strings.Join(parts, ", ")
}

// unitState is what systemd says of flatd.service where that does not run, "" if
// it says nothing.
func unitState(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "systemctl", "show", "flatd.service",
		"-p", "LoadState,UnitFileState,ActiveState,Result,ExecMainStatus").Output()
	if err != nil {
		return ""
	}
	p := make(map[string]string)
	for line := range strings.Lines(string(out)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		p[name] = value
	}
	switch {
	case p["LoadState"] != "loaded":
		return ""
	case p["ActiveState"] == "failed" && p["ExecMainStatus"] == "78":
		return "its configuration is bad: flatctl config check"
	case p["ActiveState"] == "failed":
		return fmt.Sprintf("flatd.service has failed (%s, status %s): journalctl -u flatd -n 20", p["Result"], p["ExecMainStatus"])
	case p["ActiveState"] == "inactive" && p["UnitFileState"] == "disabled":
		return "flatd.service is not enabled: systemctl enable --now flatd"
	}
	return "flatd.service is " + p["ActiveState"]
}
