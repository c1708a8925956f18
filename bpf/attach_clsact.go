package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What makes a filter ours: priority, handle and name together. The qdisc is
// never ours: whoever made it, others may use it by now.
const (
	clsactPriority = 10
	clsactPrefix   = "flatd_" // name: flatd_ingress, flatd_egress
)

// clsact knows the filters of one pin path and layout, by their handle.
type clsact struct{ handle uint32 }

func clsactParent(d direction) uint32 {
	if d == ingress {
		return netlink.HANDLE_MIN_INGRESS
	}
	return netlink.HANDLE_MIN_EGRESS
}

func listFilters(index int, d direction) ([]netlink.Filter, error) {
	return netlink.FilterList(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: index}}, clsactParent(d))
}

// attachClsact adds our filters to the interface's clsact qdisc, and that
// qdisc if there is none.
func (a *Attacher) attachClsact(iface Interface) (changed bool, err error) {
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: iface.Index,
		Handle:    netlink.MakeHandle(0xffff, 0),
		Parent:    netlink.HANDLE_CLSACT,
	}}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return false, explain(fmt.Errorf("add the clsact qdisc: %w", err))
	}
	for _, d := range directions {
		program := a.program(iface, d)
		current, err := a.clsact.find(iface.Index, d)
		if err != nil {
			return changed, err
		}
		if current != nil && sameProgram(program, ebpf.ProgramID(current.Id)) {
			continue
		}
		filter := &netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{
				LinkIndex: iface.Index,
				Parent:    clsactParent(d),
				Priority:  clsactPriority,
				Handle:    a.clsact.handle,
				Protocol:  unix.ETH_P_ALL,
			},
			Fd:           program.FD(),
			Name:         clsactPrefix + string(d),
			DirectAction: true,
		}
		if current == nil {
			a.state.shared.setAttaching(iface.Index)
		}
		if err := netlink.FilterReplace(filter); err != nil {
			return changed, explain(fmt.Errorf("add the %s filter: %w", d, err))
		}
		changed = true
		if current == nil {
			a.state.Requests.blind.interfaceUntil(iface.Index, BootTime())
		}
	}
	return changed, nil
}

// find returns our filter, nil if there is none, or an error if somebody
// else's stands in its place.
func (c clsact) find(index int, d direction) (*netlink.BpfFilter, error) {
	filters, err := listFilters(index, d)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) {
		return nil, nil // no clsact qdisc, no such interface
	}
	if err != nil {
		return nil, fmt.Errorf("list %s filters: %w", d, err)
	}
	for _, f := range filters {
		attrs := f.Attrs()
		if attrs.Priority != clsactPriority || attrs.Chain != nil && *attrs.Chain != 0 {
			continue
		}
		bpf, ok := f.(*netlink.BpfFilter)
		if ok && attrs.Handle == c.handle && bpf.Name == clsactPrefix+string(d) {
			return bpf, nil
		}
		// Filters of one priority share kind and protocol, but not the handle.
		if !ok || attrs.Protocol != unix.ETH_P_ALL || attrs.Handle == c.handle {
			return nil, fmt.Errorf("a foreign %s filter (%s, handle %#x) is in the way at our priority %d; see `tc filter show`", d, f.Type(), attrs.Handle, clsactPriority)
		}
	}
	return nil, nil
}

// detach removes our filters and nothing else.
func (c clsact) detach(index int) error {
	var errs []error
	for _, d := range directions {
		filter, err := c.find(index, d)
		if err != nil || filter == nil {
			continue // not ours
		}
		if err := netlink.FilterDel(filter); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove the %s filter: %w", d, err))
		}
	}
	return errors.Join(errs...)
}

// interfaces lists the interfaces that carry a filter of ours.
func (c clsact) interfaces() ([]int, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var indexes []int
	for _, l := range links {
		index := l.Attrs().Index
		for _, d := range directions {
			if f, err := c.find(index, d); err == nil && f != nil {
				indexes = append(indexes, index)
				break
			}
		}
	}
	return indexes, nil
}
