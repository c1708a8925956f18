package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/flows"
)

// links keeps the programs on the interfaces that the configuration asks for,
// while interfaces come, go and change their names. Whatever happens leads to
// the same step: compare the wish with what is attached, and mend.
type links struct {
	state    *bpf.State
	pipeline *pipeline
	log      *slog.Logger

	config  atomic.Pointer[Config]
	changed chan chan struct{} // config is new; close what comes when it is in force
	ready   chan struct{}      // closed when the interfaces there are have been attached
	beat    atomic.Int64       // unix seconds of the last reconciliation
	failing atomic.Pointer[map[string]string]

	names map[int]string // also of interfaces that have gone
	bare  bool           // nothing to measure
	first bool           // the first reconciliation, which attaches much

	noRoute bool // "auto" finds nothing
}

const (
	reconcileEvery = 30 * time.Second
	// Interfaces come and go in flocks; their messages are dealt with together.
	settleTime = 50 * time.Millisecond
	namesMax   = 4096
)

func newLinks(state *bpf.State, p *pipeline, c Config, log *slog.Logger) *links {
	l := &links{
		state: state, pipeline: p, log: log, first: true,
		changed: make(chan chan struct{}), ready: make(chan struct{}), names: make(map[int]string),
	}
	l.config.Store(&c)
	l.failing.Store(&map[string]string{})
	return l
}

// configure makes c the wish and returns when the interfaces are as it says,
// as far as they can be, or ctx ends.
func (l *links) configure(ctx context.Context, c Config) {
	l.config.Store(&c)
	done := make(chan struct{})
	select {
	case l.changed <- done:
	case <-ctx.Done():
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

func (l *links) run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := l.watch(ctx); err != nil {
			return err
		}
	}
	return nil
}

// watch reconciles at first and whenever the kernel reports a change, until
// ctx ends or a subscription breaks, as it does when messages were lost.
func (l *links) watch(ctx context.Context) error {
	done := make(chan struct{})
	defer close(done)
	linkUpdates := make(chan netlink.LinkUpdate, 64)
	routeUpdates := make(chan netlink.RouteUpdate, 64)
	overrun := func(err error) {
		l.log.Debug("interface messages lost, reading all anew", "error", err)
	}
	if err := netlink.LinkSubscribeWithOptions(linkUpdates, done, netlink.LinkSubscribeOptions{ErrorCallback: overrun}); err != nil {
		return fmt.Errorf("subscribe to interfaces: %w", err)
	}
	if err := netlink.RouteSubscribeWithOptions(routeUpdates, done, netlink.RouteSubscribeOptions{ErrorCallback: overrun}); err != nil {
		return fmt.Errorf("subscribe to routes: %w", err)
	}
	// The subscriptions block on a full channel until they see done.
	defer func() { go drain(linkUpdates); go drain(routeUpdates) }()

	tick := time.NewTicker(reconcileEvery)
	defer tick.Stop()
	var asked chan struct{} // whoever waits for the next reconciliation
	for {
		if err := l.reconcile(); err != nil {
			l.log.Warn("interfaces could not be listed, trying again", "error", err)
		}
		if asked != nil {
			close(asked)
			asked = nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case asked = <-l.changed:
		case _, ok := <-linkUpdates:
			if !ok {
				return nil
			}
			settle(linkUpdates)
		case _, ok := <-routeUpdates:
			if !ok {
				return nil
			}
			settle(routeUpdates)
		}
	}
}

// settle takes the updates that follow one another closely. A closed channel
// is left for the caller to find.
func settle[T any](updates <-chan T) {
	timer := time.NewTimer(settleTime)
	defer timer.Stop()
	for {
		select {
		case _, ok := <-updates:
			if !ok {
				return
			}
		case <-timer.C:
			return
		}
	}
}

func drain[T any](updates <-chan T) {
	for range updates {
	}
}

// reconcile attaches what is wanted, puts back what somebody removed, and
// detaches what is wanted no longer.
func (l *links) reconcile() error {
	config := l.config.Load()
	devices, err := listDevices()
	if err != nil {
		return err
	}
	l.learnNames(devices)
	l.state.SetMode(bpf.Mode(config.Attach))
	wanted := wish(devices, config.Interfaces, config.Exclude)
	l.detachOthers(wanted)
	failing := make(map[string]string)
	l.attach(wanted, failing)
	for _, name := range absent(devices, config.Interfaces) {
		l.fail(failing, name, "there is no such interface yet")
	}
	l.failing.Store(&failing)
	l.tellWish(config, devices, wanted)
	l.beat.Store(time.Now().Unix())
	if l.first {
		l.first = false
		close(l.ready)
	}
	return nil
}

func (l *links) learnNames(devices []device) {
	if len(l.names) > namesMax {
		clear(l.names)
	}
	names := make(map[int]string, len(devices))
	for _, d := range devices {
		l.names[d.Index] = d.Name
	}
	for index, name := range l.names {
		names[index] = name
	}
	l.pipeline.setNames(names)
}

