package links

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// probes are addresses by whose routes the default ones are found: in each part that a
// default route may be split into, 0.0.0.0/1 and 128.0.0.0/1, 2000::/4 and 3000::/4. There are
// two of each, for one may have a route that is more specific.
var probes = map[int][]net.IP{
	netlink.FAMILY_V4: {net.IPv4(45, 67, 89, 101), net.IPv4(112, 98, 76, 54), net.IPv4(163, 97, 31, 7), net.IPv4(201, 53, 11, 89)},
	netlink.FAMILY_V6: {net.ParseIP("2607:b5f1::65"), net.ParseIP("2a0f:85d7::97"), net.ParseIP("3001:2f3::31"), net.ParseIP("3ffe:97b::89")},
}

// partMax is the longest prefix of such a part.
var partMax = map[int]int{netlink.FAMILY_V4: 1, netlink.FAMILY_V6: 4}

// lookupsMax bounds how many ways there are to look up a route, where there are many rules.
const lookupsMax = 64

// defaultInterfaces lists the interfaces by which the kernel sends what has no route that is
// more specific. It asks the kernel, and does not read its tables: a router's are long, and
// rules, VRFs and nexthop objects decide as well.
func defaultInterfaces(devices []netlink.Link) (map[int]bool, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("look up routes: %w", err)
	}
	defer handle.Close()
	indexes := make(map[int]bool)
	for family, destinations := range probes {
		lookups, err := lookupsOf(handle, family, devices)
		if err != nil {
			return nil, err
		}
		for i := range lookups {
			for _, to := range destinations {
				addNexthops(indexes, handle, family, to, lookups[i])
			}
		}
	}
	return indexes, nil
}

// lookupsOf are the ways to look up a route: as most packets are, and as those that rules
// treat in another way, by their mark, their source or their user, and those in a VRF.
func lookupsOf(handle *netlink.Handle, family int, devices []netlink.Link) ([]netlink.RouteGetOptions, error) {
	lookups := []netlink.RouteGetOptions{{}}
	for _, d := range devices {
		if d.Type() == "vrf" {
			lookups = append(lookups, netlink.RouteGetOptions{OifIndex: d.Attrs().Index})
		}
	}
	rules, err := consistent(func() ([]netlink.Rule, error) { return handle.RuleList(family) })
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return lookups, nil // a kernel without rules, or without IPv6
	}
	if err != nil {
		return nil, fmt.Errorf("list the rules of routing: %w", err)
	}
	addresses, err := consistent(func() ([]netlink.Addr, error) { return handle.AddrList(nil, family) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, r := range rules {
		l := netlink.RouteGetOptions{Mark: r.Mark}
		if r.UIDRange != nil {
			l.UID = &r.UIDRange.Start
		}
		if r.Src != nil {
			for _, a := range addresses {
				if r.Src.Contains(a.IP) {
					l.SrcAddr = a.IP
					break
				}
			}
		}
		if (l.Mark != 0 || l.UID != nil || l.SrcAddr != nil) && len(lookups) < lookupsMax {
			lookups = append(lookups, l)
		}
	}
	return lookups, nil
}

// addNexthops adds the interfaces of the default route to a destination, if there is one.
func addNexthops(indexes map[int]bool, handle *netlink.Handle, family int, to net.IP, lookup netlink.RouteGetOptions) {
	lookup.FIBMatch = true
	found, err := handle.RouteGetWithOptions(to, &lookup)
	if err != nil {
		return // there is no route
	}
	known := false
	for _, r := range found {
		if r.Dst != nil {
			if bits, _ := r.Dst.Mask.Size(); bits > partMax[family] {
				return // one that is more specific
			}
		}
		for _, index := range nexthops(r) {
			indexes[index], known = true, true
		}
	}
	if known {
		return
	}
	// Of a nexthop object the kernel may say nothing but the number (nexthop_compat_mode).
	lookup.FIBMatch = false
	if found, err = handle.RouteGetWithOptions(to, &lookup); err != nil {
		return
	}
	for _, r := range found {
		for _, index := range nexthops(r) {
			indexes[index] = true
		}
	}
}

func nexthops(r netlink.Route) (indexes []int) {
	if r.LinkIndex > 0 {
		indexes = append(indexes, r.LinkIndex)
	}
	for _, hop := range r.MultiPath {
		indexes = append(indexes, hop.LinkIndex)
	}
	return indexes
}
