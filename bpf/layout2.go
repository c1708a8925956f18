package bpf

import (
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
)

// layout2 is all that is known of layout 2, that of flatd 0.1: how its records and tables
// look, and that its timeouts were found by user space, which kept them in a map, the
// ledger, until every output had them. This file goes when nobody upgrades from it.
type layout2 struct {
	state                             *State // ours, whose programs take over
	ours, theirs, questions, settings *ebpf.Map
	counters                          *ebpf.Map // those of Previous

	claim  *ebpf.Program
	seats  []seat2
	ledger *ledger2
	mapped memory                                     // of seats and ledger
	buffer [unsafe.Sizeof(kernelFlatDnsRecord{})]byte // of record
	last   uint64                                     // the number of the timeout that was reported last
	first  bool                                       // what an earlier daemon claimed has been reported

	// See noteReturn; times of CLOCK_BOOTTIME.
	back     bool              // its daemon was started again, after
	tookOver uint64            // our programs had taken over, and
	again    map[string]uint64 // measured beside them: by pins; nil: ours left it to it
	awake    bool              // ours have seen every flow since

	skipTimeouts bool   // the filter leaves them out, which layout 2 had user space do
	leftOut      uint64 // timeouts, for that reason
}

// key2 and pending2 are an open request of layout 2 (struct flat_key, struct flat_pending).
type key2 struct {
	Local, Remote         addr2
	LocalPort, RemotePort uint16 // network order
	ID, Ifindex, Kind     uint32
}

type addr2 [16]byte

type pending2 struct {
	FirstNs, LastNs, Seal, Cgroup uint64
	UID, ISN                      uint32
	Payload                       uint16
	Answers, Flags                uint8
	FirstTsval, LastTsval         uint32
	Repeats, Ifindex              uint32
	VLAN                          uint16
	State, TTL                    uint8
	_, PID                        uint32
	Comm                          [2]uint64
}

type question2 struct {
	Length   uint16
	Question [262]byte
}

type seat2 struct {
	Holder    uint64
	Others, _ uint32
	Key       key2
	Request   pending2
}

type record2 struct {
	Sequence, EndNs, DurationNs, RttNs, ClientRttNs, Cgroup   uint64
	Source, Destination                                       addr2
	SourcePort, DestinationPort                               uint16 // network order
	Ifindex, ID, Repeats, UID                                 uint32
	VLAN                                                      uint16
	Kind, Side, Result, Flags, TTL, RCode, ICMPType, ICMPCode uint8
	QuestionLength                                            uint16
	Comm                                                      [2]uint64
	PID, _                                                    uint32
}

const (
	stateOpen2, stateReported2, stateHalfOpen2 = 0, 1, 2

	lossTold2 = Counter(12) // a counter; up to RingFull they are as ours

	resultTimeout2 = 5

	skipAll2 = ^uint32(0) // in the settings: its programs begin nothing

	timeoutsMax2 = 4096
)

type ledger2 struct {
	twoCopies[books2]
	intent   claimed2
	timeouts [timeoutsMax2]claimed2
}

type books2 struct {
	timedOut, halfOpen, confirmed uint64
	released, before              [2]uint64
	since, notFollowed            uint64
}

type claimed2 struct {
	number, limitNs, side uint64
	key                   key2
	pending               pending2
	question              question2
}

// openLayout2 opens what is there; see canSweep.
func openLayout2(p *Previous) *layout2 {
	key, value := uint32(unsafe.Sizeof(key2{})), uint32(unsafe.Sizeof(pending2{}))
	l := &layout2{
		ours: p.take("flat_ours", ebpf.Hash, key, value), theirs: p.take("flat_theirs", ebpf.Hash, key, value),
		questions: p.take("flat_questions", ebpf.LRUHash, key, uint32(unsafe.Sizeof(question2{}))),
		settings:  p.take("flat_settings", ebpf.Array, 4, uint32(unsafe.Sizeof(kernelFlatOptions2{}))),
		counters:  p.maps.FlatCounters,
		state:     p.ours,
	}
	l.claim, _ = ebpf.LoadPinnedProgram(filepath.Join(p.dir, "flat_claim"), nil)
	if m := p.take("flat_seats", ebpf.Array, 4, uint32(unsafe.Sizeof(seat2{}))); m != nil {
		defer m.Close()
		if seats, err := l.mapped.of(m); err == nil {
			l.seats = unsafe.Slice((*seat2)(seats), m.MaxEntries())
		}
	}
	if m := p.take("flat_ledger", ebpf.Array, 4, uint32(unsafe.Sizeof(ledger2{}))); m != nil {
		defer m.Close()
		if ledger, err := l.mapped.of(m); err == nil {
			l.ledger = (*ledger2)(ledger)
		}
	}
	if l.canSweep() {
		l.resolve()
	}
	return l
}

