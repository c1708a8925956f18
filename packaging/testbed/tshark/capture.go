package tshark

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flatd/flatd/packaging/testbed"
)

// patience is what a test gives tcpdump; it is not what anything takes.
const patience = time.Minute

// Capture records what passes a host's eth0 until it is stopped.
type Capture struct {
	File string // pcap, with nanoseconds

	t    testing.TB
	host *testbed.Host
	dump *exec.Cmd
	said bytes.Buffer
}

// StartCapture returns once packets really are recorded. The test's end stops it.
func StartCapture(t testing.TB, h *testbed.Host) *Capture {
	t.Helper()
	c := &Capture{File: filepath.Join(t.TempDir(), "eth0.pcap"), t: t, host: h}
	c.dump = h.Command(testbed.Tool(t, "tcpdump"), "-i", "eth0", "-U", "--immediate-mode", "-s", "2048",
		"--time-stamp-precision", "nano", "-B", "16384", "-Z", "root", "-w", c.File)
	c.dump.Stderr = &c.said
	if err := c.dump.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	c.Mark("the capture begins")
	return c
}

// Mark sends a text to a group of hosts, which flatd leaves out, until it is
// recorded: then so is all that was sent before.
func (c *Capture) Mark(text string) {
	c.t.Helper()
	var mark net.Conn
	var err error
	c.host.Do(func() { mark, err = net.Dial("udp", "239.255.0.1:9") })
	if err != nil {
		c.t.Fatal(err)
	}
	defer mark.Close()
	// Not so often that tcpdump is busy with these when the traffic begins.
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if _, err := mark.Write([]byte(text)); err != nil {
			c.t.Fatal(err)
		}
		if recorded, err := os.ReadFile(c.File); err == nil && bytes.Contains(recorded, []byte(text)) {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("tcpdump does not record %q", text)
		}
	}
}

// End ends the recording once all that was sent is in it.
func (c *Capture) End() {
	c.t.Helper()
	c.Mark("the capture ends")
	c.Stop()
}

// Stop ends the recording, once. If packets are missing in it the test fails.
func (c *Capture) Stop() {
	c.t.Helper()
	if c.dump.ProcessState != nil {
		return
	}
	_ = c.dump.Process.Signal(syscall.SIGINT)
	_ = c.dump.Wait()
	if !strings.Contains(c.said.String(), "\n0 packets dropped by kernel") {
		c.t.Errorf("the capture is not whole: %s", c.said.String())
	}
}

// Found is what tshark finds in the capture of a host with these addresses that
// flatd has to report on one side. What came in from outside and was never
// completed is a scan, or forged, and counted alone.
func (c *Capture) Found(side string, host Hosts) []Found {
	c.t.Helper()
	judge := NewJudge()
	packets := Read(c.t, c.File)
	for i := range packets {
		for _, out := range host.Ways(&packets[i]) {
			judge.Add(&packets[i], out)
		}
	}
	return slices.DeleteFunc(append(judge.Found, judge.Unanswered()...), func(f Found) bool {
		return f.Side != side || side == "server" && f.Kind == "tcp" && f.Result == "timeout"
	})
}

// Addressed is the host that has these addresses.
func Addressed(h *testbed.Host) Hosts {
	return Hosts{netip.MustParseAddr(h.V4): true, netip.MustParseAddr(h.V6): true}
}
