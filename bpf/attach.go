package bpf

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Mode says how programs are attached.
type Mode string

// The modes. Auto is tcx where the kernel has it (Linux 6.6), else clsact.
const (
	Auto   Mode = "auto"
	TCX    Mode = "tcx"
	Clsact Mode = "clsact"
)

// ErrNoTCX: this kernel has no tcx hooks.
var ErrNoTCX = errors.New("this kernel has no tcx (Linux 6.6)")

// Interface is where programs are to be attached.
type Interface struct {
	Index int
	Name  string
	L3    bool // packets begin with the IP header
}

// Attachment is an interface that is measured.
type Attachment struct {
	Interface
	Mode Mode // TCX or Clsact
}

// direction is one hook of an interface.
type direction string

const (
	ingress direction = "ingress"
	egress  direction = "egress"
)

var directions = []direction{ingress, egress}

func (d direction) tcx() ebpf.AttachType {
	if d == ingress {
		return ebpf.AttachTCXIngress
	}
	return ebpf.AttachTCXEgress
}

// Attacher attaches the programs to interfaces. What it finds in the kernel counts, not
// what it remembers. One goroutine may use it; any may call Mode and Attachments, which
// lock. It writes the programs' words by atomics, and blind of the OpenRequests has a lock.
type Attacher struct {
	state  *State
	mode   Mode
	links  string // the directory of pinned tcx links
	clsact clsact
	auto   Mode // see chooseMode

	mu       sync.Mutex
	attached map[int]Attachment
}

func (a *Attacher) program(iface Interface, d direction) *ebpf.Program {
	switch {
	case d == ingress && iface.L3:
		return a.state.programs.FlatIngressL3
	case d == ingress:
		return a.state.programs.FlatIngress
	case iface.L3:
		return a.state.programs.FlatEgressL3
	}
	return a.state.programs.FlatEgress
}

// SetMode changes how interfaces are attached from now on.
func (a *Attacher) SetMode(m Mode) { a.mode = m }

