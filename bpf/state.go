package bpf

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// Errors a caller acts on.
var (
	// ErrLocked: another daemon uses the pin directory.
	ErrLocked = errors.New("in use by another flatd")
	// ErrNoBPFFS: the pin path is not on a BPF file system.
	ErrNoBPFFS = errors.New("not on a BPF file system")
	// ErrExposed: the pin directory is not safe from others.
	ErrExposed = errors.New("others can write to it")
	// ErrPermission: the kernel does not let this process use BPF.
	ErrPermission = errors.New("not permitted to use BPF")
)

// Start says what Open found.
type Start string

// The three starts.
const (
	StartFresh   Start = "fresh"   // nothing was pinned
	StartAdopt   Start = "adopt"   // these very programs were at work
	StartBeside  Start = "beside"  // maps of another layout were; new ones take over from them
	StartReplace Start = "replace" // other programs, or only some, were; the maps are kept
)

// State is flatd's state in the kernel, which outlives the process:
//
//	<pin path>/                       locked by the daemon that uses it
//	    flat_sequence                 the number of the latest record, of all layouts
//	    v3-flat/flat_ours …           maps
//	    v3-flat/flat_ingress …        programs
//	    v3-flat/links/4-ingress       tcx link of the interface with index 4
//
// One goroutine at a time may call Apply. Any may call RenewLease, Lease, Count, Counters and
// Histograms, which use nothing but the kernel's memory. The methods that belong to one
// goroutine alone are those of the Attacher, the OpenRequests and the Previous.
type State struct {
	Start Start
	// Object is which of the two objects the kernel got: "flat", or "flat510" on Linux
	// before 5.12. Refused says why the verifier of a newer kernel did not take "flat".
	Object  string
	Refused string

	Attacher *Attacher
	Requests *OpenRequests

	layout   layout
	root     string // the pin path
	dir      string // of the layout
	lock     *os.File
	spec     func() (*ebpf.CollectionSpec, error)
	programs kernelPrograms // those of L3 are nil until the Attacher needs them
	maps     kernelMaps
	shared   *shared
	options  kernelFlatOptions
}

// Open takes hold of the state below pinPath, creating what is missing. It
// attaches nothing and changes no settings. The caller must Close it.
func Open(pinPath string, mode Mode) (*State, error) {
	if err := checkClocks(); err != nil {
		return nil, err
	}
	objects, err := objectsOfKernel()
	if err != nil {
		return nil, err
	}
	return open(pinPath, mode, objects...)
}

// open tries one object after the other: the next if the verifier refuses one.
func open(pinPath string, mode Mode, objects ...object) (*State, error) {
	// Linux before 5.11 charges maps to this limit. Without CAP_SYS_RESOURCE
	// it stays as it is, which may well be enough.
	_ = rlimit.RemoveMemlock()

	lock, err := lockRoot(pinPath)
	if err != nil {
		return nil, err
	}
	var refused string
	for i, o := range objects {
		s := &State{Object: o.name, Refused: refused, layout: layout{ABI, o.name}, root: pinPath, lock: lock, spec: o.spec, Requests: new(OpenRequests)}
		s.dir = s.layout.dir(pinPath)
		err := s.openLayout(mode)
		if err == nil {
			return s, nil
		}
		var verifier *ebpf.VerifierError
		if !errors.As(err, &verifier) || i == len(objects)-1 {
			return nil, errors.Join(err, s.Close())
		}
		refused = verifier.Error()
		if s.Start == StartFresh { // else an earlier release's are at work, which the next object takes over
			if _, err := removeDir(s.dir); err != nil {
				return nil, errors.Join(err, s.Close())
			}
		}
		s.lock = nil // for the next
		_ = s.Close()
	}
	return nil, errors.New("no object to load")
}

