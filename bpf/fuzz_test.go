package bpf

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/packaging/testbed"
)

// FuzzPackets has sequences of packets pass the four programs. None may come
// back altered or with a verdict but "next", every record must be one that the
// daemon can decode, and the books must balance. As many tests run at once as
// -parallel says, each with programs and maps of its own.
//
// The fuzzer sees what Go code runs. What the kernel did it is told by edge():
// a counter that moved and a kind of record are a place in the code each.
func FuzzPackets(f *testing.F) {
	for _, seed := range seeds(f) {
		f.Add(seed)
	}
	z := openFuzzed(f)
	f.Fuzz(func(t *testing.T, script []byte) {
		z.t = t
		z.play(script)
	})
}

// seeds are scripts of every exchange there is a test of, of every scene and of
// a flood.
func seeds(t testing.TB) (all [][]byte) {
	for _, p := range paths[:2] {
		for _, table := range tables {
			if p.without && table.name != "shapes" {
				continue // these alone are different there
			}
			for _, flow := range p.flows {
				for _, e := range table.build(t, flow) {
					all = append(all, script(e, p.without))
				}
			}
		}
	}
	for n := range scenes {
		for _, flow := range paths[0].flows {
			for _, kind := range everyKind(t, flow) {
				asked := addStep(nil, byte(n)<<stepBefore, kind.request)
				asked = addStep(asked, stepIn|stepAgain|stepAnswer, nil)
				all = append(all, asked, addStep(addStep(nil, stepIn, kind.request), byte(n)<<stepBefore|stepAgain|stepAnswer, nil))
			}
		}
	}
	return append(all, floods(t)...)
}

// floods are scripts that no table is large enough for, and of what programs do that are
// not alone, or where addresses are translated.
func floods(t testing.TB) [][]byte {
	var requests, answers, others, translated []byte
	for i := range uint16(30) {
		requests = addStep(requests, 0, flow4.sourcePort(i).syn(t, 100))
		answers = addStep(answers, 0, flow4.port(53).dns(t, i, nil))
		answers = addStep(answers, stepIn, flow4.port(53).back().answers(t, i, 0))
	}
	for i := range uint16(30) {
		requests = addStep(requests, stepIn, flow4.sourcePort(i).back().synAck(t, 101))
	}
	for i := range uint16(12) {
		scene := byte(0)
		if i%4 == 0 {
			scene = 2 << stepBefore // the next phase
		}
		others = addStep(others, scene, flow4.sourcePort(i).syn(t, 100))
		others = addStep(others, stepIn, flow4.sourcePort(i).back().synAck(t, 101))
		others = addStep(others, 0, flow6.sourcePort(i).udp(t, 1))
	}
	elsewhere := flow4.sourcePort(1).port(2) // both ends
	translated = addStep(translated, 1<<stepBefore, flow4.syn(t, 100))
	translated = addStep(translated, stepIn, flow4.sourcePort(1).back().synAck(t, 101))
	translated = addStep(translated, 0, flow4.syn(t, 200))
	translated = addStep(translated, stepIn, elsewhere.back().synAck(t, 201))
	translated = addStep(translated, timeoutScene<<stepBefore, nil)
	return [][]byte{requests, answers, others, translated}
}

// A script is steps, each an octet of what to do, the length of what follows
// and a frame, or changes to the frame before it.
const (
	stepIn     = 1 << 0
	stepBare   = 1 << 1 // without its link header
	stepAgain  = 1 << 2 // the last frame again, with octets changed: pairs of offset and value
	stepAnswer = 1 << 3 // made into its own answer
	stepBefore = 4      // from here on: the number of a scene
)

const stepsMax = 64

// scene is what happens before a packet.
type scene func(z *fuzzed)

