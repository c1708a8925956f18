package daemon

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flatd/flatd/bpf/testbed"
)

// exchange is one as tshark sees it, and as flatd reports it.
type exchange struct {
	kind                string
	source, destination netip.AddrPort
	result              string
	id                  int // DNS: transaction; ping: how many there were before
}

func (x exchange) String() string {
	return fmt.Sprintf("%s %s > %s %s id %d", x.kind, x.source, x.destination, x.result, x.id)
}

// capture records what passes the host's eth0 until it is stopped.
type capture struct {
	t    *testing.T
	file string
	stop func()
}

// startCapture returns once packets really are recorded: it sends some to a
// multicast group, which flatd leaves out, until one is in the file.
func startCapture(t *testing.T, h *testbed.Host) *capture {
	t.Helper()
	testbed.Tool(t, "tcpdump")
	c := &capture{t: t, file: filepath.Join(t.TempDir(), "eth0.pcap")}
	dump := h.Command("tcpdump", "-i", "eth0", "-U", "--immediate-mode", "-Z", "root", "-w", c.file)
	var said bytes.Buffer
	dump.Stderr = &said
	if err := dump.Start(); err != nil {
		t.Fatal(err)
	}
	c.stop = func() {
		_ = dump.Process.Signal(syscall.SIGINT)
		_ = dump.Wait()
	}
	t.Cleanup(func() {
		if dump.ProcessState == nil {
			c.stop()
		}
	})
	probe, err := dial(h, "udp", "239.255.0.1:9")
	if err != nil {
		t.Fatal(err)
	}
	defer probe.Close()
	const header = 24 // of a pcap file
	for deadline := time.Now().Add(patience); ; {
		_, _ = probe.Write([]byte("probe"))
		if info, err := os.Stat(c.file); err == nil && info.Size() > header {
			return c
		}
		if time.Now().After(deadline) {
			t.Fatalf("tcpdump records nothing: %s", said.String())
		}
	}
}

// fields are what is asked of tshark for each packet.
var fields = []string{
	"ip.src", "ip.dst", "ipv6.src", "ipv6.dst", "tcp.srcport", "tcp.dstport", "udp.srcport", "udp.dstport",
	"tcp.stream", "tcp.flags.syn", "tcp.flags.ack", "tcp.flags.reset", "tcp.time_relative",
	"udp.stream", "udp.time_relative", "dns.id", "dns.flags.response", "dns.flags.rcode", "dns.time",
	"icmp.type", "icmp.resptime", "icmpv6.type", "icmpv6.resptime",
}

type row map[string]string

func (r row) number(field string) float64 {
	n, _ := strconv.ParseFloat(r[field], 64)
	return n
}

// end is one end of the packet: "src" or "dst".
func (r row) end(which string) netip.AddrPort {
	addr := r["ip."+which] + r["ipv6."+which]
	port, _ := strconv.Atoi(r["tcp."+which+"port"] + r["udp."+which+"port"])
	return netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(port))
}

// read has tshark dissect the capture.
func (c *capture) read() (rows []row) {
	c.t.Helper()
	args := []string{"-r", c.file, "-o", "tcp.relative_sequence_numbers:false", "-T", "fields", "-E", "separator=,", "-E", "quote=d", "-E", "occurrence=f",
		"-Y", "ip || ipv6"}
	for _, f := range fields {
		args = append(args, "-e", f)
	}
	out, err := exec.Command(testbed.Tool(c.t, "tshark"), args...).Output()
	if err != nil {
		c.t.Fatalf("tshark: %v", err)
	}
	records, err := csv.NewReader(bytes.NewReader(out)).ReadAll()
	if err != nil {
		c.t.Fatalf("tshark's output: %v\n%s", err, out)
	}
	for _, record := range records {
		r := make(row)
		for i, f := range fields {
			r[f] = record[i]
		}
		rows = append(rows, r)
	}
	return rows
}

var rcodes = map[string]string{"0": "noerror", "2": "servfail", "3": "nxdomain", "5": "refused"}

