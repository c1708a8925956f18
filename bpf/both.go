package bpf

import (
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
)

// What programs of two layouts have both begun, because each began it while the others did
// not yet know, has a record of each. One of the two is left out.

// seenOurs is SEEN_OURS of handover.h.
const seenOurs = 1 << 63

// IsOurs reports whether a record of the ring of p is of a request that our programs
// report themselves: both have begun it.
func (p *Previous) IsOurs(record []byte) bool {
	r := recordOf(record)
	if r == nil {
		return false
	}
	if p.two != nil && p.two.isAnswer(r) {
		return true
	}
	var theirs uint64
	if p.open.shared != nil {
		theirs = atomic.LoadUint64(&p.open.shared.BothNs)
	}
	return isFromBefore(r, theirs, p.ours.shared) && began(r, p.ours.shared, p.ours.maps.FlatSeen)
}

// IsTheirs reports whether a record of our ring is of a request that the programs of p
// report themselves, from when p took over from us.
func (p *Previous) IsTheirs(record []byte) bool {
	r := recordOf(record)
	switch {
	case r == nil:
		return false
	case p.two != nil:
		return p.two.isFrom(r)
	case p.open.shared == nil || p.maps.FlatSeen == nil:
		return false
	}
	return isFromBefore(r, atomic.LoadUint64(&p.ours.shared.BothNs), p.open.shared) && began(r, p.open.shared, p.maps.FlatSeen)
}

// recordOf is what all records begin with, nil of one that is cut short.
func recordOf(record []byte) *kernelFlatRecord {
	if len(record) < int(unsafe.Sizeof(kernelFlatRecord{})) {
		return nil
	}
	return (*kernelFlatRecord)(unsafe.Pointer(&record[0]))
}

// isFromBefore reports whether others, with these words, took over from the programs of a
// record after these had begun its request. If each took over from the other, the last one
// to do so reports it, whoever reads: a daemon of either may be killed. model: BOTH_SINCE
func isFromBefore(r *kernelFlatRecord, since uint64, others *shared) bool {
	return atomic.LoadUint64(&others.BothNs) > since || r.EndNs-r.DurationNs < since
}

// began reports whether the programs that noted it in seen have begun the request of a
// record of others: before it ended. Not before it was sent, for after a roll-back the
// others are in front and see each packet first. What ended before the note is only the
// others'. model: SEEN_SINCE
func began(r *kernelFlatRecord, words *shared, seen *ebpf.Map) bool {
	since := atomic.LoadUint64(&words.BothNs)
	if since == 0 || r.EndNs < since {
		return false
	}
	side, key := keyOf(r, words)
	var value uint64
	err := seen.Lookup(seenHash(words.Seed, side, &key, 0), &value)
	return err == nil && value&seenOurs != 0 && value&^seenOurs <= r.EndNs
}

// keyOf is the key of the exchange that a record is about, for programs with these words.
func keyOf(h *kernelFlatRecord, words *shared) (side uint8, key kernelFlatKey) {
	key.Local, key.LocalPort = h.Source, h.SourcePort
	key.Remote, key.RemotePort = h.Destination, h.DestinationPort
	if h.Side == SideServer {
		key.Local, key.LocalPort, key.Remote, key.RemotePort = key.Remote, key.RemotePort, key.Local, key.LocalPort
	}
	if atomic.LoadUint32(&words.MatchHost) == 0 {
		key.Ifindex = h.Ifindex
	}
	id := uint64(0)
	switch h.Kind {
	case kindICMP:
		id = uint64(h.Id)
	case kindDNS:
		r := (*kernelFlatDnsRecord)(unsafe.Pointer(h))
		question := r.Question[:min(int(h.QuestionLength), len(r.Question))]
		id = uint64(h.Id)<<dnsIDShift | questionHash(words.Seed, question)
	}
	key.Id = uint64(h.Kind)<<kindShift | id
	return h.Side, key
}