// openLayout opens what is pinned of this layout, or makes it.
func (s *State) openLayout(mode Mode) error {
	spec, err := s.spec()
	if err != nil {
		return err
	}
	links := filepath.Join(s.dir, "links")
	if err := os.MkdirAll(links, 0o700); err != nil {
		return fmt.Errorf("create the pin directory: %w", err)
	}
	if err := checkOwner(s.root, s.dir, links); err != nil {
		return err
	}
	if s.Start, err = s.start(spec); err != nil {
		return err
	}
	if s.Requests, err = openRequests(s.dir, &s.maps, s.programs.FlatTimeout); err != nil {
		return err
	}
	s.shared = s.Requests.shared
	s.shared.setSeed()
	s.shared.setAttaching(0) // a killed daemon may have been at it
	if err := s.maps.FlatSettings.Lookup(uint32(0), &s.options); err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	if now, until := BootTime(), s.Lease(); until != 0 && until < now {
		s.Requests.blind.add(until, now) // the programs are asleep
	}
	s.Attacher = &Attacher{state: s, mode: mode, links: links, clsact: clsact{s.layout.handle(s.root)}, attached: make(map[int]Attachment)}
	return nil
}

// start chooses between the three.
func (s *State) start(spec *ebpf.CollectionSpec) (Start, error) {
	switch pinned, err := s.pinned(spec); {
	case err != nil:
		return "", err
	case pinned == nil:
		return StartFresh, s.load(spec, basicPrograms)
	case s.adopt(spec, pinned):
		return StartAdopt, nil
	}
	for _, name := range l3Programs { // loaded anew when they are needed
		if err := s.unpinProgram(name); err != nil {
			return "", err
		}
	}
	// The interfaces go over when they are attached.
	return StartReplace, s.load(spec, basicPrograms)
}

// adopt takes over the pinned programs and maps if they are what this binary
// would load. Nothing in the kernel changes.
func (s *State) adopt(spec *ebpf.CollectionSpec, pinned map[string]*ebpf.Program) bool {
	for name, program := range spec.Programs {
		p, ok := pinned[name]
		if !ok && (slices.Contains(basicPrograms, name) || len(pinned) != len(basicPrograms)) {
			return false
		}
		if ok && !isLoaded(program, p) {
			return false
		}
	}
	maps, err := s.openMaps(spec)
	if err != nil {
		return false
	}
	defer maps.Close() // but for what is taken out of it
	if !usePinned(spec, pinned, maps.Maps) || maps.Assign(&s.maps) != nil {
		return false
	}
	s.use(pinned)
	return true
}

// isLoaded reports whether a program has the instructions of spec.
func isLoaded(spec *ebpf.ProgramSpec, p *ebpf.Program) bool {
	info, err := p.Info()
	if err != nil {
		return false
	}
	// The kernel's tag is of instructions whose calls to other functions are
	// resolved; Marshal does that, in place.
	resolved := *spec
	resolved.Instructions = slices.Clone(spec.Instructions)
	if err := resolved.Instructions.Marshal(io.Discard, spec.ByteOrder); err != nil {
		return false
	}
	return resolved.Compatible(info) == nil
}

// usePinned tells programs that work on the pinned maps from those whose maps
// were unpinned, and made anew, by a start that was cut short.
func usePinned(spec *ebpf.CollectionSpec, programs map[string]*ebpf.Program, maps map[string]*ebpf.Map) bool {
	pinned := make(map[string]ebpf.MapID)
	for name, m := range maps {
		info, err := m.Info()
		if err != nil {
			return false
		}
		pinned[name], _ = info.ID() // 0 is none's
	}
	for name, p := range programs {
		if !uses(p, spec.Programs[name], pinned) {
			return false
		}
	}
	return true
}

