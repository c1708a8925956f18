// Package links keeps the programs on the interfaces that the configuration names.
package links

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/flatd/flatd/bpf"
	"github.com/flatd/flatd/daemon/config"
	"github.com/flatd/flatd/flows"
)

// Events takes what happens to interfaces.
type Events interface {
	Status(action flows.Action, iface flows.Interface, message string)
	SetNames(map[int]string)
}

// Keeper keeps the programs on the interfaces that the configuration asks for,
// while interfaces come, go and change their names. Whatever happens leads to
// the same step: compare the desired interfaces with those that are attached, and
// attach and detach the difference. Any goroutine may call Configure, Ahead, Failing
// and Beat; all else is for the goroutine of Run.
type Keeper struct {
	programs *bpf.Attacher
	events   Events
	log      *slog.Logger

	config  atomic.Pointer[config.Config]
	changed chan chan struct{} // config is new; close what comes when it is in force
	Ready   chan struct{}      // closed when the interfaces there are have been attached
	ended   chan struct{}      // closed when Run returns
	beat    atomic.Int64       // unix seconds of the last reconciliation
	failing atomic.Pointer[map[string]string]

	names map[int]string // also of interfaces that have gone
	bare  bool           // nothing to measure
	first bool           // the first reconciliation, which attaches much

	noRoute bool // "auto" finds nothing

	every   time.Duration
	putBack map[int]time.Time                // when programs were, by interface
	ahead   atomic.Pointer[map[int][]string] // what others have ahead of ours, by interface
}

const (
	// ReconcileEvery is how long it takes at most until what nobody reported is noticed.
	ReconcileEvery = 30 * time.Second
	// Interfaces come and go in flocks; their changes are dealt with together.
	settleTime    = 50 * time.Millisecond
	settleTimeMax = 500 * time.Millisecond
	namesMax      = 4096
)

// New takes how often to reconcile when nothing has changed, 0 for the
// default.
func New(programs *bpf.Attacher, events Events, c config.Config, every time.Duration, log *slog.Logger) *Keeper {
	if every == 0 {
		every = ReconcileEvery
	}
	l := &Keeper{
		programs: programs, events: events, log: log, first: true, every: every,
		changed: make(chan chan struct{}), Ready: make(chan struct{}), ended: make(chan struct{}),
		names: make(map[int]string), putBack: make(map[int]time.Time),
	}
	l.config.Store(&c)
	l.failing.Store(&map[string]string{})
	l.ahead.Store(&map[int][]string{})
	return l
}

// Configure puts c into force and returns when the interfaces are as it says,
// as far as they can be, or ctx or Run ends.
func (l *Keeper) Configure(ctx context.Context, c config.Config) {
	l.config.Store(&c)
	done := make(chan struct{})
	select {
	case l.changed <- done:
	case <-ctx.Done():
		return
	case <-l.ended:
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	case <-l.ended:
	}
}

// Run reconciles at first, whenever the kernel reports a change, and from time
// to time, until ctx ends. The subscription comes first, so that nothing is
// missed in between. It is called once.
func (l *Keeper) Run(ctx context.Context) error {
	defer close(l.ended)
	kernel, err := subscribe()
	if err != nil {
		return err
	}
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return kernel.run(ctx) })
	tasks.Go(func() error { l.watch(ctx, kernel.C); return nil })
	return tasks.Wait()
}

func (l *Keeper) watch(ctx context.Context, changes <-chan struct{}) {
	tick := time.NewTicker(l.every)
	defer tick.Stop()
	var asked chan struct{} // whoever waits for the next reconciliation
	thorough := true
	for {
		began := time.Now()
		if err := l.reconcile(thorough); err != nil {
			l.log.Warn("interfaces could not be listed, trying again", "error", err)
		}
		took := time.Since(began)
		if asked != nil {
			close(asked)
			asked = nil
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			thorough = true
		case asked = <-l.changed:
			thorough = true
		case <-changes:
			thorough = false
			settle(ctx, took)
		}
	}
}

// settle waits for the changes that follow one another closely, and longer if
// the last reconciliation took long: at least half of the time is for others.
func settle(ctx context.Context, took time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(min(max(settleTime, took), settleTimeMax)):
	}
}

