package bpf

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Ahead tells which programs of others see the packets of a measured interface
// before ours do on the same hook: each can swallow them, so that they are not
// measured. The words are for people and say how to find the program. What runs
// before the hooks are reached, such as XDP, is not among them.
func (a *Attacher) Ahead(index int) (ahead []string, err error) {
	for _, d := range directions {
		var found []string
		switch a.Mode(index) {
		case TCX:
			found, err = a.aheadOfLink(index, d)
		case Clsact:
			found, err = a.aheadOfFilter(index, d)
		}
		if err != nil {
			return nil, fmt.Errorf("find out what is ahead of us on %s of interface %d: %w", d, index, err)
		}
		for _, f := range found {
			ahead = append(ahead, string(d)+": "+f)
		}
	}
	return ahead, nil
}

// aheadOfLink tells of the programs that stand before ours in the tcx chain.
func (a *Attacher) aheadOfLink(index int, d direction) (ahead []string, err error) {
	l, err := link.LoadPinnedLink(a.linkPath(index, d), nil)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	own, err := l.Info()
	if err != nil {
		return nil, err
	}
	return othersInChain(index, d, own.ID)
}

// othersInChain lists the tcx programs of others that stand before a link of ours, which
// may be none.
func othersInChain(index int, d direction, own link.ID) (others []string, err error) {
	chain, err := tcxChain(index, d)
	if err != nil {
		return nil, err
	}
	for _, p := range chain {
		if id, ok := p.LinkID(); ok && id == own {
			break
		}
		if !isFlatd(p) {
			others = append(others, fmt.Sprintf("tcx program %d (`bpftool prog show id %d`)", p.ID, p.ID))
		}
	}
	return others, nil
}

// isFlatd reports whether a program is one of flatd's, perhaps of another layout. It
// swallows nothing.
func isFlatd(p link.AttachedProgram) bool {
	program, err := ebpf.NewProgramFromID(p.ID)
	if err != nil {
		return false
	}
	defer program.Close()
	info, err := program.Info()
	return err == nil && slices.Contains(slices.Concat(l3Programs, basicPrograms), info.Name)
}

// aheadOfFilter tells of the filters that stand before ours, and of the tcx
// programs, which the kernel runs before any filter.
func (a *Attacher) aheadOfFilter(index int, d direction) (ahead []string, err error) {
	if ahead, err = othersInChain(index, d, 0); err != nil {
		return nil, err
	}
	filters, err := listFilters(index, d)
	if err != nil {
		return nil, err
	}
	for _, f := range filters { // in the order in which they run
		attrs := f.Attrs()
		if attrs.Chain != nil && *attrs.Chain != 0 {
			continue
		}
		if name, ok := filterName(f); ok && strings.HasPrefix(name, clsactPrefix) {
			if attrs.Handle == a.clsact.handle {
				break
			}
			continue // another daemon's, which swallows nothing
		}
		// A filter such as u32 is listed once for each of its parts.
		if text := describeFilter(f); !slices.Contains(ahead, text) {
			ahead = append(ahead, text)
		}
	}
	return ahead, nil
}

// tcxChain lists what is attached to a hook of this namespace's interface; on
// a kernel without tcx that is nothing.
func tcxChain(index int, d direction) ([]link.AttachedProgram, error) {
	found, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: d.tcx()})
	// Before Linux 6.6 the kernel does not know what is asked for.
	if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, explain(fmt.Errorf("list the tcx programs: %w", err))
	}
	return found.Programs, nil
}

func describeFilter(f netlink.Filter) string {
	kind := f.Type()
	if name, ok := filterName(f); ok && name != "" {
		kind += fmt.Sprintf(" %q", name)
	}
	return fmt.Sprintf("tc filter of priority %d, %s (`tc filter show`)", f.Attrs().Priority, kind)
}

func filterName(f netlink.Filter) (string, bool) {
	b, ok := f.(*netlink.BpfFilter)
	if !ok {
		return "", false
	}
	return b.Name, true
}