func (l *layout2) canSweep() bool {
	return l.ours != nil && l.theirs != nil && l.questions != nil && l.seats != nil && l.claim != nil && l.ledger != nil
}

func (l *layout2) close() error {
	l.seats, l.ledger = nil, nil
	return errors.Join(l.ours.Close(), l.theirs.Close(), l.questions.Close(), l.settings.Close(), l.claim.Close(), l.mapped.close())
}

// sequenceOfLayout2 opens the map in which layout 2 counts its records, if there is one:
// a handle without its pin.
func sequenceOfLayout2(root string) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(layout{abi: 2}.dir(root), kernelMapFlatSequence), nil)
	if err != nil {
		return nil, nil // none
	}
	defer m.Close()
	if m.Type() != ebpf.Array || m.ValueSize() != uint32(unsafe.Sizeof(kernelFlatNumbering{})) {
		return nil, nil
	}
	return m.Clone()
}

// beginNothing has the filter of the programs leave out requests of every kind. What was
// let in before is followed to its end.
func (l *layout2) beginNothing() error {
	options, err := l.options()
	if err != nil {
		return err
	}
	options.SkipKinds = skipAll2
	if err := l.settings.Update(uint32(0), options, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("write the settings of layout 2: %w", err)
	}
	return nil
}

func (l *layout2) options() (o kernelFlatOptions2, err error) {
	if l.settings == nil {
		return o, errors.New("layout 2 has no settings to tell its programs to begin nothing")
	}
	if err := l.settings.Lookup(uint32(0), &o); err != nil {
		return o, fmt.Errorf("read the settings of layout 2: %w", err)
	}
	return o, nil
}

// watch has our programs look whether a daemon of layout 2 comes back.
func (l *layout2) watch() error {
	options, err := l.options()
	if err == nil {
		atomic.StoreUint32(&l.state.shared.Generation2, options.Generation)
		err = l.state.maps.FlatSettings2.Put(uint32(0), l.settings)
	}
	if err != nil {
		return fmt.Errorf("watch the settings of layout 2: %w", err)
	}
	return nil
}

// noteReturn finds out whether a daemon of layout 2, which knows nothing of our programs, was
// started after they had taken over. Where it found its own, it has them begin again, and ours
// leave it to them (handover.h), but for what both have begun by then. Where these were removed,
// both have measured since it attached others: when that was, the pins say, to a few
// milliseconds.
func (l *layout2) noteReturn(dir string) {
	s := l.state
	phase := s.shared.phase()
	if phase == phaseWatch || phase == phaseFinish || !s.Attacher.attachedAnywhere() {
		return
	}
	lease := atomic.LoadUint64(&s.shared.LeaseUntilNs)
	l.awake = lease == 0 || lease > BootTime()
	l.tookOver = atomic.LoadUint64(&s.shared.BothNs)
	ours, theirs := pinTimes(s.dir, "links/*", kernelMapFlatEvents), pinTimes(dir, "links/*", "flat_*gress")
	options, err := l.options()
	switch {
	case newest(theirs) > newest(ours):
		l.back, l.again = true, theirs
	case phase == phaseAlone || err != nil || options.Generation == atomic.LoadUint32(&s.shared.Generation2):
	case phase == phaseBoth:
		l.back, l.again = true, map[string]uint64{"flat_ingress": l.tookOver, "flat_egress": l.tookOver}
	default:
		l.back = true
	}
}

// pinTimes is when pins were made, of CLOCK_BOOTTIME, by their names.
func pinTimes(dir string, patterns ...string) map[string]uint64 {
	boot := time.Now().Add(-time.Duration(BootTime()))
	times := make(map[string]uint64)
	for _, pattern := range patterns {
		paths, _ := filepath.Glob(filepath.Join(dir, pattern))
		for _, path := range paths {
			if info, err := os.Lstat(path); err == nil {
				times[filepath.Base(path)] = uint64(max(info.ModTime().Sub(boot), 0))
			}
		}
	}
	return times
}

func newest(times map[string]uint64) (latest uint64) {
	for _, t := range times {
		latest = max(latest, t)
	}
	return latest
}