// uses reports whether those of the pinned maps that spec refers to are p's.
func uses(p *ebpf.Program, spec *ebpf.ProgramSpec, pinned map[string]ebpf.MapID) bool {
	info, err := p.Info()
	if err != nil {
		return false
	}
	used, _ := info.MapIDs()
	for _, ins := range spec.Instructions {
		if id, ok := pinned[ins.Reference()]; ok && ins.IsLoadFromMap() && !slices.Contains(used, id) {
			return false
		}
	}
	return true
}

// pinned opens the programs in the pin directory; nil if there is no map
// either.
func (s *State) pinned(spec *ebpf.CollectionSpec) (map[string]*ebpf.Program, error) {
	programs := make(map[string]*ebpf.Program)
	for name := range spec.Programs {
		p, err := ebpf.LoadPinnedProgram(filepath.Join(s.dir, name), nil)
		switch {
		case err == nil:
			programs[name] = p
		case !errors.Is(err, fs.ErrNotExist):
			return nil, explain(fmt.Errorf("open pinned program %s: %w", name, err))
		}
	}
	if len(programs) > 0 {
		return programs, nil
	}
	if _, err := os.Stat(filepath.Join(s.dir, kernelMapFlatSettings)); err == nil {
		return programs, nil // half made, or half removed
	}
	return nil, nil
}

// openMaps opens the pinned maps, all of which must be as spec says.
func (s *State) openMaps(spec *ebpf.CollectionSpec) (*ebpf.Collection, error) {
	opened := &ebpf.Collection{Maps: make(map[string]*ebpf.Map)}
	for name, m := range spec.Maps {
		if m.Pinning != ebpf.PinByName {
			continue
		}
		pinned, err := ebpf.LoadPinnedMap(s.pinOf(m.Name), nil)
		if err == nil {
			opened.Maps[name] = pinned
			err = m.Compatible(pinned)
		}
		if err != nil {
			opened.Close()
			return nil, err
		}
	}
	return opened, nil
}

// pinOf is where a map is pinned.
func (s *State) pinOf(name string) string {
	if name == kernelMapFlatSequence {
		return filepath.Join(s.root, name) // it outlives layouts
	}
	return filepath.Join(s.dir, name)
}

func otherLayout(dir string, err error) error {
	return fmt.Errorf("%s holds maps of another layout: %w; remove them with `flatctl detach`", dir, err)
}

// pinnedSequence opens the map with the number of the latest record, and makes it if
// there is none. That of layout 2, which kept it in its own directory, is taken over:
// programs of both count in the same map. The caller closes it.
func (s *State) pinnedSequence(spec *ebpf.MapSpec) (*ebpf.Map, error) {
	path := s.pinOf(kernelMapFlatSequence)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		m, err := sequenceOfLayout2(s.root)
		if m != nil {
			defer m.Close()
			err = m.Pin(path)
		}
		if err != nil {
			return nil, fmt.Errorf("pin the sequence of layout 2: %w", err)
		}
	}
	m, err := ebpf.NewMapWithOptions(spec, ebpf.MapOptions{PinPath: s.root})
	if err != nil {
		return nil, fmt.Errorf("open the pinned sequence: %w", err)
	}
	return m, startSequence(m)
}

// startSequence gives a new sequence its first number: the microseconds since
// boot, which is further than any earlier one that was removed can have come.
// So no two events of a boot have the same.
func startSequence(m *ebpf.Map) error {
	var numbering kernelFlatNumbering
	if err := m.Lookup(uint32(0), &numbering); err != nil {
		return fmt.Errorf("look at the sequence: %w", err)
	}
	if numbering.Last != 0 {
		return nil
	}
	numbering.Last = BootTime() / 1000
	if err := m.Update(uint32(0), numbering, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("start the sequence: %w", err)
	}
	return nil
}

// pinPrograms pins programs in place of those that are pinned.
func (s *State) pinPrograms(programs map[string]*ebpf.Program) error {
	for name, p := range programs {
		if err := s.unpinProgram(name); err != nil {
			return err
		}
		if err := p.Pin(filepath.Join(s.dir, name)); err != nil {
			return fmt.Errorf("pin program %s: %w", name, err)
		}
	}
	return nil
}