// reconcile attaches what is wanted, puts back what somebody removed, and
// detaches what is wanted no longer. Unless it is thorough, it leaves alone where
// it has put something back a short time ago: two that put themselves back would
// keep each other busy.
func (l *Keeper) reconcile(thorough bool) error {
	c := l.config.Load()
	devices, err := listDevices(slices.Contains(c.Interfaces, "auto"))
	if err != nil {
		return err
	}
	if thorough {
		clear(l.putBack)
	}
	l.learnNames(devices)
	l.programs.SetTranslating(translating(devices))
	l.programs.SetMode(bpf.Mode(c.Attach))
	wanted := desired(devices, c.Interfaces, c.Exclude)
	l.detachOthers(wanted)
	failing := make(map[string]string)
	l.attach(wanted, failing)
	for _, name := range absent(devices, c.Interfaces) {
		l.fail(failing, name, "there is no such interface yet")
	}
	l.failing.Store(&failing)
	l.lookAhead()
	l.reportUnmet(c, devices, wanted)
	l.beat.Store(time.Now().Unix())
	if l.first {
		l.first = false
		close(l.Ready)
	}
	return nil
}

// Ahead are the programs of others that see packets before ours do, by interface.
func (l *Keeper) Ahead() map[int][]string { return *l.ahead.Load() }

// Failing says why interfaces that should be measured are not, by their names.
func (l *Keeper) Failing() map[string]string { return *l.failing.Load() }

// Beat is when interfaces were last reconciled.
func (l *Keeper) Beat() time.Time { return time.Unix(l.beat.Load(), 0) }

// LearnNames reports the names of the interfaces. Not while Run is at work.
func (l *Keeper) LearnNames() {
	if devices, err := listDevices(false); err == nil {
		l.learnNames(devices)
	}
}

func (l *Keeper) learnNames(devices []device) {
	if len(l.names) > namesMax {
		clear(l.names)
	}
	for _, d := range devices {
		l.names[d.Index] = d.Name
	}
	l.events.SetNames(maps.Clone(l.names))
}

// detachOthers also finds what an earlier daemon attached. Interfaces that have
// gone took their programs with them, but their pins remain.
func (l *Keeper) detachOthers(wanted []device) {
	var others []int
	if l.first {
		var err error
		if others, err = l.programs.Leftovers(); err != nil {
			l.log.Warn("programs of an earlier flatd could not be listed", "error", err)
		}
	}
	for _, a := range l.programs.Attachments() {
		others = append(others, a.Index)
	}
	slices.Sort(others)
	for _, index := range slices.Compact(others) {
		if !slices.ContainsFunc(wanted, func(d device) bool { return d.Index == index }) {
			l.detach(index)
		}
	}
}

func (l *Keeper) detach(index int) {
	name := l.names[index]
	if err := l.programs.Detach(index); err != nil {
		l.log.Warn("interface not detached", "interface", name, "error", err)
		return
	}
	l.log.Info("detached", "interface", name, "index", index)
	l.events.Status(flows.ActionDetach, flows.Interface{Index: index, Name: name}, "no longer measuring "+name)
}

func (l *Keeper) attach(wanted []device, failing map[string]string) {
	before := make(map[int]bpf.Attachment)
	for _, a := range l.programs.Attachments() {
		before[a.Index] = a
	}
	for _, d := range wanted {
		if d.Unsupported != "" {
			l.fail(failing, d.Name, "its link type "+d.Unsupported+" is not supported")
			continue
		}
		if time.Since(l.putBack[d.Index]) < l.every {
			continue
		}
		changed, err := l.programs.Attach(d.Interface)
		if errors.Is(err, unix.ENODEV) { // gone since it was listed
			if before[d.Index].Mode != "" {
				l.detach(d.Index) // now: the attempt to attach it may have forgotten it
			}
			continue
		}
		if err != nil {
			l.fail(failing, d.Name, err.Error())
			continue
		}
		l.reportAttached(d, before[d.Index], changed)
	}
}

// reportAttached reports what is new about an interface that is attached.
func (l *Keeper) reportAttached(d device, before bpf.Attachment, changed bool) {
	iface := flows.Interface{Index: d.Index, Name: d.Name}
	renamed := before.Name != d.Name
	switch {
	case before.Mode == "", changed && renamed: // the latter is another one of the same index
		l.log.Info("measuring", "interface", d.Name, "index", d.Index, "adopted", !changed)
		l.events.Status(flows.ActionAttach, iface, "measuring "+d.Name)
	case changed && l.programs.Mode(d.Index) != before.Mode:
		l.log.Info("attached the other way", "interface", d.Name, "attach", l.programs.Mode(d.Index))
	case changed:
		l.putBack[d.Index] = time.Now()
		l.log.Warn("the programs had been removed by somebody else, put them back", "interface", d.Name)
		l.events.Status(flows.ActionAttach, iface, "measuring "+d.Name+" again: somebody had removed the programs")
	case renamed:
		l.log.Info("interface renamed", "interface", d.Name, "index", d.Index, "before", before.Name)
	}
}