var scenes = [16]scene{
	1:  func(z *fuzzed) { z.shared.setTranslating([]int{runIfindex}) },
	2:  func(z *fuzzed) { z.shared.setPhase((z.shared.phase() + 1) % (phaseFinish + 1)) },
	3:  func(z *fuzzed) { z.shared.setAttaching(runIfindex - int(z.shared.Attaching)) },
	4:  func(z *fuzzed) { z.sweepUntilDone(11 * time.Second) },
	5:  func(z *fuzzed) { z.sweep(time.Hour, waited) },
	6:  func(z *fuzzed) { z.set(Settings{}) },
	7:  func(z *fuzzed) { z.set(Settings{MatchHost: true}) },
	8:  func(z *fuzzed) { z.set(Settings{UDPIdle: time.Nanosecond}) },
	9:  func(z *fuzzed) { z.set(Settings{MinDuration: time.Hour}) },
	10: func(z *fuzzed) { z.set(Settings{Sample: 100}) },
	11: func(z *fuzzed) { z.set(Settings{DNSPorts: []uint16{53, 443}}) },
	12: func(z *fuzzed) { z.set(Settings{SkipKinds: []uint8{kindTCP}, SkipSides: []uint8{SideServer}}) },
	13: func(z *fuzzed) { z.set(Settings{Ports: []PortRange{{443, 443}}}) },
	14: func(z *fuzzed) { z.drain() },
	15: func(z *fuzzed) { z.crowdFlows() },
}

// runIfindex is the index that the packets of a test run come with: that of lo.
const runIfindex = 1

const timeoutScene = 4

func script(e exchange, bare bool) (s []byte) {
	before := byte(0)
	for _, p := range e.packets {
		if p.frame == nil {
			before = timeoutScene << stepBefore
			continue
		}
		step := before
		before = 0
		if p.in {
			step |= stepIn
		}
		if bare {
			step |= stepBare
		}
		s = addStep(s, step, p.frame)
	}
	if before != 0 {
		s = addStep(s, before, nil)
	}
	return s
}

func addStep(script []byte, step byte, octets []byte) []byte {
	script = binary.BigEndian.AppendUint16(append(script, step), uint16(len(octets)))
	return append(script, octets...)
}

// fuzzed is a kernel whose tables and ring are small enough to overflow.
type fuzzed struct {
	*kernel
	last    []byte // frame
	counted Counters
	plain   bool // the settings are the default
}

