package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"

	"github.com/flatd/flatd/packaging/testbed"
)

// complete returns what a shell offers after some words, and whether it offers
// files as well.
func complete(t *testing.T, words ...string) (offers []string, files bool) {
	t.Helper()
	root := command()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(append([]string{cobra.ShellCompNoDescRequestCmd}, words...))
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	list, rest, found := strings.Cut("\n"+out.String(), "\n:")
	var directive cobra.ShellCompDirective
	if _, err := fmt.Sscan(rest, &directive); err != nil || !found {
		t.Fatalf("completions of %q: %v\n%s", words, err, out.Bytes())
	}
	return strings.Split(strings.TrimPrefix(list, "\n"), "\n"), directive&cobra.ShellCompDirectiveNoFileComp == 0
}

func TestCompletion(t *testing.T) {
	for _, c := range []struct {
		words, want string
		files       bool
	}{
		{"do", "doctor", false},
		{"status ", "", false},
		{"events --kind ", "icmp", false},
		{"events --result nx", "nxdomain", false},
		{"events --side ", "server", false},
		{"events --interface ", "lo", false},
		{"events -o ", "json", false},
		{"events -o ", "table", false},
		{"events --result timeout,nx", "timeout,nxdomain", false},
		{"events --columns time,fla", "time,flatd.rtt", false},
		{"events --nats-creds ", "", true},
		{"histogram -o ", "text", false},
		{"histogram --kind tcp,", "tcp,udp", false},
		{"histogram --compare ", "side=", false},
		{"histogram --compare ", "next", false},
		{"histogram --compare side=", "side=server", false},
		{"histogram --compare interface=", "interface=lo", false},
		{"histogram --compare kind=tcp,", "kind=tcp,dns", false},
		{"summary --output ", "json", false},
		{"config ", "check", false},
		{"config check ", "", true},
		{"detach --config ", "", true},
	} {
		offers, files := complete(t, strings.Split(c.words, " ")...)
		if !slices.Contains(offers, c.want) || files != c.files {
			t.Errorf("flatctl %s: offers %q and files: %t; want %q among them and files: %t", c.words, offers, files, c.want, c.files)
		}
	}
}

// TestCompletionNotTwice: a value that has been given is not offered again, nor
// one that makes no sense.
func TestCompletionNotTwice(t *testing.T) {
	for words, unwanted := range map[string]string{
		"events --kind tcp,":    "tcp,tcp",
		"histogram --kind ":     "status",
		"histogram --result ":   "timeout",
		"histogram --output ":   "line",
		"events --unit nginx ,": "",
	} {
		if offers, _ := complete(t, strings.Split(words, " ")...); slices.Contains(offers, unwanted) && unwanted != "" {
			t.Errorf("flatctl %s: offers %q", words, offers)
		}
	}
}

// TestCompletionOfLiveValues: interfaces and units are those of the flatd that is
// asked.
func TestCompletionOfLiveValues(t *testing.T) {
	cgroup := newUnit(t, "flatctl-test.service")
	s := newSite(t)
	s.connectAs(cgroup)
	s.awaitEvents(1)
	if offers, _ := complete(t, "--socket", s.socket, "events", "--interface", ""); !slices.Equal(offers, []string{"eth0"}) {
		t.Errorf("interfaces %q", offers)
	}
	if offers, _ := complete(t, "--socket", s.socket, "events", "--unit", ""); !slices.Equal(offers, []string{"flatctl-test.service"}) {
		t.Errorf("units %q", offers)
	}
	out, status := s.run("histogram", "--unit", "flatctl-test", "-o", "json")
	if got := decodeHistograms(t, []string{out}); status != 0 || len(got) != 1 || got[0].Count != 1 {
		t.Errorf("status %d: %s", status, out)
	}
}

// newUnit makes a cgroup that looks like a unit's, and returns its directory. It
// is made before flatd starts, which looks for the mount.
func newUnit(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(testbed.Cgroups(t), name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		testbed.Missing(t, "make a cgroup: %v", err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// connectAs makes a connection from a cgroup.
func (s *site) connectAs(cgroup string) {
	s.t.Helper()
	dir, err := os.Open(cgroup)
	if err != nil {
		s.t.Fatal(err)
	}
	defer dir.Close()
	address := s.listener.Addr().(*net.TCPAddr)
	cmd := s.client.Command("bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/%s/%d", address.IP, address.Port))
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
}

// TestExamples: the help of every command shows how it is used.
func TestExamples(t *testing.T) {
	for _, c := range append(command().Commands(), configCommand(nil).Commands()...) {
		if !strings.Contains(c.Example, "flatctl "+c.Name()) && !strings.Contains(c.Example, "flatctl config "+c.Name()) {
			t.Errorf("%s has no example of itself: %q", c.Name(), c.Example)
		}
	}
}

// TestCompletionScripts: each shell that is here accepts what it is given.
func TestCompletionScripts(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		root := command()
		var script bytes.Buffer
		root.SetOut(&script)
		root.SetArgs([]string{"completion", shell})
		if err := root.Execute(); err != nil || !strings.Contains(script.String(), "flatctl") {
			t.Fatalf("completion %s: %v\n%s", shell, err, script.Bytes())
		}
		if _, err := exec.LookPath(shell); err != nil {
			continue
		}
		cmd := exec.Command(shell, "-n")
		cmd.Stdin = &script
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s -n: %v\n%s", shell, err, out)
		}
	}
}
