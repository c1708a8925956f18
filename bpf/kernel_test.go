package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/flatd/flatd/flows"
	"github.com/flatd/flatd/packaging/testbed"
)

// kernel is a State of the test's own. Packets are run through its programs one
// by one, or reach them over a device where deliver says how.
type kernel struct {
	*State
	t          testing.TB
	words      map[*ebpf.Map][]uint64 // of arrays: mapping them takes longer than most tests
	reader     *Reader
	deliver    func(in bool, frame []byte)
	lastCounts Counters // when counted last looked
	read       uint64   // records
	cleared    uint64   // open requests that clear forgot
}

// openKernel loads the object that this kernel gets, or the given one.
func openKernel(t testing.TB, objects ...object) *kernel {
	t.Helper()
	return kernelOf(t, openState(t, testbed.BPFFS(t), objects...))
}

// bothObjects are those that this kernel can load.
var bothObjects = []object{objectFlat, objectFlat510}

// eachObject runs a test with each of the objects.
func eachObject(t *testing.T, test func(t *testing.T, o object)) {
	for _, o := range bothObjects {
		t.Run(o.name, func(t *testing.T) {
			needObject(t, o)
			test(t, o)
		})
	}
}

// needObject skips a test where the kernel cannot load the object.
func needObject(t *testing.T, o object) {
	t.Helper()
	testbed.Root(t)
	if recent, err := haveFetchAdd(); err != nil {
		t.Fatal(err)
	} else if !recent && o.name == objectFlat.name {
		t.Skip("this object needs Linux 5.12")
	}
}

func kernelOf(t testing.TB, s *State) *kernel {
	t.Helper()
	r, err := s.Requests.Reader()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	k := &kernel{t: t, State: s, reader: r, words: make(map[*ebpf.Map][]uint64)}
	var mapped memory
	t.Cleanup(func() { mapped.close() })
	for _, m := range []*ebpf.Map{s.maps.FlatFlows, s.maps.FlatAttempts} {
		p, err := mapped.of(m)
		if err != nil {
			t.Fatal(err)
		}
		k.words[m] = unsafe.Slice((*uint64)(p), m.MaxEntries()*m.ValueSize()/8)
	}
	return k
}