func (s *State) unpinProgram(name string) error {
	if err := os.Remove(filepath.Join(s.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unpin program %s: %w", name, err)
	}
	return nil
}

// Close lets go of the state. Whatever is pinned and attached goes on
// measuring.
func (s *State) Close() error {
	err := errors.Join(s.programs.Close(), s.maps.Close(), s.Requests.close())
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
	}
	return err
}

// BootTime is the time of CLOCK_BOOTTIME in nanoseconds, the clock of the
// records.
func BootTime() uint64 { return clock(unix.CLOCK_BOOTTIME) }

func clock(id int32) uint64 {
	var t unix.Timespec
	if err := unix.ClockGettime(id, &t); err != nil {
		panic("CLOCK_BOOTTIME is there since Linux 2.6.39, CLOCK_MONOTONIC before: " + err.Error())
	}
	return uint64(t.Nano())
}

// checkClocks refuses a time namespace whose clocks are not those of the programs
// (time_namespaces(7)): every duration since a record would be wrong.
func checkClocks() error {
	offsets, err := os.ReadFile("/proc/self/timens_offsets")
	if err != nil {
		return nil // before Linux 5.6 there are no such namespaces
	}
	for line := range strings.Lines(string(offsets)) {
		if f := strings.Fields(line); len(f) == 3 && (f[1] != "0" || f[2] != "0") {
			return fmt.Errorf("flatd is in a time namespace whose %s clock is %s s off the kernel's, so it cannot tell when something happened; run it outside", f[0], f[1])
		}
	}
	return nil
}

// lockRoot makes the pin path if need be and takes the lock on it.
func lockRoot(path string) (*os.File, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, explain(fmt.Errorf("create the pin directory: %w", err))
	}
	var f unix.Statfs_t
	if err := unix.Statfs(path, &f); err != nil {
		return nil, fmt.Errorf("look at %s: %w", path, err)
	}
	if uint32(f.Type) != unix.BPF_FS_MAGIC {
		return nil, fmt.Errorf("pin path %s is %w; mount one with `mount -t bpf bpf /sys/fs/bpf`, or set pin_path", path, ErrNoBPFFS)
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, explain(fmt.Errorf("open the pin directory: %w", err))
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		dir.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("pin path %s is %w; stop that one (`systemctl stop flatd`), or give this one a pin_path of its own", path, ErrLocked)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return dir, nil
}

// checkOwner refuses directories in which somebody else could put programs and
// maps of his own in the place of ours.
func checkOwner(dirs ...string) error {
	for _, dir := range dirs {
		var stat unix.Stat_t
		if err := unix.Stat(dir, &stat); err != nil {
			return fmt.Errorf("look at %s: %w", dir, err)
		}
		if int(stat.Uid) != os.Geteuid() {
			return fmt.Errorf("pin directory %s belongs to uid %d, not to flatd's (%d): %w; see what is in it, then `chown root:root %s`",
				dir, stat.Uid, os.Geteuid(), ErrExposed, dir)
		}
		if stat.Mode&0o022 != 0 {
			return fmt.Errorf("pin directory %s has mode %#o: %w; see what is in it, then `chmod 0700 %s`, or set another pin_path",
				dir, stat.Mode&0o7777, ErrExposed, dir)
		}
	}
	return nil
}

// explain adds what to do about a refusal. The verifier's is one too, where it lets those
// alone do something who have the capabilities.
func explain(err error) error {
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		return err
	}
	without := missingCapabilities()
	var verifier *ebpf.VerifierError
	if without == "" && !errors.Is(err, unix.EPERM) && errors.As(err, &verifier) {
		return err
	}
	if without != "" {
		without = " without " + without
	}
	return fmt.Errorf("%w (%w%s: run as root, with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON)", err, ErrPermission, without)
}