// isFrom reports whether a record of our ring is of a request that those of layout 2 have
// measured too, when they were back.
func (l *layout2) isFrom(r *kernelFlatRecord) bool {
	if l.again == nil {
		return false
	}
	asks := egress
	if r.Side == SideServer {
		asks = ingress
	}
	since, ok := l.again[linkName(int(r.Ifindex), asks)]
	if !ok { // by a filter, which has no time
		since = l.again["flat_"+string(asks)]
	}
	if since <= l.tookOver { // a link from before, which has been awake again since others were made
		since = newest(l.again)
	}
	first := r.EndNs - r.DurationNs
	return first >= since && first < atomic.LoadUint64(&l.state.shared.BothNs)
}

// isAnswer reports whether what those of layout 2 took for a UDP request, when they were back,
// was the answer to one of ours.
func (l *layout2) isAnswer(r *kernelFlatRecord) bool {
	if !l.back || !l.awake || r.Kind != kindUDP || r.EndNs-r.DurationNs < l.tookOver {
		return false
	}
	side, key := keyOf(r, l.state.shared)
	return l.knowsFlow(SideClient+SideServer-side, &key)
}

// askedFlow is a UDP flow with an open request.
type askedFlow struct {
	side   uint8
	key    kernelFlatKey
	lastNs uint64
}

// noteFlows has our programs know flows, so that the answer to one begins no other.
func (l *layout2) noteFlows(flows []askedFlow) error {
	s := l.state
	return withWords(s.maps.FlatFlows, func(words []uint64) error {
		for i := range flows {
			f := &flows[i]
			hash := flowHash(s.shared.Seed, &f.key)
			set := flowSet(words, f.side, hash)
			if way := slices.Index(set, 0); way >= 0 {
				const asked, unitShift, unitMask = 1 << 22, 24, 1<<22 - 1 // FLOW_ASKED and the like
				word := hash>>tagShift<<tagShift | asked | f.lastNs>>unitShift&unitMask
				atomic.CompareAndSwapUint64(&set[way], 0, word)
			}
		}
		return nil
	})
}

// flowSet is where the words of flows with a hash are, that a side has begun.
func flowSet(words []uint64, side uint8, hash uint64) []uint64 {
	const ways = len(kernelFlatFlowSet{}.Ours) // and as many of the other side
	set := words[int(hash%uint64(len(words)/(2*ways)))*2*ways:]
	if side == SideServer {
		return set[ways : 2*ways]
	}
	return set[:ways]
}

// knowsFlow reports whether our programs know a UDP flow that a side has begun.
func (l *layout2) knowsFlow(side uint8, key *kernelFlatKey) (known bool) {
	s := l.state
	hash := flowHash(s.shared.Seed, key)
	err := withWords(s.maps.FlatFlows, func(words []uint64) error {
		set := flowSet(words, side, hash)
		for i := range set {
			known = known || atomic.LoadUint64(&set[i])>>tagShift == hash>>tagShift
		}
		return nil
	})
	return known && err == nil
}

// visit calls use for each request that is known: a copy, in a seat perhaps of two that
// followed each other there.
func (l *layout2) visit(use func(side uint8, key *key2, r *pending2) error) error {
	for i := range l.seats {
		if atomic.LoadUint64(&l.seats[i].Holder) == 0 {
			continue
		}
		side := uint8(SideClient)
		if i >= len(l.seats)/2 {
			side = SideServer
		}
		seat := l.seats[i]
		if seat.Key.Kind == 0 || seat.Request.LastNs < seat.Request.FirstNs {
			continue
		}
		if err := use(side, &seat.Key, &seat.Request); err != nil {
			return err
		}
	}
	for side, m := range map[uint8]*ebpf.Map{SideClient: l.ours, SideServer: l.theirs} {
		var cursor ebpf.MapBatchCursor
		keys, values := make([]key2, sweepBatch), make([]pending2, sweepBatch)
		for {
			n, err := m.BatchLookup(&cursor, keys, values, nil)
			if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return fmt.Errorf("list open requests of layout 2: %w", err)
			}
			for i := range n {
				if useErr := use(side, &keys[i], &values[i]); useErr != nil {
					return useErr
				}
			}
			if err != nil {
				break
			}
		}
	}
	return nil
}

func isOpen2(r *pending2) bool { return r.State == stateOpen2 || r.State == stateHalfOpen2 }

