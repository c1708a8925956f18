// Package tshark has Wireshark's dissectors judge flatd: it reads from a
// capture, packet by packet, what their fields say, and finds the exchanges
// that flatd has to report. Nothing of flatd's own takes part.
package tshark

import (
	"bytes"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flatd/flatd/packaging/testbed"
)

// dissected are the protocols that tshark is to know. All others are disabled:
// a tunnel's inner packets then are but payload, and nothing is guessed.
var dissected = []string{
	"frame", "eth", "ethertype", "vlan", "ieee8021ad", "ip", "ipv6", "ipv6.hopopts", "ipv6.routing", "ipv6.fraghdr", "ipv6.dstopts", "ah",
	"tcp", "udp", "icmp", "icmpv6", "dns", "data", "_ws.malformed", "_ws.short",
}

// fields are what is asked of tshark for each packet.
var fields = []string{
	"frame.number", "frame.time_epoch", "frame.protocols", "eth.dst.ig",
	"vlan.id", "ieee8021ad.id",
	"ip.src", "ip.dst", "ip.ttl", "ip.frag_offset", "ipv6.src", "ipv6.dst", "ipv6.hlim", "ipv6.fraghdr.offset",
	"tcp.srcport", "tcp.dstport", "tcp.flags", "tcp.seq_raw", "tcp.ack_raw", "tcp.hdr_len", "tcp.len", "tcp.options.timestamp.tsval", "tcp.options.timestamp.tsecr",
	"tcp.analysis.retransmission",
	"udp.srcport", "udp.dstport", "udp.length", "udp.checksum", "udp.payload",
	"dns.id", "dns.flags.response", "dns.flags.rcode", "dns.count.answers", "dns.count.auth_rr", "dns.count.add_rr", "dns.qry.name", "dns.qry.type",
	"dns.resp.type", "dns.resp.ext_rcode",
	"icmp.type", "icmp.code", "icmp.ident", "icmp.seq", "icmpv6.type", "icmpv6.code", "icmpv6.echo.identifier", "icmpv6.echo.sequence_number",
}

// Packet is what tshark says of one. Of an ICMP error each field that the
// quoted packet has too has two values.
type Packet struct {
	Number              int // of the frame, from 1
	Time                time.Duration
	Source, Destination netip.Addr // of the outermost IP layer, if there is one
	Transport           string     // "tcp", "udp", "icmp", "icmpv6" if that follows directly, else ""
	values              map[string][]string
}

// Read has tshark dissect a capture: every packet of it, in order.
func Read(t testing.TB, file string) []Packet {
	t.Helper()
	args := []string{
		"-r", file, "-n",
		// Each packet is to be judged by itself.
		"-o", "ip.defragment:FALSE", "-o", "ipv6.defragment:FALSE", "-o", "tcp.desegment_tcp_streams:FALSE", "-o", "tcp.relative_sequence_numbers:FALSE",
		// What a network card has yet to fill in is no error of the packet's.
		"-o", "ip.tso_support:TRUE",
		"-T", "fields", "-E", "separator=/t", "-E", "occurrence=a", "-E", "aggregator=|",
	}
	for _, f := range fields {
		args = append(args, "-e", f)
	}
	command := exec.Command(testbed.Tool(t, "tshark"), args...)
	command.Env = append(os.Environ(), "WIRESHARK_CONFIG_DIR="+profile(t))
	var said bytes.Buffer
	command.Stderr = &said
	out, err := command.Output()
	if err != nil {
		t.Fatalf("tshark: %v\n%s", err, said.String())
	}
	var packets []Packet
	for line := range strings.Lines(string(out)) {
		packets = append(packets, newPacket(strings.Split(strings.TrimSuffix(line, "\n"), "\t")))
	}
	return packets
}

