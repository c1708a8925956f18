package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
)

// Bounds of what the programs can be told (settings.h, maps.h).
const (
	MaxPortRanges = 16
	MaxDNSPorts   = 8
	MaxNets       = 1024 // half of flat_nets: a reload holds old and new at once
)

// Settings tell the programs what to measure. The zero value measures
// everything.
type Settings struct {
	SkipKinds   []uint8 // enum flat_kind
	SkipSides   []uint8 // enum flat_side
	UDPIdle     time.Duration
	MinDuration time.Duration
	Sample      uint32 // report one success in this many
	MatchHost   bool   // answers may arrive on another interface
	DNSPorts    []uint16
	Ports       []PortRange // of the responder; none means all
	// Include and Exclude are about the peer's address; the longest prefix
	// decides. With any Include, other peers are left out.
	Include, Exclude []netip.Prefix
}

// PortRange has both its ends included.
type PortRange struct{ First, Last uint16 }

const (
	includeListed = 1 << 0 // SETTING_INCLUDE_LISTED
	matchHost     = 1 << 1 // SETTING_MATCH_HOST

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
	options.LeaseUntilNs = s.options.LeaseUntilNs
	options.Generation = s.options.Generation + 1
	if err := s.clearNets(func(generation uint32) bool { return generation != s.options.Generation }); err != nil {
		return err
	}
	if err := s.addNets(options.Generation, settings); err != nil {
		return err
	}
	if err := s.setOptions(options); err != nil {
		return err
	}
	return s.clearNets(func(generation uint32) bool { return generation != options.Generation })
}

// RenewLease lets the programs work until the given time of CLOCK_BOOTTIME,
// in nanoseconds; 0 means for ever.
func (s *State) RenewLease(until uint64) error {
	options := s.options
	options.LeaseUntilNs = until
	return s.setOptions(options)
}

func (s *State) setOptions(o kernelFlatOptions) error {
	if err := s.maps.FlatSettings.Update(uint32(0), o, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	s.options = o
	return nil
}

func (s *State) loadOptions() error {
	if err := s.maps.FlatSettings.Lookup(uint32(0), &s.options); err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	return nil
}

func (settings Settings) options() (kernelFlatOptions, error) {
	o := kernelFlatOptions{
		UdpIdleNs:     uint64(settings.UDPIdle),
		MinDurationNs: uint64(settings.MinDuration),
		Sample:        settings.Sample,
	}
	if len(settings.DNSPorts) > MaxDNSPorts {
		return o, fmt.Errorf("%d DNS ports: at most %d", len(settings.DNSPorts), MaxDNSPorts)
	}
	if len(settings.Ports) > MaxPortRanges {
		return o, fmt.Errorf("%d port ranges: at most %d", len(settings.Ports), MaxPortRanges)
	}
	if n := len(settings.Include) + len(settings.Exclude); n > MaxNets {
		return o, fmt.Errorf("%d prefixes to include and exclude: at most %d", n, MaxNets)
	}
	if settings.MatchHost {
		o.Flags |= matchHost
	}
	if len(settings.Include) > 0 {
		o.Flags |= includeListed
	}
	for _, k := range settings.SkipKinds {
		o.SkipKinds |= 1 << k
	}
	for _, side := range settings.SkipSides {
		o.SkipSides |= 1 << side
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

func (s *State) addNets(generation uint32, settings Settings) error {
	add := func(prefixes []netip.Prefix, verdict uint32) error {
		for _, p := range prefixes {
			if err := s.maps.FlatNets.Update(netKey(generation, p), verdict, ebpf.UpdateAny); err != nil {
				return fmt.Errorf("add prefix %s to the filter: %w", p, err)
			}
		}
		return nil
	}
	return errors.Join(add(settings.Include, netInclude), add(settings.Exclude, netExclude))
}

func netKey(generation uint32, p netip.Prefix) kernelFlatNet {
	key := kernelFlatNet{PrefixBits: 32 + uint32(p.Bits()), Table: generation * 2}
	if p.Addr().Is4() {
		key.PrefixBits += 96
	} else {
		key.Table++
	}
	key.Addr.Bytes = p.Addr().As16()
	return key
}

func (s *State) clearNets(stale func(generation uint32) bool) error {
	var key kernelFlatNet
	var verdict uint32
	var gone []kernelFlatNet
	entries := s.maps.FlatNets.Iterate()
	for entries.Next(&key, &verdict) {
		if stale(key.Table / 2) {
			gone = append(gone, key)
		}
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("list the filter's prefixes: %w", err)
	}
	for _, key := range gone {
		if err := s.maps.FlatNets.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove a prefix from the filter: %w", err)
		}
	}
	return nil
}
