package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flatd/flatd/daemon/api"
)

// TestStatusOfTrouble: an output that is down is a problem with a remedy, in every
// form, and the exit status tells.
func TestStatusOfTrouble(t *testing.T) {
	s := newSite(t)
	if out, status := s.run("status"); status != 0 || strings.Contains(out, "remedy") || !strings.Contains(lineWith(out, "lost:"), "nothing") {
		t.Errorf("all is well, but %d: %s", status, out)
	}
	s.configure("[outputs.nats]\nurl = \"nats://127.0.0.1:1\"\n")
	s.connect()
	var out string
	for deadline := time.Now().Add(patience); !strings.Contains(out, "PROBLEM:"); {
		if time.Now().After(deadline) {
			t.Fatalf("no problem: %s", out)
		}
		out, _ = s.run("status")
	}
	for args, want := range map[string][]string{
		"status":                       {"output nats:", "remedy:", "is the NATS server up", "1 problems, see above"},
		"status --json":                {`"problems": [`, `"down": true`},
		"doctor --config " + s.config:  {"measuring eth0", "is the NATS server up", "nats", "connection refused"},
		"top --once --interval 100ms":  {"DESTINATION"},
		"status --nats nats://[::1]:1": {"connect to nats://[::1]:1"},
	} {
		wanted := 1
		if !strings.HasPrefix(args, "status") { // what is wrong with an output does not end measuring
			wanted = 0
		}
		out, status := s.run(strings.Fields(args)...)
		if status != wanted {
			t.Errorf("%s: %d, want %d: %s", args, status, wanted, out)
		}
		for _, text := range want {
			if !strings.Contains(out, text) {
				t.Errorf("%s lacks %q:\n%s", args, text, out)
			}
		}
	}
}

// TestRemedies: each kind of trouble has one.
func TestRemedies(t *testing.T) {
	up := []api.InterfaceStatus{{Name: "eth0", Index: 2}}
	for want, s := range map[string]api.Status{
		"name the interfaces": {},
		"interface fails":     {Interfaces: []api.InterfaceStatus{{Name: "eth0", Error: "no such device"}}},
		"7 events wait":       {Interfaces: up, Outputs: []api.OutputStatus{{Name: "nats", Down: true, Queued: 7, Dropped: 3}}},
		"systemd-journald":    {Interfaces: up, Outputs: []api.OutputStatus{{Name: "journald", Down: true}}},
		"outputs.nats.queue":  {Interfaces: up, Outputs: []api.OutputStatus{{Name: "nats", Dropped: 3}}},
		"overloaded":          {Interfaces: up, Books: api.Books{RingFull: 1}},
		"bring it back":       {Interfaces: up, Books: api.Books{LostBefore: 1}},
		"measure.timeout":     {Interfaces: up, Books: api.Books{PendingFull: 1}},
		"systemctl restart":   {Interfaces: up, Stuck: "the reader of the event ring"},
		"":                    {Interfaces: up},
	} {
		got := strings.Join(remedies(&s), "\n")
		if !strings.Contains(got, want) || (want == "") != (got == "") || strings.Contains(got, "\n") {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestLosses(t *testing.T) {
	s := api.Status{Outputs: []api.OutputStatus{{Name: "journald", Withheld: 9}, {Name: "nats"}}}
	if got := losses(&s); got != "nothing" {
		t.Errorf("%q", got)
	}
	s.Books.RingFull, s.Books.PendingFull, s.Outputs[1].Dropped, s.Outputs[1].Failed = 1, 2, 3, 4
	s.Books.LostBefore = 5
	if got := losses(&s); got != "1 events, as the ring was full, 5 events before this start, 2 requests, as the table was full, 7 events by output nats" {
		t.Errorf("%q", got)
	}
}

func TestAtRisk(t *testing.T) {
	var s api.Status
	if got := atRisk(&s); got != "nothing" {
		t.Errorf("%q", got)
	}
	s.Ring.AtRisk = 7
	if got := atRisk(&s); !strings.Contains(got, "7 events") || !strings.Contains(got, "restart") {
		t.Errorf("%q", got)
	}
}

// TestUnitState: what systemctl prints, as one who does not know it would want it.
func TestUnitState(t *testing.T) {
	for printed, want := range map[string]string{
		"LoadState=not-found\nActiveState=inactive\n":                                       "",
		"LoadState=loaded\nUnitFileState=disabled\nActiveState=inactive\n":                  "systemctl enable --now flatd",
		"LoadState=loaded\nActiveState=failed\nResult=exit-code\nExecMainStatus=78\n":       "flatctl config check",
		"LoadState=loaded\nActiveState=failed\nResult=watchdog\nExecMainStatus=6\n":         "has failed (watchdog, status 6): journalctl -u flatd",
		"LoadState=loaded\nUnitFileState=enabled\nActiveState=activating\nResult=success\n": "activating",
	} {
		dir := t.TempDir()
		script := fmt.Sprintf("#!/bin/sh\ncat <<'E'\n%sE\n", printed)
		if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", dir+":/usr/bin:/bin")
		if got := unitState(t.Context()); !strings.Contains(got, want) || (want == "") != (got == "") {
			t.Errorf("%q: %q, want %q", printed, got, want)
		}
	}
}
