package tshark

import "net/netip"

// Hosts divides the addresses of a capture in two: those of the host that is
// measured, and all others.
type Hosts map[netip.Addr]bool

// Divide finds out whose capture it may be: the first to speak is the host, and
// an address that talks to the host's peers is the host's too, so that each
// packet goes out or comes in.
func Divide(packets []Packet) Hosts {
	local := make(Hosts)
	for i := range packets {
		p := &packets[i]
		if !p.Source.IsValid() || p.Group() {
			continue
		}
		from, known := local[p.Source]
		to, knownTo := local[p.Destination]
		switch {
		case !known && !knownTo:
			local[p.Source], local[p.Destination] = true, p.Source == p.Destination
		case !known:
			local[p.Source] = !to
		case !knownTo:
			local[p.Destination] = !from
		}
	}
	return local
}

// Others is the same capture from the other end.
func (h Hosts) Others() Hosts {
	others := make(Hosts, len(h))
	for addr, local := range h {
		others[addr] = !local
	}
	return others
}

// Ways says where the host sees the packet: going out, coming in, or first the
// one and then the other if it is for itself. What does not fit is not seen at
// all: packets on a line between three hosts, and those of a port to itself, of
// which nobody can tell request from answer.
func (h Hosts) Ways(p *Packet) (out []bool) {
	switch {
	case !p.Source.IsValid(): // not IP
		return []bool{false}
	case p.Source == p.Destination && p.toItself():
		return nil
	case p.Source == p.Destination:
		return []bool{true, false}
	case p.Group():
		return []bool{h[p.Source]}
	case h[p.Source] == h[p.Destination]:
		return nil
	}
	return []bool{h[p.Source]}
}

func (p *Packet) toItself() bool {
	for _, transport := range []string{"tcp", "udp"} {
		if p.has(transport+".srcport", 0) && p.number(transport+".srcport", 0) == p.number(transport+".dstport", 0) {
			return true
		}
	}
	return false
}