// detachOthers also finds what an earlier daemon attached. Interfaces that have
// gone took their programs with them, but their pins remain.
func (l *links) detachOthers(wanted []device) {
	isWanted := func(index int) bool {
		return slices.ContainsFunc(wanted, func(d device) bool { return d.Index == index })
	}
	var others []int
	if l.first {
		left, err := l.state.Leftovers()
		if err != nil {
			l.log.Warn("programs of an earlier flatd could not be listed", "error", err)
		}
		others = left
	}
	for _, a := range l.state.Attachments() {
		others = append(others, a.Index)
	}
	slices.Sort(others)
	for _, index := range slices.Compact(others) {
		if isWanted(index) {
			continue
		}
		if err := l.state.Detach(index); err != nil {
			l.log.Warn("interface not detached", "interface", l.names[index], "error", err)
			continue
		}
		l.log.Info("detached", "interface", l.names[index], "index", index)
		l.pipeline.status(flows.ActionDetach, flows.Interface{Index: index, Name: l.names[index]}, "no longer measuring "+l.names[index])
	}
}

func (l *links) attach(wanted []device, failing map[string]string) {
	before := make(map[int]bpf.Mode)
	for _, a := range l.state.Attachments() {
		before[a.Index] = a.Mode
	}
	for _, d := range wanted {
		if d.Unsupported != "" {
			l.fail(failing, d.Name, "its link type "+d.Unsupported+" is not supported")
			continue
		}
		changed, err := l.state.Attach(d.Interface)
		if err != nil {
			l.fail(failing, d.Name, err.Error())
			continue
		}
		switch iface := (flows.Interface{Index: d.Index, Name: d.Name}); {
		case before[d.Index] == "":
			l.log.Info("measuring", "interface", d.Name, "index", d.Index, "adopted", !changed)
			l.pipeline.status(flows.ActionAttach, iface, "measuring "+d.Name)
		case changed && l.state.Mode(d.Index) != before[d.Index]:
			l.log.Info("attached the other way", "interface", d.Name, "attach", l.state.Mode(d.Index))
		case changed:
			l.log.Warn("the programs had been removed by somebody else, put them back", "interface", d.Name)
			l.pipeline.status(flows.ActionAttach, iface, "measuring "+d.Name+" again: somebody had removed the programs")
		}
	}
}

// fail notes why an interface is not measured, and says so when it is news.
func (l *links) fail(failing map[string]string, name, reason string) {
	failing[name] = reason
	if (*l.failing.Load())[name] != reason {
		l.log.Warn("interface is not measured, waiting for a change and trying again every 30 s", "interface", name, "reason", reason)
	}
}

// tellWish says once what the configuration names in vain.
func (l *links) tellWish(config *Config, devices, wanted []device) {
	noRoute := slices.Contains(config.Interfaces, "auto") && !slices.ContainsFunc(devices, func(d device) bool { return d.Default })
	if noRoute && !l.noRoute {
		l.log.Warn("no default route yet, so \"auto\" names no interface; waiting for one")
	}
	l.noRoute = noRoute
	bare := len(wanted) == 0
	if bare && !l.bare {
		l.log.Warn("no interface to measure, waiting for one", "interfaces", config.Interfaces, "exclude", config.Exclude)
	}
	l.bare = bare
}

func listDevices() ([]device, error) {
	all, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	defaults, err := defaultInterfaces()
	if err != nil {
		return nil, err
	}
	kinds := make(map[int]string, len(all))
	for _, l := range all {
		kinds[l.Attrs().Index] = l.Type()
	}
	devices := make([]device, 0, len(all))
	for _, l := range all {
		a := l.Attrs()
		d := device{
			Interface: bpf.Interface{Index: a.Index, Name: a.Name},
			// The packets of a VRF's ports are its own, not seen twice.
			Enslaved: a.MasterIndex != 0 && kinds[a.MasterIndex] != "vrf",
			Default:  defaults[a.Index],
		}
		d.L3, d.Unsupported = linkLayer(a.EncapType)
		devices = append(devices, d)
	}
	return devices, nil
}

// linkLayer tells from the ARPHRD type, as netlink names it, what packets begin
// with.
func linkLayer(encap string) (l3 bool, unsupported string) {
	switch encap {
	case "ether", "loopback":
		return false, ""
	case "none", "void", "ppp", "ipip", "tunnel6", "sit", "gre",
		"unknown823", "unknown519": // ARPHRD_IP6GRE, ARPHRD_RAWIP (linux/if_arp.h)
		return true, ""
	}
	return false, encap
}

// defaultInterfaces finds the interfaces with a default route of either family
// in the main table.
func defaultInterfaces() (map[int]bool, error) {
	indexes := make(map[int]bool)
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if r.Dst != nil {
				if ones, _ := r.Dst.Mask.Size(); ones != 0 {
					continue
				}
			}
			if r.LinkIndex > 0 {
				indexes[r.LinkIndex] = true
			}
			for _, hop := range r.MultiPath {
				indexes[hop.LinkIndex] = true
			}
		}
	}
	return indexes, nil
}