// Attach makes sure that this state's programs, and no older ones of flatd's,
// see each packet of the interface once. It may be called at any time again;
// changed says whether it had to do anything. Meanwhile no request of that interface
// is begun: with programs in one direction alone its answer would not be seen.
func (a *Attacher) Attach(iface Interface) (changed bool, err error) {
	if iface.L3 {
		if err := a.state.needL3(); err != nil {
			return false, fmt.Errorf("attach %s: %w", iface.Name, err)
		}
	}
	defer a.state.shared.setAttaching(0)
	mode, err := a.chooseMode()
	if err != nil {
		return false, fmt.Errorf("attach %s by %s: %w", iface.Name, a.mode, err)
	}
	if mode == Clsact {
		changed, err = a.attachClsact(iface)
	} else {
		changed, err = a.attachTCX(iface)
	}
	if err != nil {
		err = fmt.Errorf("attach %s by %s: %w", iface.Name, mode, err)
		return changed, errors.Join(err, a.dropHalf(iface.Index, mode))
	}
	// The other way may be left from an earlier configuration.
	if mode == TCX {
		err = a.clsact.detach(iface.Index)
	} else {
		err = a.detachTCX(iface.Index)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.attached[iface.Index] = Attachment{Interface: iface, Mode: mode}
	return changed, err
}

// dropHalf detaches an interface that has programs in one direction alone:
// there every request would seem to time out.
func (a *Attacher) dropHalf(index int, mode Mode) error {
	attached := 0
	for _, d := range directions {
		if mode == Clsact {
			if f, err := a.clsact.find(index, d); err == nil && f != nil {
				attached++
			}
		} else if _, err := os.Stat(a.linkPath(index, d)); err == nil {
			attached++
		}
	}
	if attached == len(directions) {
		return nil // older ones, which are still at work
	}
	a.mu.Lock()
	if a.attached[index].Mode == mode {
		delete(a.attached, index)
	}
	a.mu.Unlock()
	if mode == Clsact {
		return a.clsact.detach(index)
	}
	return a.detachTCX(index)
}

// SetTranslating says between which interfaces' hooks addresses are translated: by
// index, in place of those named before.
func (a *Attacher) SetTranslating(indexes []int) { a.state.shared.setTranslating(indexes) }

// Detach removes flatd's programs from an interface, which may be gone.
func (a *Attacher) Detach(index int) error {
	a.state.shared.setAttaching(index)
	defer a.state.shared.setAttaching(0)
	defer func() { a.state.Requests.blind.interfaceUntil(index, BootTime()) }()
	a.mu.Lock()
	delete(a.attached, index)
	a.mu.Unlock()
	if err := errors.Join(a.detachTCX(index), a.clsact.detach(index)); err != nil {
		return fmt.Errorf("detach interface %d: %w", index, err)
	}
	return nil
}

// Mode is how the interface is attached, "" if it is not.
func (a *Attacher) Mode(index int) Mode {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.attached[index].Mode
}

// Attachments lists the measured interfaces by index.
func (a *Attacher) Attachments() []Attachment {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.SortedFunc(maps.Values(a.attached), func(x, y Attachment) int { return x.Index - y.Index })
}

// Leftovers lists the indexes of interfaces that have, or had, programs of an
// earlier daemon with this pin path.
func (a *Attacher) Leftovers() ([]int, error) {
	pins, err := os.ReadDir(a.links)
	if err != nil {
		return nil, fmt.Errorf("list pinned links: %w", err)
	}
	indexes, err := a.clsact.interfaces()
	if err != nil {
		return nil, err
	}
	for _, pin := range pins {
		name, _, _ := strings.Cut(pin.Name(), "-")
		if index, err := strconv.Atoi(name); err == nil {
			indexes = append(indexes, index)
		}
	}
	slices.Sort(indexes)
	return slices.Compact(indexes), nil
}

// attachedAnywhere reports whether our programs have been attached before this start.
func (a *Attacher) attachedAnywhere() bool {
	indexes, err := a.Leftovers()
	return err == nil && len(indexes) > 0
}

func (a *Attacher) linkPath(index int, d direction) string {
	return filepath.Join(a.links, linkName(index, d))
}

func linkName(index int, d direction) string { return fmt.Sprintf("%d-%s", index, d) }

// attachTCX puts the programs at the head of the interface's tcx chains, by
// links that are pinned.
func (a *Attacher) attachTCX(iface Interface) (changed bool, err error) {
	for _, d := range directions {
		did, err := a.linkTCX(iface, d)
		if err != nil {
			return changed, err
		}
		changed = changed || did
	}
	return changed, nil
}

func (a *Attacher) linkTCX(iface Interface, d direction) (changed bool, err error) {
	program := a.program(iface, d)
	path := a.linkPath(iface.Index, d)
	if l, err := link.LoadPinnedLink(path, nil); err == nil {
		defer l.Close()
		switch current, err := linkedProgram(l, iface.Index, d); {
		case err != nil: // the interface it was made for is gone
			if err := unpin(path); err != nil {
				return false, fmt.Errorf("stale link: %w", err)
			}
		case sameProgram(program, current):
			return false, nil
		default:
			if err := l.Update(program); err != nil {
				return false, fmt.Errorf("put the new program in place: %w", err)
			}
			return true, nil
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return false, explain(fmt.Errorf("open pinned link %s: %w", path, err))
	} else if _, err := os.Stat(a.links); err != nil {
		return false, errVanished(a.links)
	}

	a.state.shared.setAttaching(iface.Index)
	l, err := link.AttachTCX(link.TCXOptions{Interface: iface.Index, Program: program, Attach: d.tcx(), Anchor: link.Head()})
	if err != nil {
		return false, explain(fmt.Errorf("attach to %s: %w", d, err))
	}
	defer l.Close()
	if err := l.Pin(path); err != nil {
		return false, fmt.Errorf("pin the link: %w", err)
	}
	a.state.Requests.blind.interfaceUntil(iface.Index, BootTime())
	return true, nil
}

// errVanished says that the pins have gone from under a running daemon, as they
// do with their file system. What is attached stays so until that daemon ends.
func errVanished(dir string) error {
	return fmt.Errorf("the pin directory %s has vanished: was its BPF file system unmounted, or another mounted in its place? "+
		"`systemctl restart flatd` begins anew", dir)
}

// linkedProgram returns the program of a link that is attached to index. A link
// stays with an interface that is moved to another namespace, where another may
// have come in its place, under the same index.
func linkedProgram(l link.Link, index int, d direction) (ebpf.ProgramID, error) {
	info, err := l.Info()
	if err != nil {
		return 0, err
	}
	tcx := info.TCX()
	if tcx == nil || int(tcx.Ifindex) != index {
		return 0, errors.New("not attached any more")
	}
	chain, err := tcxChain(index, d)
	if err != nil {
		return info.Program, nil // which nothing speaks against
	}
	for _, p := range chain {
		if id, ok := p.LinkID(); ok && id == info.ID {
			return info.Program, nil
		}
	}
	return 0, errors.New("attached in another namespace")
}

func sameProgram(p *ebpf.Program, id ebpf.ProgramID) bool {
	info, err := p.Info()
	if err != nil {
		return false
	}
	own, ok := info.ID()
	return ok && own == id
}

// detachTCX removes our links.
func (a *Attacher) detachTCX(index int) error {
	var errs []error
	for _, d := range directions {
		if err := unpin(a.linkPath(index, d)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// unpin removes a pin. A link it detaches at once: the kernel lets go of one
// without references only some time later.
func unpin(path string) error {
	if l, err := link.LoadPinnedLink(path, nil); err == nil {
		_ = l.Detach() // refused where the interface is gone
		l.Close()
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("unpin: %w", err)
	}
	return nil
}

// chooseMode is how to attach: the mode that is set, or what Auto comes to on this kernel.
// To find out by an attempt would pause an interface that has its programs.
func (a *Attacher) chooseMode() (Mode, error) {
	if a.mode == Clsact {
		return Clsact, nil
	}
	if a.auto == "" {
		switch err := HaveTCX(); {
		case err == nil:
			a.auto = TCX
		case errors.Is(err, ErrNoTCX):
			a.auto = Clsact
		default:
			return "", err
		}
	}
	if a.mode == TCX && a.auto == Clsact {
		return "", ErrNoTCX
	}
	return a.auto, nil
}

// HaveTCX reports whether this kernel has tcx hooks: nil, ErrNoTCX, or why that
// cannot be told.
func HaveTCX() error {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.SchedCLS,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
		License:      "Dual BSD/GPL",
	})
	if err != nil {
		return explain(fmt.Errorf("load a program: %w", err))
	}
	defer program.Close()
	// No interface has this index: a kernel with tcx looks for it in vain.
	const nowhere = 1 << 30
	_, err = link.AttachTCX(link.TCXOptions{Interface: nowhere, Program: program, Attach: ebpf.AttachTCXIngress})
	if errors.Is(err, ebpf.ErrNotSupported) {
		return ErrNoTCX
	}
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return explain(err)
}