func openState(t testing.TB, path string, objects ...object) *State {
	t.Helper()
	var err error
	if len(objects) == 0 {
		if objects, err = objectsOfKernel(); err != nil {
			t.Fatal(err)
		}
	}
	s, err := open(path, Auto, objects...)
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
func openBare(t testing.TB, outer bool, o object) *kernel {
	t.Helper()
	setOuterFirst(t, outer)
	k := openKernel(t, o)
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

// clear forgets all that is known of requests and flows.
func (k *kernel) clear() {
	k.t.Helper()
	for i := range k.Requests.slots {
		slot := &k.Requests.slots[i]
		if tag := slot.tag(); tag != 0 && tag != tagOfNobody {
			k.cleared++
			slot.Request = kernelFlatRequest{}
			slot.Word = 0
		}
		slot.Word &^= 1<<tagShift - 1
	}
	for _, m := range []*ebpf.Map{k.Requests.ours, k.Requests.theirs} {
		k.cleared += k.empty(m)
	}
	hints := make([]kernelFlatHint, k.maps.FlatHints.MaxEntries())
	if _, err := k.maps.FlatHints.BatchUpdate(upTo(len(hints)), hints, nil); err != nil {
		k.t.Fatal(err)
	}
	k.forgetEnded()
}

// forgetEnded forgets all but the open requests: repeats and answers of others are
// something new then.
func (k *kernel) forgetEnded() {
	k.t.Helper()
	for _, m := range []*ebpf.Map{k.maps.FlatRecentOurs, k.maps.FlatRecentTheirs, k.maps.FlatSeen} {
		k.empty(m)
	}
	k.flows(func(words []uint64) { clear(words) })
	clear(k.words[k.maps.FlatAttempts])
}

// empty removes the elements of a map and returns how many there were.
func (k *kernel) empty(m *ebpf.Map) (removed uint64) {
	k.t.Helper()
	for {
		var hash uint64
		err := m.NextKey(nil, &hash)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return removed
		}
		if err := errors.Join(err, m.Delete(hash)); err != nil {
			k.t.Fatal(err)
		}
		removed++
	}
}

func upTo(n int) []uint32 {
	all := make([]uint32, n)
	for i := range all {
		all[i] = uint32(i)
	}
	return all
}

// openRequests lists the requests that are open.
func (k *kernel) openRequests() (all []openRequest) {
	k.t.Helper()
	err := k.Requests.each(func(side uint8, hash uint64, r *kernelFlatRequest) error {
		all = append(all, openRequest{side, hash, *r})
		return nil
	})
	if err != nil {
		k.t.Fatal(err)
	}
	return all
}

// openRequest is one that OpenRequests.each has visited.
type openRequest struct {
	side uint8
	hash uint64
	kernelFlatRequest
}

// overdue is what has the kernel half end a request, after it has waited for so long.
func (r *openRequest) overdue(limit time.Duration) *kernelFlatOverdue {
	return &kernelFlatOverdue{Hash: r.hash, FirstNs: r.FirstNs, LimitNs: uint64(limit), Side: uint32(r.side)}
}

// flows calls use with the words of all UDP flows, in the kernel's memory.
func (k *kernel) flows(use func(words []uint64)) {
	k.t.Helper()
	use(k.words[k.maps.FlatFlows])
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

// tagOfNobody holds a slot for nobody: the uppermost bit of a hash is set.
const tagOfNobody = 1

// tag is that of the request in the slot, 0 if there is none.
func (s *kernelFlatSlot) tag() uint64 { return s.Word >> tagShift }

// others is how many requests are in the hash map whose slot this is.
func (s *kernelFlatSlot) others() uint64 { return s.Word & (1<<tagShift - 1) }

// holds reports whether a request is in this slot, which may be nil.
func (s *kernelFlatSlot) holds(r openRequest) bool { return s != nil && s.tag() == r.hash>>tagShift }

// crowdSlots leaves no slot free, but for each of the given number; 0: none at all.
func (k *kernel) crowdSlots(but int) {
	for i := range k.Requests.slots {
		if s := &k.Requests.slots[i]; s.tag() == 0 && (but == 0 || i%but != 0) {
			s.Word |= tagOfNobody << tagShift
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
		if got := now[i] - k.lastCounts[i]; got != want[name] {
			k.t.Errorf("counter %s moved by %d, want %d", name, got, want[name])
		}
	}
	k.lastCounts = now
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
	open := k.cleared + uint64(len(k.openRequests()))
	ended := c[Finished] + c[TimedOut] + c[HalfOpen] + c[Translated] + c[NotLooking]
	if c[Requests] != ended+open+c[Replaced]+c[PendingFull] {
		k.t.Errorf("requests %d != finished %d + timed out %d + half open %d + translated %d + not looking %d + open %d + replaced %d + full %d",
			c[Requests], c[Finished], c[TimedOut], c[HalfOpen], c[Translated], c[NotLooking], open, c[Replaced], c[PendingFull])
	}
	reported := c[Finished] + c[TimedOut] + c[Late] + c[Rescued]
	if reported != c[ResultOut]+c[TooFast]+c[SampledOut]+c[RingFull]+k.read {
		k.t.Errorf("finished %d + timed out %d + late %d + rescued %d != result out %d + too fast %d + sampled out %d + ring full %d + read %d",
			c[Finished], c[TimedOut], c[Late], c[Rescued], c[ResultOut], c[TooFast], c[SampledOut], c[RingFull], k.read)
	}
	histograms, err := k.Histograms()
	if err != nil {
		k.t.Fatal(err)
	}
	inHistograms := c[kernelFlatCounterCOUNT_HISTOGRAM_FULL]
	for _, h := range histograms {
		inHistograms += h.Count()
	}
	if reported != inHistograms {
		k.t.Errorf("%d exchanges ended, but %d are in the histograms or without one", reported, inHistograms)
	}
	k.leaksNothing()
}

// leaksNothing checks that slots and hints count what is open, and nothing else.
func (k *kernel) leaksNothing() {
	k.t.Helper()
	var inMaps, others uint64
	var hinted, hints int
	for _, r := range k.openRequests() {
		if !k.slotOf(r.side, r.hash).holds(r) {
			inMaps++
		}
		hinted += bits.OnesCount8(r.Traits &^ requestOverflow)
	}
	for i := range k.Requests.slots {
		others += k.Requests.slots[i].others()
	}
	if k.Object == objectFlat.name && inMaps != others {
		k.t.Errorf("%d requests are in the hash maps, the slots know of %d", inMaps, others)
	}
	all := make([]kernelFlatHint, k.maps.FlatHints.MaxEntries())
	var cursor ebpf.MapBatchCursor
	if n, err := k.maps.FlatHints.BatchLookup(&cursor, make([]uint32, len(all)), all, nil); n != len(all) {
		k.t.Fatalf("%d hints of %d: %v", n, len(all), err)
	}
	for _, h := range all {
		hints += int(h.Word & (1<<tagShift - 1))
	}
	if hints != hinted {
		k.t.Errorf("the hints count %d, the open requests have %d", hints, hinted)
	}
}

const requestOverflow = 1 << 0 // REQUEST_OVERFLOW

// slotOf is the slot that a hash names: slot_of of table.h.
func (k *kernel) slotOf(side uint8, hash uint64) *kernelFlatSlot {
	if k.Object != objectFlat.name {
		return nil
	}
	each := uint64(len(k.Requests.slots) / 2)
	i := hash % each
	if side == SideServer {
		i += each
	}
	return &k.Requests.slots[i]
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

// meanwhile calls f again and again until stop, which returns how often it was true.
func meanwhile(f func() bool) (stop func() int) {
	done, times := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-done:
				times <- n
				return
			default:
				if f() {
					n++
				}
			}
		}
	}()
	return func() int {
		close(done)
		return <-times
	}
}