// each visits the requests with keys as our programs have them.
func (l *layout2) each(seed uint64, visit func(side uint8, key *kernelFlatKey, isn uint32, lastNs uint64) error) error {
	if !l.canSweep() {
		return nil
	}
	return l.visit(func(side uint8, k *key2, r *pending2) error {
		key := kernelFlatKey{LocalPort: k.LocalPort, RemotePort: k.RemotePort, Ifindex: k.Ifindex}
		key.Local.Bytes, key.Remote.Bytes = k.Local, k.Remote
		id := uint64(k.ID)
		if k.Kind == kindDNS {
			id = id<<dnsIDShift | l.questionHash(seed, k)
		}
		key.Id = uint64(k.Kind)<<kindShift | id
		return visit(side, &key, r.ISN, r.LastNs)
	})
}

func (l *layout2) questionHash(seed uint64, key *key2) uint64 {
	var q question2
	if l.questions.Lookup(key, &q) != nil {
		return 0
	}
	return questionHash(seed, q.Question[:min(int(q.Length), len(q.Question))])
}

// find reads what is known of a request.
func (l *layout2) find(side uint8, key *key2) (found pending2, ok bool) {
	for i := range l.seats {
		if (i < len(l.seats)/2) == (side == SideClient) && l.seats[i].Key == *key && atomic.LoadUint64(&l.seats[i].Holder) != 0 {
			return l.seats[i].Request, true
		}
	}
	m := l.ours
	if side == SideServer {
		m = l.theirs
	}
	return found, m.Lookup(key, &found) == nil
}

// sweep reports what has waited longer than limit, and at first what an earlier daemon
// had claimed and not confirmed.
func (l *layout2) sweep(now uint64, limit time.Duration, report func(record []byte)) (swept Swept, err error) {
	found := func(number uint64, c *claimed2) {
		l.last = number
		if l.skipTimeouts {
			l.leftOut++
		} else {
			report(l.timeout(c))
		}
	}
	if !l.first {
		l.first = true
		b := l.ledger.read()
		for number := b.confirmed + 1; number <= b.timedOut; number++ {
			if c := &l.ledger.timeouts[number%timeoutsMax2]; c.number == number {
				found(number, c)
			}
		}
	}
	err = l.visit(func(side uint8, key *key2, r *pending2) error {
		switch {
		case !isOpen2(r) || r.Seal == 0:
		case since(now, r.FirstNs) <= limit:
			count(&swept, side)
		default:
			c := claimed2{side: uint64(side), limitNs: uint64(limit), key: *key, pending: *r}
			claimed, err := l.claimRequest(&c)
			if claimed && !c.halfOpen() {
				found(l.ledger.read().timedOut, &c)
			}
			return err
		}
		return nil
	})
	return swept, err
}

func (c *claimed2) halfOpen() bool { return c.side == SideServer && c.key.Kind == kindTCP }

// claimRequest turns an open request into one that has timed out, unless it has been
// answered meanwhile. What it is about to do is in the ledger before, what it did after.
func (l *layout2) claimRequest(c *claimed2) (bool, error) {
	current, ok := l.find(uint8(c.side), &c.key)
	if !ok || current.FirstNs != c.pending.FirstNs || !isOpen2(&current) {
		return false, nil
	}
	c.pending = current
	if c.key.Kind == kindDNS && l.questions.Lookup(&c.key, &c.question) != nil {
		c.question = question2{}
	}
	b := l.ledger.read()
	l.ledger.intent = *c
	atomic.StoreUint64(&l.ledger.intent.number, b.timedOut+b.halfOpen+1)
	overdue := struct {
		key           key2
		firstNs, side uint64
	}{c.key, c.pending.FirstNs, c.side}
	frame := append(make([]byte, etherHeader), bytesOf(&overdue)...)
	if _, err := l.claim.Run(&ebpf.RunOptions{Data: frame}); err != nil {
		return false, fmt.Errorf("claim an open request of layout 2: %w", err)
	}
	return l.resolve(), nil
}

// resolve finishes the claim that was intended last, and returns whether it was granted.
func (l *layout2) resolve() bool {
	b, c := l.ledger.read(), &l.ledger.intent
	if c.number != b.timedOut+b.halfOpen+1 {
		return false
	}
	current, ok := l.find(uint8(c.side), &c.key)
	if !ok || current.FirstNs != c.pending.FirstNs || current.State != stateReported2 {
		atomic.StoreUint64(&c.number, 0)
		return false
	}
	if c.halfOpen() {
		l.ledger.change(func(b *books2) { b.halfOpen++ })
		return true
	}
	number := b.timedOut + 1
	slot := &l.ledger.timeouts[number%timeoutsMax2]
	*slot = *c
	slot.number = number
	l.ledger.change(func(b *books2) {
		b.timedOut = number
		b.confirmed = max(b.confirmed, number-min(number, timeoutsMax2))
	})
	return true
}