// profile makes a configuration in which only those protocols are enabled.
func profile(t testing.TB) string {
	t.Helper()
	out, err := exec.Command(testbed.Tool(t, "tshark"), "-G", "protocols").Output()
	if err != nil {
		t.Fatalf("tshark -G protocols: %v", err)
	}
	var disabled strings.Builder
	for line := range strings.Lines(string(out)) {
		name := strings.Split(strings.TrimSuffix(line, "\n"), "\t")[2]
		if !slices.Contains(dissected, name) {
			disabled.WriteString(name + "\n")
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "disabled_protos"), []byte(disabled.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func newPacket(record []string) Packet {
	p := Packet{values: make(map[string][]string)}
	for i, f := range fields {
		if i < len(record) && record[i] != "" {
			p.values[f] = strings.Split(record[i], "|")
		}
	}
	p.Number = int(p.number("frame.number", 0))
	p.Time = seconds(p.text("frame.time_epoch", 0))
	layers := outermost(p.text("frame.protocols", 0))
	if layers == nil {
		return p
	}
	p.Source, p.Destination = p.address("src", 0), p.address("dst", 0)
	if len(layers) > 1 {
		p.Transport = layers[1]
	}
	return p
}

// seconds reads a decimal number of them, to the nanosecond.
func seconds(text string) time.Duration {
	whole, fraction, _ := strings.Cut(text, ".")
	s, _ := strconv.ParseInt(whole, 10, 64)
	ns, _ := strconv.ParseInt((fraction + "000000000")[:9], 10, 64)
	return time.Duration(s)*time.Second + time.Duration(ns)
}

// How deep flatd looks: VLAN_TAGS_MAX and EXTENSIONS_MAX of bpf/parse.h.
const (
	maxTags       = 2
	maxExtensions = 6
)

// outermost returns the outermost IP layer and the transport in it, if one
// follows, of tshark's list of protocols; nil if there is no such layer on
// Ethernet, or it lies deeper than flatd looks.
func outermost(protocols string) []string {
	tags, extensions := 0, 0
	var found []string
	for name := range strings.SplitSeq(protocols, ":") {
		switch name {
		case "eth", "ethertype":
			continue
		case "vlan", "ieee8021ad":
			if tags++; tags > maxTags {
				return nil
			}
			continue
		case "ip", "ipv6":
			if found != nil {
				return found
			}
			found = []string{name}
			continue
		case "ipv6.hopopts", "ipv6.routing", "ipv6.fraghdr", "ipv6.dstopts", "ah":
			if found != nil && found[0] == "ipv6" {
				if extensions++; extensions > maxExtensions {
					return found
				}
				continue
			}
		case "tcp", "udp", "icmp", "icmpv6":
			if found != nil {
				return append(found, name)
			}
		}
		return found
	}
	return found
}

// text is the n-th value of a field, from 0; "" if there is none.
func (p *Packet) text(field string, n int) string {
	if values := p.values[field]; n < len(values) {
		return values[n]
	}
	return ""
}

func (p *Packet) has(field string, n int) bool { return n < len(p.values[field]) }

// number is the same as a number; decimal, or hexadecimal behind 0x.
func (p *Packet) number(field string, n int) int64 {
	value, _ := strconv.ParseInt(p.text(field, n), 0, 64)
	return value
}

func (p *Packet) address(which string, n int) netip.Addr {
	text := p.text("ip."+which, n)
	if text == "" {
		text = p.text("ipv6."+which, n)
	}
	addr, _ := netip.ParseAddr(text)
	return addr
}

// end is one end, "src" or "dst", of the n-th IP layer; the n-th transport
// header is not always of the same number.
func (p *Packet) end(which, transport string, layer, n int) netip.AddrPort {
	return netip.AddrPortFrom(p.address(which, layer), uint16(p.number(transport+"."+which+"port", n)))
}

// Group says whether the packet went to more than one host.
func (p *Packet) Group() bool {
	return p.text("eth.dst.ig", 0) == "1" || p.Destination.IsMulticast() || p.Destination == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// LaterFragment says whether transport and ports are in an earlier packet.
func (p *Packet) LaterFragment() bool {
	return p.Source.IsValid() && (p.number("ip.frag_offset", 0) != 0 || p.number("ipv6.fraghdr.offset", 0) != 0)
}

// vlan is the id of the outermost tag, 0 if there is none.
func (p *Packet) vlan() int {
	if p.has("ieee8021ad.id", 0) {
		return int(p.number("ieee8021ad.id", 0))
	}
	return int(p.number("vlan.id", 0))
}

// ttl is that of the outermost IP layer, or its hop limit.
func (p *Packet) ttl() int {
	if p.has("ip.ttl", 0) && p.Source.Is4() {
		return int(p.number("ip.ttl", 0))
	}
	return int(p.number("ipv6.hlim", 0))
}
