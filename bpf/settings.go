package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
)

// Bounds of what the programs can be told (settings.h, maps.h).
const (
	MaxPortRanges = len(kernelFlatOptions{}.PortRanges)
	MaxDNSPorts   = len(kernelFlatOptions{}.DnsPorts)
	MaxNets       = 1024 // half of flat_nets: a reload holds old and new at once
)

// Settings tell the programs what to measure. The zero value measures
// everything.
type Settings struct {
	SkipKinds   []uint8 // enum flat_kind
	SkipSides   []uint8 // enum flat_side
	SkipResults []Result
	UDPIdle     time.Duration
	Timeout     time.Duration // as for Sweep
	MinDuration time.Duration
	Sample      uint32 // report one success in this many
	MatchHost   bool   // answers may arrive on another interface
	DNSPorts    []uint16
	Ports       []PortRange // of the responder; none means all
	Remote      Nets        // the peer's address
	Local       Nets        // this host's address
}

// Nets say which addresses are measured; the longest prefix decides. With any
// Include, all others are left out.
type Nets struct{ Include, Exclude []netip.Prefix }

func (n Nets) all() int { return len(n.Include) + len(n.Exclude) }

// Result is how an exchange ended: enum flat_result, or DNS_RESULT_BIT + response code
// for a DNS answer.
type Result uint8

// RCodeLast is the response code that stands for itself and all beyond it (settings.h).
const RCodeLast = 47

// DNSResult is the Result of a DNS answer with this response code.
func DNSResult(rcode uint16) Result { return Result(16 + min(rcode, RCodeLast)) }

// PortRange has both its ends included.
type PortRange struct{ First, Last uint16 }

// String is the range as the configuration has it: "443" or "8000-8999".
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

const (
	remoteNets   = 1 << 1 // SETTING_REMOTE_NETS
	localNets    = 1 << 2 // SETTING_LOCAL_NETS
	remoteListed = 1 << 3 // SETTING_REMOTE_LISTED
	localListed  = 1 << 4 // SETTING_LOCAL_LISTED

	endRemote = uint32(0) // END_REMOTE
	endLocal  = uint32(1) // END_LOCAL

	netInclude = uint32(1) // NET_INCLUDE
	netExclude = uint32(2) // NET_EXCLUDE
)

// Apply puts settings into force, without losing an open exchange. The
// prefixes of the next generation are written beside those in force, then one
// update of the options switches over.
func (s *State) Apply(settings Settings) error {
	options, err := settings.options()
	if err != nil {
		return err
	}
	options.Generation = s.options.Generation + 1
	if err := s.clearNets(func(generation uint32) bool { return generation != s.options.Generation }); err != nil {
		return err
	}
	if err := s.addNets(options.Generation, settings); err != nil {
		return err
	}
	if err := s.maps.FlatSettings.Update(uint32(0), options, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	s.options = options
	s.shared.setFlows(settings.UDPIdle, settings.MatchHost)
	return s.clearNets(func(generation uint32) bool { return generation != options.Generation })
}

// RenewLease lets the programs work until the given time of CLOCK_BOOTTIME,
// in nanoseconds; 0 means for ever.
func (s *State) RenewLease(until uint64) { atomic.StoreUint64(&s.shared.LeaseUntilNs, until) }

// Lease is until when the programs work, as RenewLease has it.
func (s *State) Lease() uint64 { return atomic.LoadUint64(&s.shared.LeaseUntilNs) }

func (settings Settings) options() (kernelFlatOptions, error) {
	o := kernelFlatOptions{
		TimeoutNs:     uint64(settings.Timeout),
		MinDurationNs: uint64(settings.MinDuration),
		Sample:        settings.Sample,
	}
	if len(settings.DNSPorts) > MaxDNSPorts {
		return o, fmt.Errorf("%d DNS ports: at most %d", len(settings.DNSPorts), MaxDNSPorts)
	}
	if len(settings.Ports) > MaxPortRanges {
		return o, fmt.Errorf("%d port ranges: at most %d", len(settings.Ports), MaxPortRanges)
	}
	if n := settings.Remote.all() + settings.Local.all(); n > MaxNets {
		return o, fmt.Errorf("%d prefixes to include and exclude: at most %d", n, MaxNets)
	}
	o.Flags |= settings.Remote.flags(remoteNets, remoteListed) | settings.Local.flags(localNets, localListed)
	for _, k := range settings.SkipKinds {
		o.SkipKinds |= 1 << k
	}
	for _, side := range settings.SkipSides {
		o.SkipSides |= 1 << side
	}
	for _, r := range settings.SkipResults {
		o.SkipResults |= 1 << r
	}
	for i, p := range settings.DNSPorts {
		o.DnsPorts[i] = networkOrder(p)
	}
	for i, r := range settings.Ports {
		o.PortRanges[i].First = r.First
		o.PortRanges[i].Last = r.Last
	}
	o.PortRangesCount = uint32(len(settings.Ports))
	return o, nil
}

// networkOrder returns the value whose bytes in memory are port, big endian.
func networkOrder(port uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, port))
}

func (n Nets) flags(any, listed uint32) (flags uint32) {
	if n.all() > 0 {
		flags |= any
	}
	if len(n.Include) > 0 {
		flags |= listed
	}
	return flags
}

func (s *State) addNets(generation uint32, settings Settings) error {
	add := func(end uint32, prefixes []netip.Prefix, verdict uint32) error {
		for _, p := range prefixes {
			if err := s.maps.FlatNets.Update(netKey(generation, end, p), verdict, ebpf.UpdateAny); err != nil {
				return fmt.Errorf("add prefix %s to the filter: %w", p, err)
			}
		}
		return nil
	}
	return errors.Join(
		add(endRemote, settings.Remote.Include, netInclude), add(endRemote, settings.Remote.Exclude, netExclude),
		add(endLocal, settings.Local.Include, netInclude), add(endLocal, settings.Local.Exclude, netExclude))
}

func netKey(generation, end uint32, p netip.Prefix) kernelFlatNet {
	key := kernelFlatNet{PrefixBits: 32 + uint32(p.Bits()), Table: generation*4 + end*2}
	if p.Addr().Is4() {
		key.PrefixBits += 96
	} else {
		key.Table++
	}
	key.Addr.Bytes = p.Addr().As16()
	return key
}

func (s *State) clearNets(stale func(generation uint32) bool) error {
	return deleteKeys[kernelFlatNet, uint32](s.maps.FlatNets, "the filter's prefixes",
		func(key kernelFlatNet) bool { return stale(key.Table / 4) })
}

// deleteKeys removes the keys of m that gone accepts. It lists them first: an iteration
// begins again where the key that it stands on is removed.
func deleteKeys[K, V any](m *ebpf.Map, what string, gone func(K) bool) error {
	var key K
	var value V
	var keys []K
	entries := m.Iterate()
	for entries.Next(&key, &value) {
		if gone(key) {
			keys = append(keys, key)
		}
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("list %s: %w", what, err)
	}
	for _, key := range keys {
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove from %s: %w", what, err)
		}
	}
	return nil
}