// lossTold is how much of what the ring had no room for has been reported.
func (l *layout2) lossTold() (uint64, error) {
	n, err := sumOf(l.counters, lossTold2)
	if err != nil {
		return 0, fmt.Errorf("layout 2: %w", err)
	}
	return n, nil
}

// raiseLossTold notes how much of what the ring had no room for has been reported.
func (l *layout2) raiseLossTold(to uint64) error {
	var perCPU []uint64
	if err := l.counters.Lookup(uint32(lossTold2), &perCPU); err != nil {
		return fmt.Errorf("read a counter of layout 2: %w", err)
	}
	now, err := l.lossTold()
	if err != nil || now >= to {
		return err
	}
	perCPU[0] += to - now
	if err := l.counters.Update(uint32(lossTold2), perCPU, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("write a counter of layout 2: %w", err)
	}
	return nil
}

// record is a record of layout 2 as our programs would have written it; valid until the
// next call. One that is cut short stays so.
func (l *layout2) record(raw []byte) []byte {
	if len(raw) < int(unsafe.Sizeof(record2{})) {
		return raw
	}
	from := (*record2)(unsafe.Pointer(&raw[0]))
	l.buffer = [len(l.buffer)]byte{}
	d := (*kernelFlatDnsRecord)(unsafe.Pointer(&l.buffer[0]))
	d.Record = kernelFlatRecord{
		Sequence: from.Sequence, EndNs: from.EndNs, DurationNs: from.DurationNs, RttNs: from.RttNs, ClientRttNs: from.ClientRttNs,
		Cgroup: from.Cgroup, SourcePort: from.SourcePort, DestinationPort: from.DestinationPort, Vlan: from.VLAN,
		Ifindex: from.Ifindex, Id: from.ID, Repeats: from.Repeats, Uid: from.UID, Pid: from.PID, Flags: uint32(from.Flags),
		Comm: from.Comm, Kind: from.Kind, Side: from.Side, Result: from.Result, Ttl: from.TTL, Rcode: uint16(from.RCode),
		IcmpType: from.ICMPType, IcmpCode: from.ICMPCode,
	}
	d.Record.Source.Bytes, d.Record.Destination.Bytes = from.Source, from.Destination
	if from.Kind != kindDNS {
		return l.buffer[:unsafe.Sizeof(d.Record)]
	}
	setQuestion(d, raw[unsafe.Sizeof(*from):], int(from.QuestionLength))
	return l.buffer[:]
}

// setQuestion takes the question from what layout 2 has of it, which may go on behind it.
func setQuestion(d *kernelFlatDnsRecord, from []byte, length int) {
	question := from[:min(length, len(from))]
	if name := nameLength(question); name > 0 {
		question = question[:min(name+4, len(question))]
	}
	d.Record.QuestionLength = uint16(copy(d.Question[:], question))
}

// timeout is a record of a timeout; valid until the next call. Its event is known by its
// request, as it was by layout 2.
func (l *layout2) timeout(c *claimed2) []byte {
	l.buffer = [len(l.buffer)]byte{}
	d := (*kernelFlatDnsRecord)(unsafe.Pointer(&l.buffer[0]))
	k, r := &c.key, &c.pending
	id := fnv.New64a()
	id.Write(bytesOf(k))
	id.Write(bytesOf(&r.FirstNs))
	d.Record = kernelFlatRecord{
		EndNs: r.FirstNs + c.limitNs, DurationNs: c.limitNs, Cgroup: r.Cgroup, SourcePort: k.LocalPort, DestinationPort: k.RemotePort,
		Vlan: r.VLAN, Ifindex: r.Ifindex, Id: k.ID, Repeats: r.Repeats, Uid: r.UID, Pid: r.PID, Flags: uint32(r.Flags), Comm: r.Comm,
		Kind: uint8(k.Kind), Side: uint8(c.side), Result: resultTimeout2, RequestId: id.Sum64(),
	}
	d.Record.Source.Bytes, d.Record.Destination.Bytes = k.Local, k.Remote
	if c.side == SideServer {
		d.Record.Source, d.Record.Destination = d.Record.Destination, d.Record.Source
		d.Record.SourcePort, d.Record.DestinationPort = k.RemotePort, k.LocalPort
		d.Record.Ttl, d.Record.Comm = r.TTL, [2]uint64{}
	}
	if k.Kind != kindDNS {
		return l.buffer[:unsafe.Sizeof(d.Record)]
	}
	setQuestion(d, c.question.Question[:], int(c.question.Length))
	return l.buffer[:]
}