// exchanges finds in a capture what flatd has to report, with tshark's own
// figure for how long the answer took; 0 for what was never answered.
func exchanges(rows []row) map[exchange]time.Duration {
	found := make(map[exchange]time.Duration)
	open := make(map[string]exchange) // unanswered, by stream
	pings := make(map[netip.AddrPort]int)
	answer := func(stream string, x exchange, seconds float64) {
		delete(open, stream)
		found[x] = time.Duration(seconds * 1e9)
	}
	for _, r := range rows {
		source, destination := r.end("src"), r.end("dst")
		if destination.Addr().IsMulticast() {
			continue
		}
		tcp, udp := "tcp"+r["tcp.stream"], "udp"+r["udp.stream"]
		asked, isOpen := open[tcp]
		switch {
		case r["tcp.flags.syn"] == "1" && r["tcp.flags.ack"] == "0":
			open[tcp] = exchange{"tcp", source, destination, "timeout", 0}
		case r["tcp.flags.syn"] == "1" && isOpen:
			asked.result = "established"
			answer(tcp, asked, r.number("tcp.time_relative"))
		case r["tcp.flags.reset"] == "1" && isOpen:
			asked.result = "refused"
			answer(tcp, asked, r.number("tcp.time_relative"))
		case r["dns.flags.response"] == "0":
			id, _ := strconv.ParseInt(r["dns.id"], 0, 32)
			x := exchange{"dns", source, destination, "timeout", int(id)}
			open["dns"+x.String()] = x
		case r["dns.flags.response"] == "1":
			id, _ := strconv.ParseInt(r["dns.id"], 0, 32)
			asked := exchange{"dns", destination, source, "timeout", int(id)}
			stream := "dns" + asked.String()
			if _, ok := open[stream]; ok {
				asked.result = rcodes[r["dns.flags.rcode"]]
				answer(stream, asked, r.number("dns.time"))
			}
		case r["udp.stream"] != "":
			asked, isOpen := open[udp]
			if isOpen && source == asked.destination {
				asked.result = "answered"
				answer(udp, asked, r.number("udp.time_relative"))
			} else if r.number("udp.time_relative") == 0 {
				open[udp] = exchange{"udp", source, destination, "timeout", 0}
			}
		case r["icmp.resptime"] != "" || r["icmpv6.resptime"] != "":
			milliseconds := r.number("icmp.resptime") + r.number("icmpv6.resptime")
			pings[destination]++
			answer("", exchange{"icmp", destination, source, "answered", pings[destination]}, milliseconds/1e3)
		}
	}
	for _, x := range open {
		found[x] = 0
	}
	return found
}

// reported is the same of flatd's events.
func reported(t *testing.T, events []event, side string) map[exchange]time.Duration {
	t.Helper()
	found := make(map[exchange]time.Duration)
	pings := make(map[netip.AddrPort]int)
	for _, e := range events {
		if e.Flatd.Side != side {
			continue
		}
		x := exchange{
			kind:        strings.TrimPrefix(e.Event.Dataset, "flatd."),
			source:      netip.AddrPortFrom(netip.MustParseAddr(e.Source.IP), uint16(e.Source.Port)),
			destination: netip.AddrPortFrom(netip.MustParseAddr(e.Destination.IP), uint16(e.Destination.Port)),
			result:      e.Flatd.Result,
			id:          e.DNS.ID,
		}
		if x.kind == "icmp" {
			pings[x.source]++
			x.id = pings[x.source]
		}
		if _, twice := found[x]; twice {
			t.Errorf("reported twice: %s", e)
		}
		found[x] = time.Duration(e.Event.Duration)
	}
	return found
}

func sameExchanges(t *testing.T, tshark, flatd map[exchange]time.Duration) {
	t.Helper()
	for x := range tshark {
		if _, ok := flatd[x]; !ok {
			t.Errorf("missing: %s", x)
		}
	}
	for x := range flatd {
		if _, ok := tshark[x]; !ok {
			t.Errorf("invented: %s", x)
		}
	}
}

// sameDurations wants them within 50 µs at the median: the capture is taken a
// few instructions from the programs.
func sameDurations(t *testing.T, tshark, flatd map[exchange]time.Duration) {
	t.Helper()
	var differences []time.Duration
	for x, duration := range tshark {
		if got, ok := flatd[x]; ok && duration != 0 {
			differences = append(differences, (got - duration).Abs())
		}
	}
	if len(differences) == 0 {
		t.Fatal("no durations to compare")
	}
	slices.Sort(differences)
	median := differences[len(differences)/2]
	t.Logf("%d exchanges; durations differ from tshark's by %s at the median, %s at most", len(tshark), median, differences[len(differences)-1])
	if median > 50*time.Microsecond {
		t.Errorf("durations differ from tshark's by %s at the median", median)
	}
}

// TestEventsAreTsharks sends real traffic between two hosts, each with a flatd,
// and has tshark judge what they report.
func TestEventsAreTsharks(t *testing.T) {
	for _, attach := range []string{"tcx", "clsact"} {
		t.Run(attach, func(t *testing.T) {
			client, server := testbed.Pair(t)
			binary := testbed.Build(t, "flatd", "")
			config := fmt.Sprintf("attach = %q\nmeasure.timeout = \"1500ms\"\n", attach)
			near := newSetup(t, client, binary, config).start(t)
			far := newSetup(t, server, binary, config).start(t)
			tr := newTraffic(t, client, server)
			c := startCapture(t, client)
			const rounds = 3
			for range rounds {
				tr.everything()
			}
			exchangeOn := func(side string) func(event) bool {
				return func(e event) bool { return e.Flatd.Side == side }
			}
			near.waitN("all of the client's", rounds*(answeredOfEverything+silentOnClient), exchangeOn("client"))
			far.waitN("all of the server's", rounds*(answeredOfEverything+silentOnServer), exchangeOn("server"))
			c.stop()
			want := exchanges(c.read())
			atClient := reported(t, near.end(syscall.SIGINT), "client")
			sameExchanges(t, want, atClient)
			sameDurations(t, want, atClient)
			// How long the server took is not for the client's capture to say.
			// What is never completed is a scan or forged there, and counted alone.
			maps.DeleteFunc(want, func(x exchange, _ time.Duration) bool { return x.kind == "tcp" && x.result == "timeout" })
			sameExchanges(t, want, reported(t, far.end(syscall.SIGINT), "server"))
		})
	}
}