// lookAhead says once what others have attached ahead of ours, and again when
// that is something else.
func (l *Keeper) lookAhead() {
	before, now := *l.ahead.Load(), make(map[int][]string)
	for _, a := range l.programs.Attachments() {
		ahead, err := l.programs.Ahead(a.Index)
		if err != nil { // gone or removed since it was attached, of which there will be news
			l.log.Debug("programs ahead unknown", "interface", a.Name, "error", err)
			continue
		}
		if len(ahead) > 0 {
			now[a.Index] = ahead
		}
		switch iface := (flows.Interface{Index: a.Index, Name: a.Name}); {
		case slices.Equal(ahead, before[a.Index]):
		case len(ahead) == 0:
			l.log.Info("nothing is ahead of flatd's programs any more", "interface", a.Name)
		default:
			list := strings.Join(ahead, "; ")
			l.log.Warn("others see the packets before flatd does, which misses those they swallow", "interface", a.Name, "ahead", list)
			l.events.Status(flows.ActionPreceded, iface, "on "+a.Name+" others see the packets before flatd does, which misses those they swallow: "+list)
		}
	}
	l.ahead.Store(&now)
}

// fail notes why an interface is not measured, and says so when it is news.
func (l *Keeper) fail(failing map[string]string, name, reason string) {
	failing[name] = reason
	if (*l.failing.Load())[name] != reason {
		l.log.Warn("interface is not measured, waiting for a change and trying again every 30 s", "interface", name, "reason", reason)
	}
}

// reportUnmet logs once what the configuration names in vain.
func (l *Keeper) reportUnmet(c *config.Config, devices, wanted []device) {
	noRoute := slices.Contains(c.Interfaces, "auto") && !slices.ContainsFunc(devices, func(d device) bool { return d.Default })
	if noRoute && !l.noRoute {
		l.log.Warn("no default route yet, so \"auto\" names no interface; waiting for one")
	}
	l.noRoute = noRoute
	bare := len(wanted) == 0
	if bare && !l.bare {
		l.log.Warn("no interface to measure, waiting for one", "interfaces", c.Interfaces, "exclude", c.Exclude)
	}
	l.bare = bare
}

// listDevices finds out about the interfaces there are; which of them hold a
// default route only if asked to, since a router's table is long.
func listDevices(routes bool) ([]device, error) {
	all, err := consistent(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var defaults map[int]bool
	if routes {
		if defaults, err = defaultInterfaces(all); err != nil {
			return nil, err
		}
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
			AltNames:  a.AltNames,
			// The packets of a VRF's ports are its own, not seen twice.
			Enslaved: a.MasterIndex != 0 && kinds[a.MasterIndex] != "vrf",
			Default:  defaults[a.Index],
			// Requests and answers of lo pass OUTPUT, where DNAT and REDIRECT are, but once.
			Translating: a.EncapType == "loopback" || l.Type() == "bridge" && passesNetfilter(a.Name),
		}
		d.L3, d.Unsupported = linkLayer(a.EncapType)
		devices = append(devices, d)
	}
	return devices, nil
}

// consistent reads a list again that has changed while it was read, which may
// lack what was there all the time. Under changes without end it gives up.
func consistent[T any](list func() ([]T, error)) (all []T, err error) {
	const tries = 10
	for range tries {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// passesNetfilter reports whether what a bridge forwards passes the netfilter hooks of IP
// (br_netfilter): then NAT is undone before the bridge's own hook sees an answer.
func passesNetfilter(bridge string) bool {
	for _, file := range []string{
		"/proc/sys/net/bridge/bridge-nf-call-iptables", "/proc/sys/net/bridge/bridge-nf-call-ip6tables",
		"/sys/class/net/" + bridge + "/bridge/nf_call_iptables", "/sys/class/net/" + bridge + "/bridge/nf_call_ip6tables",
	} {
		if value, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(value)) == "1" {
			return true
		}
	}
	return false
}

// translating are the indexes of those devices between whose hooks addresses are
// translated.
func translating(devices []device) (indexes []int) {
	for _, d := range devices {
		if d.Translating {
			indexes = append(indexes, d.Index)
		}
	}
	return indexes
}

// linkLayer derives from the ARPHRD type, as netlink names it, whether packets begin
// with the IP header (l3).
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
