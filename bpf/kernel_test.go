package bpf

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/flatd/flatd/bpf/testbed"
	"github.com/flatd/flatd/flows"
)

// kernel is a State of the test's own. Packets are run through its programs one
// by one, or reach them over a device where deliver says how.
type kernel struct {
	*State
	t       testing.TB
	reader  *Reader
	deliver func(in bool, frame []byte)
	told    Counters // by counted
	read    uint64   // records
	cleared uint64   // open requests that clear forgot
}

func openKernel(t testing.TB) *kernel {
	t.Helper()
	return kernelOf(t, openState(t, testbed.BPFFS(t)))
}

func kernelOf(t testing.TB, s *State) *kernel {
	t.Helper()
	r, err := s.Reader()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return &kernel{t: t, State: s, reader: r}
}

func openState(t testing.TB, path string) *State {
	t.Helper()
	s, err := Open(path, Auto)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// A test run makes its packet from an Ethernet frame, and takes skb->protocol
// from there. These addresses have the EtherType at its place in a frame, so
// that the bare IP packet passes for one and the programs for L3 devices can
// be run.
var (
	bare4 = flow{from: netip.MustParseAddrPort("8.0.2.10:43210"), to: netip.MustParseAddrPort("8.0.100.20:443")}
	bare6 = flow{from: netip.MustParseAddrPort("[2001:db8:86dd::10]:43210"), to: netip.MustParseAddrPort("[2001:db8:86dd:1::20]:443")}
)

// runnable is the least that the kernel makes a test run of: an Ethernet header
// with one of IPv6.
const runnable = 54

// openBare has frames reach the programs of devices without a link header, as
// packets that begin with the IP header, or what comes in with the header around
// it, as packets of a tunnel do on old kernels (outerFirst).
func openBare(t testing.TB, outer bool) *kernel {
	t.Helper()
	setOuterFirst(t, outer)
	k := openKernel(t)
	if err := k.needL3(); err != nil {
		t.Fatal(err)
	}
	k.deliver = func(in bool, frame []byte) {
		k.t.Helper()
		if in && outer {
			k.run(k.programs.FlatIngressL3, withoutPadding(frame))
			return
		}
		packet := frame[etherHeader:]
		if short := runnable - len(packet); short > 0 {
			packet = append(bytes.Clone(packet), make([]byte, short)...)
		}
		if in {
			k.run(k.programs.FlatIngressL3, packet)
		} else {
			k.run(k.programs.FlatEgressL3, packet)
		}
	}
	return k
}

// setOuterFirst has programs loaded as on an old kernel, or as on a newer one.
func setOuterFirst(t testing.TB, outer bool) {
	asIs := outerFirst
	outerFirst = func() bool { return outer }
	t.Cleanup(func() { outerFirst = asIs })
}

// withoutPadding takes away what follows the IP packet, as the kernel does with
// what it takes out of a tunnel.
func withoutPadding(frame []byte) []byte {
	ip := frame[etherHeader:]
	length := int(binary.BigEndian.Uint16(ip[2:]))
	if ip[0]>>4 == 6 {
		length = 40 + int(binary.BigEndian.Uint16(ip[4:]))
	}
	return frame[:etherHeader+min(length, len(ip))]
}

// in and out have a frame pass the programs of that direction.
func (k *kernel) in(frame []byte)  { k.t.Helper(); k.pass(true, frame) }
func (k *kernel) out(frame []byte) { k.t.Helper(); k.pass(false, frame) }

func (k *kernel) pass(in bool, frame []byte) {
	k.t.Helper()
	switch {
	case k.deliver != nil:
		k.deliver(in, frame)
	case in:
		k.run(k.programs.FlatIngress, frame)
	default:
		k.run(k.programs.FlatEgress, frame)
	}
}

// run has a program see a frame, which must come back as it was, with the
// verdict "next".
func (k *kernel) run(p *ebpf.Program, frame []byte) {
	k.t.Helper()
	verdict, after, err := p.Test(frame)
	if err != nil {
		k.t.Fatalf("run %d bytes: %v", len(frame), err)
	}
	if int32(verdict) != -1 {
		k.t.Fatalf("verdict %d, want -1", int32(verdict))
	}
	if !bytes.Equal(after, frame) {
		k.t.Fatalf("the packet was altered:\n% x\n% x", frame, after)
	}
}

// clear forgets all pending exchanges.
func (k *kernel) clear() {
	k.t.Helper()
	k.forgetIf(func(p *kernelFlatPending) bool {
		if isOpen(p) {
			k.cleared++
		}
		return true
	})
}

// forgetIf forgets the requests of which that is true, and all UDP flows.
func (k *kernel) forgetIf(is func(*kernelFlatPending) bool) {
	k.t.Helper()
	err := k.eachRequest(func(at place, key *kernelFlatKey, p *kernelFlatPending) error {
		if !is(p) {
			return nil
		}
		return k.forget(at, key, p)
	})
	if err != nil {
		k.t.Fatal(err)
	}
	k.flows(func(words []uint64) { clear(words) })
}

// flows calls use with the words of all UDP flows, in the kernel's memory.
func (k *kernel) flows(use func(words []uint64)) {
	k.t.Helper()
	if err := withFlows(k.maps.FlatFlows, func(words []uint64) error { use(words); return nil }); err != nil {
		k.t.Fatal(err)
	}
}

// flowTime is the time in the word of a flow.
const flowTime = 1<<22 - 1 // FLOW_TIME_MASK

// age makes every UDP flow as if it had been seen so much earlier.
func (k *kernel) age(by time.Duration) {
	k.t.Helper()
	k.flows(func(words []uint64) {
		for i, word := range words {
			if word != 0 {
				words[i] = word&^flowTime | (word-uint64(by)>>24)&flowTime
			}
		}
	})
}

// crowdSeats leaves no seat free, but for each of the given number; 0: none at all.
func (k *kernel) crowdSeats(but int) {
	for i := range k.seats.all {
		if s := &k.seats.all[i]; s.Holder == 0 && (but == 0 || i%but != 0) {
			s.Holder = holderLeaving // nobody's
		}
	}
}

// crowdFlows leaves no place for another UDP flow.
func (k *kernel) crowdFlows() {
	k.t.Helper()
	const answered = 2 << 22 // FLOW_ANSWERED
	now := BootTime() >> 24 & flowTime
	k.flows(func(words []uint64) {
		for i := range words {
			if words[i] == 0 {
				words[i] = uint64(i+1)<<24 | answered | now
			}
		}
	})
}

// next is the next record, valid until the one after it. Every record of the
// kernel's can be decoded.
func (k *kernel) next() (raw []byte, ok bool) {
	k.t.Helper()
	k.reader.Commit()
	raw, _, ok = k.reader.Next()
	if !ok {
		return nil, false
	}
	k.read++
	var e flows.Event
	if err := flows.Decode(raw, &e); err != nil {
		k.t.Errorf("a record of %d bytes: %v\n% x", len(raw), err, raw)
	}
	return raw, true
}

// records reads what the programs reported since the last call.
func (k *kernel) records() []kernelFlatRecord {
	k.t.Helper()
	var all []kernelFlatRecord
	for {
		raw, ok := k.next()
		if !ok {
			return all
		}
		if len(raw) < int(unsafe.Sizeof(kernelFlatRecord{})) {
			k.t.Fatalf("a record of %d bytes", len(raw))
		}
		all = append(all, *(*kernelFlatRecord)(unsafe.Pointer(&raw[0])))
	}
}

// counted checks which counters moved since the last call, and by how much;
// no other may have moved.
func (k *kernel) counted(want map[string]uint64) {
	k.t.Helper()
	now, err := k.Counters()
	if err != nil {
		k.t.Fatal(err)
	}
	for i := range now {
		name := Counter(i).String()
		if got := now[i] - k.told[i]; got != want[name] {
			k.t.Errorf("counter %s moved by %d, want %d", name, got, want[name])
		}
	}
	k.told = now
}

// balanced checks the books (counters.h), and that the histograms agree. The
// kernel must have done nothing but what this test had it do.
func (k *kernel) balanced() {
	k.t.Helper()
	k.records()
	c, err := k.Counters()
	if err != nil {
		k.t.Fatal(err)
	}
	open := k.cleared
	err = k.eachRequest(func(_ place, _ *kernelFlatKey, p *kernelFlatPending) error {
		if isOpen(p) {
			open++
		}
		return nil
	})
	if err != nil {
		k.t.Fatal(err)
	}
	if c[Requests] != c[Finished]+c[TimedOut]+c[HalfOpen]+open+c[Replaced]+c[PendingFull] {
		k.t.Errorf("requests %d != finished %d + timed out %d + half open %d + open %d + replaced %d + full %d",
			c[Requests], c[Finished], c[TimedOut], c[HalfOpen], open, c[Replaced], c[PendingFull])
	}
	if c[Finished] != c[ResultOut]+c[TooFast]+c[SampledOut]+c[RingFull]+k.read {
		k.t.Errorf("finished %d != result out %d + too fast %d + sampled out %d + ring full %d + read %d",
			c[Finished], c[ResultOut], c[TooFast], c[SampledOut], c[RingFull], k.read)
	}
	histograms, err := k.Histograms()
	if err != nil {
		k.t.Fatal(err)
	}
	told := c[kernelFlatCounterCOUNT_HISTOGRAM_FULL]
	for _, h := range histograms {
		told += h.Count()
	}
	if c[Finished] != told {
		k.t.Errorf("finished %d, but %d in the histograms or without one", c[Finished], told)
	}
}

func TestEveryCounterHasAName(t *testing.T) {
	seen := make(map[string]bool)
	for i, name := range counterNames {
		if name == "" || seen[name] {
			t.Errorf("counter %d is named %q", i, name)
		}
		seen[name] = true
	}
}

func TestNoiseComesBackUnaltered(t *testing.T) {
	k := openKernel(t)
	noise := make([]byte, 15)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	noise[12], noise[13] = 0x88, 0xb5 // an EtherType for experiments (IEEE 802), not IP by chance
	k.in(noise)
	k.out(noise)
	k.counted(map[string]uint64{"not_ip": 2})
}