func openFuzzed(t testing.TB, objects ...object) *fuzzed {
	t.Helper()
	testbed.Root(t)
	if len(objects) == 0 {
		all, err := objectsOfKernel()
		if err != nil {
			t.Fatal(err)
		}
		objects = all[:1]
	}
	small := object{objects[0].name, func() (*ebpf.CollectionSpec, error) {
		spec, err := objects[0].spec()
		if err != nil {
			return nil, err
		}
		for _, name := range []string{kernelMapFlatOurs, kernelMapFlatTheirs, kernelMapFlatQuestions} {
			spec.Maps[name].MaxEntries = 16
		}
		spec.Maps[kernelMapFlatSeen].MaxEntries = 4
		spec.Maps[kernelMapFlatEvents].MaxEntries = 4096
		return spec, nil
	}}
	// Nothing needs the pins once all is open, and a worker of the fuzzer ends
	// without a clean-up.
	path, err := os.MkdirTemp("", "flat-fuzz-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(path)
	if err := unix.Mount("bpf", path, "bpf", 0, "mode=0700"); err != nil {
		testbed.Missing(t, "mount a BPF file system: %v", err)
	}
	defer unix.Unmount(path, unix.MNT_DETACH)
	s, err := open(path, Auto, small)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if err := s.needL3(); err != nil {
		t.Fatal(err)
	}
	k := kernelOf(t, s)
	k.crowdSlots(8)
	return &fuzzed{kernel: k, plain: true}
}

// play runs a script, from empty tables and with the default settings.
func (z *fuzzed) play(script []byte) {
	z.t.Helper()
	z.clear()
	if !z.plain {
		z.set(Settings{})
	}
	z.shared.setPhase(phaseAlone)
	z.shared.setAttaching(0)
	z.shared.setTranslating(nil)
	z.last = make([]byte, runnable)
	for range stepsMax {
		if len(script) < 3 {
			break
		}
		step, length := script[0], int(binary.BigEndian.Uint16(script[1:]))
		script = script[3:]
		length = min(length, len(script), 1514)
		z.step(step, script[:length])
		script = script[length:]
	}
	z.drain()
	z.feel()
	z.balanced()
}

func (z *fuzzed) step(step byte, octets []byte) {
	z.t.Helper()
	if before := scenes[step>>stepBefore]; before != nil {
		before(z)
	}
	frame := bytes.Clone(octets)
	if step&stepAgain != 0 {
		frame = bytes.Clone(z.last)
		for ; len(octets) >= 2; octets = octets[2:] {
			frame[int(octets[0])%len(frame)] = octets[1]
		}
	}
	if step&stepAnswer != 0 {
		answerTo(frame)
	}
	if step&stepBare != 0 && len(frame) > etherHeader {
		frame = frame[etherHeader:]
	}
	if short := runnable - len(frame); short > 0 {
		frame = append(frame, make([]byte, short)...)
	}
	z.run(z.program(step), frame)
	if step&stepBare != 0 { // as it was
		frame = append(make([]byte, etherHeader), frame...)
	}
	z.last = frame
	z.feel()
}

func (z *fuzzed) program(step byte) *ebpf.Program {
	switch step & (stepIn | stepBare) {
	case stepIn | stepBare:
		return z.programs.FlatIngressL3
	case stepIn:
		return z.programs.FlatIngress
	case stepBare:
		return z.programs.FlatEgressL3
	}
	return z.programs.FlatEgress
}

func (z *fuzzed) set(s Settings) {
	z.t.Helper()
	if err := z.Apply(s); err != nil {
		z.t.Fatal(err)
	}
	z.plain = !s.MatchHost && s.UDPIdle == 0 && s.MinDuration == 0 && s.Sample == 0 &&
		s.DNSPorts == nil && s.SkipKinds == nil && s.Ports == nil
}

// feel tells the fuzzer which counters have moved.
func (z *fuzzed) feel() {
	z.t.Helper()
	now, err := z.Counters()
	if err != nil {
		z.t.Fatal(err)
	}
	for i := range now {
		if now[i] != z.counted[i] {
			edge(i)
		}
	}
	z.counted = now
}

// drain reads the ring and tells the fuzzer what sorts of records were there.
func (z *fuzzed) drain() {
	z.t.Helper()
	for _, r := range z.records() {
		if r.DurationNs > r.EndNs || r.RttNs > r.DurationNs || r.QuestionLength > 259 || r.Repeats > stepsMax {
			z.t.Errorf("record %+v", r)
		}
		edge(edgeRecords + (int(r.Kind-1)*2+int(r.Side-1))*edgeResults + int(r.Result-1))
	}
}

// answerTo makes a frame its own answer, as far as it is one that has an
// answer: the ends exchanged, SYN to SYN/ACK, query to response, echo to reply.
func answerTo(frame []byte) {
	if len(frame) < runnable || networkOf(frame)+60 > len(frame) {
		return
	}
	at := networkOf(frame)
	protocol, addresses, size := frame[at+9], frame[at+12:], 4
	if frame[at]>>4 == 6 {
		protocol, addresses, size = frame[at+6], frame[at+8:], 16
	}
	swap(addresses[:size], addresses[size:2*size])
	transport := frame[transportOf(frame):]
	switch layers.IPProtocol(protocol) {
	case layers.IPProtocolTCP:
		swap(transport[:2], transport[2:4])
		binary.BigEndian.PutUint32(transport[8:], binary.BigEndian.Uint32(transport[4:])+1)
		transport[13] |= 0x10
	case layers.IPProtocolUDP:
		swap(transport[:2], transport[2:4])
		if len(transport) > 10 {
			transport[10] |= 0x80
		}
	case layers.IPProtocolICMPv4:
		transport[0] = 0
	case layers.IPProtocolICMPv6:
		transport[0] = 129
	}
}

func swap(a, b []byte) {
	for i := range a {
		a[i], b[i] = b[i], a[i]
	}
}

// What the fuzzer does for as long as it is let, this does for a moment.
func TestMutatedPacketsAreNeverAlteredNorMisread(t *testing.T) {
	z := openFuzzed(t)
	seeds := seeds(t)
	for _, seed := range seeds {
		z.play(seed)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		mutated := bytes.Clone(seeds[random.IntN(len(seeds))])
		for range 1 + random.IntN(8) {
			mutated[random.IntN(len(mutated))] = byte(random.Uint32())
		}
		z.play(mutated)
	}
	c, err := z.Counters()
	if err != nil {
		t.Fatal(err)
	}
	for i := range c {
		switch name := Counter(i).String(); name {
		case "asleep", "histogram_full", "result_out", "not_looking", "attempts_forgotten":
			// These have tests of their own.
		default:
			if c[i] == 0 {
				t.Errorf("nothing moved the counter %s: the seeds are dead", name)
			}
		}
	}
}
