package bpf

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/flatd/flatd/packaging/testbed"
)

// session is a kernel whose pins are in a directory that outlives it, as the
// state of a daemon does.
func session(t *testing.T, path string) *kernel {
	t.Helper()
	return newSession(t, openState(t, path))
}

func newSession(t *testing.T, s *State) *kernel { t.Helper(); return kernelOf(t, s) }

// otherPrograms is what another release, with other programs of the same layout, would
// have opened.
func otherPrograms(t *testing.T, path string) *kernel {
	t.Helper()
	all, err := objectsOfKernel()
	if err != nil {
		t.Fatal(err)
	}
	s, err := open(path, Auto, object{all[0].name, func() (*ebpf.CollectionSpec, error) {
		spec, err := all[0].spec()
		if err != nil {
			return nil, err
		}
		for _, p := range spec.Programs {
			// Behind the first instruction, which carries the function's name.
			p.Instructions = slices.Insert(p.Instructions, 1, asm.Mov.Imm(asm.R0, 0))
		}
		return spec, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return newSession(t, s)
}

// leave ends a session as the daemon's end does.
func (k *kernel) leave() {
	k.t.Helper()
	if err := errors.Join(k.reader.Close(), k.Close()); err != nil {
		k.t.Fatal(err)
	}
}

func (k *kernel) started(want Start) *kernel {
	k.t.Helper()
	if k.Start != want {
		k.t.Errorf("start %q, want %q", k.Start, want)
	}
	return k
}

// one reads the single record there must be.
func (k *kernel) one() kernelFlatRecord {
	k.t.Helper()
	got := k.records()
	if len(got) != 1 {
		k.t.Fatalf("%d records, want 1: %+v", len(got), got)
	}
	return got[0]
}

// away runs a frame through a pinned program while no daemon is there.
func away(t *testing.T, path, program string, frame []byte) {
	t.Helper()
	p, err := ebpf.LoadPinnedProgram(pinOf(path, program), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	(&kernel{t: t}).run(p, frame)
}

func id(t *testing.T, p *ebpf.Program) ebpf.ProgramID {
	t.Helper()
	info, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	return id
}

func TestSameProgramsAreAdopted(t *testing.T) {
	path := testbed.BPFFS(t)
	first := session(t, path).started(StartFresh)
	before := make(map[string]ebpf.ProgramID)
	for name, p := range first.entries() {
		before[name] = id(t, p)
	}
	first.handshake(1)
	sequence := first.one().Sequence
	first.leave()

	second := session(t, path).started(StartAdopt)
	for name, p := range second.entries() {
		if got := id(t, p); got != before[name] {
			t.Errorf("%s is program %d, was %d", name, got, before[name])
		}
	}
	second.handshake(2)
	if got := second.one().Sequence; got != sequence+1 {
		t.Errorf("sequence %d after %d", got, sequence)
	}
	c, err := second.Counters()
	if err != nil {
		t.Fatal(err)
	}
	if c[Finished] != 2 {
		t.Errorf("finished %d over both sessions, want 2", c[Finished])
	}
}

// Few hosts have a device without a link header, and none pays for its programs
// before it is there.
func TestProgramsForL3DevicesWaitForOne(t *testing.T) {
	path := testbed.BPFFS(t)
	pinned := func() (n int) {
		for _, name := range append(basicPrograms, l3Programs...) {
			if _, err := os.Stat(pinOf(path, name)); err == nil {
				n++
			}
		}
		return n
	}
	first := session(t, path).started(StartFresh)
	if n := pinned(); n != 3 {
		t.Errorf("%d programs pinned at first, want 3", n)
	}
	first.leave()

	second := session(t, path).started(StartAdopt)
	if err := second.needL3(); err != nil {
		t.Fatal(err)
	}
	if n := pinned(); n != 5 {
		t.Errorf("%d programs pinned once L3 is needed, want 5", n)
	}
	l3 := id(t, second.programs.FlatIngressL3)
	second.leave()

	third := session(t, path).started(StartAdopt)
	if err := third.needL3(); err != nil {
		t.Fatal(err)
	}
	if now := id(t, third.programs.FlatIngressL3); now != l3 {
		t.Errorf("program %d for L3, was %d: not adopted", now, l3)
	}
	third.leave()

	otherPrograms(t, path).started(StartReplace).leave()
	if n := pinned(); n != 3 {
		t.Errorf("%d programs pinned after others took over, want 3", n)
	}
}

func TestMeasuringGoesOnWithoutADaemon(t *testing.T) {
	path := testbed.BPFFS(t)
	first := session(t, path)
	asked := BootTime()
	first.out(flow4.syn(t, 1))
	askedBy := BootTime()
	first.leave()

	answered := BootTime()
	away(t, path, kernelProgFlatIngress, flow4.back().synAck(t, 2))
	answeredBy := BootTime()

	r := session(t, path).started(StartAdopt).one()
	if r.EndNs < answered || r.EndNs > answeredBy {
		t.Errorf("ended at %d, want between %d and %d", r.EndNs, answered, answeredBy)
	}
	if r.DurationNs < answered-askedBy || r.DurationNs > answeredBy-asked {
		t.Errorf("duration %d ns, want between %d and %d", r.DurationNs, answered-askedBy, answeredBy-asked)
	}
}

func TestOtherProgramsAreReplacedAndMapsKept(t *testing.T) {
	path := testbed.BPFFS(t)
	old := otherPrograms(t, path).started(StartFresh)
	if err := old.Apply(Settings{SkipKinds: []uint8{4}}); err != nil {
		t.Fatal(err)
	}
	old.handshake(1)
	sequence := old.one().Sequence
	before := id(t, old.programs.FlatIngress)
	askedFrom := BootTime()
	old.out(flow4.syn(t, 10))
	asked := BootTime()
	old.leave()

	now := session(t, path).started(StartReplace)
	if id(t, now.programs.FlatIngress) == before {
		t.Error("the older program is still in place")
	}
	answered := BootTime()
	now.in(flow4.back().synAck(t, 11))
	r := now.one()
	if r.DurationNs < answered-asked || r.DurationNs > BootTime()-askedFrom {
		t.Errorf("duration %d ns over the upgrade, want at least %d", r.DurationNs, answered-asked)
	}
	if r.Sequence != sequence+1 {
		t.Errorf("sequence %d after %d", r.Sequence, sequence)
	}
	now.out(flow4.echo(t, 1, 1, false))
	if c, _ := now.Counters(); c[Requests] != 2 {
		t.Errorf("%d requests: the upgrade lost the settings", c[Requests])
	}
	now.leave()
	session(t, path).started(StartAdopt).leave()
	otherPrograms(t, path).started(StartReplace) // a downgrade is no other thing
}

func TestUpgradeKeepsTheLinks(t *testing.T) {
	needTCX(t)
	v := newVeth(t, TCX)
	v.reader.Close()
	v.Close()
	device := v.device()

	v.State = otherPrograms(t, v.path).State
	v.Attacher.SetMode(TCX)
	v.attach()
	before := v.links()
	v.Close()

	v.State = openState(t, v.path)
	v.Attacher.SetMode(TCX)
	if !v.attach() {
		t.Error("Attach left the older programs in place")
	}
	after := v.links()
	for d, was := range before {
		if is := after[d]; is.ID != was.ID || is.Program == was.Program {
			t.Errorf("%s: link %d with program %d became link %d with program %d", d, was.ID, was.Program, is.ID, is.Program)
		}
	}
	v.want(2, 0)
	v.reader = newSession(t, v.State).reader
	v.measures(device.Index)
}

// links is what the kernel tells of the links on the client's interface.
func (v *veth) links() map[direction]*link.Info {
	v.t.Helper()
	all := make(map[direction]*link.Info)
	for _, d := range directions {
		l, err := link.LoadPinnedLink(v.Attacher.linkPath(v.device().Index, d), nil)
		if err != nil {
			v.t.Fatal(err)
		}
		info, err := l.Info()
		l.Close()
		if err != nil {
			v.t.Fatal(err)
		}
		all[d] = info
	}
	return all
}

// thisLayout is that of the object which this kernel gets.
func thisLayout() layout {
	if recent, _ := haveFetchAdd(); !recent {
		return layout{ABI, objectFlat510.name}
	}
	return layout{ABI, objectFlat.name}
}

// pinOf is the path of what is pinned by a name.
func pinOf(pinPath, name string) string {
	if name == kernelMapFlatSequence {
		return filepath.Join(pinPath, name)
	}
	return filepath.Join(thisLayout().dir(pinPath), name)
}

// pinNames lists the pins but for links.
func pinNames(t *testing.T, path string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(thisLayout().dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	if _, err := os.Stat(pinOf(path, kernelMapFlatSequence)); err == nil {
		names = append(names, kernelMapFlatSequence)
	}
	return names
}

// pins is how many there are but for links and the programs for L3: 17 maps, the
// variables, the marks and 3 programs.
const pins = 23

// Whichever pin is missing, the next start puts it back and measures, and the
// one after that finds nothing to do.
func TestHalfMadeStateIsRepaired(t *testing.T) {
	path := testbed.BPFFS(t)
	session(t, path).leave()
	names := pinNames(t, path)
	if len(names) != pins {
		t.Fatalf("pins %v, want %d", names, pins)
	}
	var last uint64
	for i, name := range names {
		t.Run(name, func(t *testing.T) {
			if err := os.Remove(pinOf(path, name)); err != nil {
				t.Fatal(err)
			}
			repair := StartReplace
			if name == marksPin {
				repair = StartAdopt // the programs have nothing to do with it
			}
			k := session(t, path).started(repair)
			k.handshake(uint32(10 * i)) // not the one before once more
			if r := k.one(); r.Sequence <= last {
				t.Errorf("sequence %d after %d", r.Sequence, last)
			} else {
				last = r.Sequence
			}
			k.leave()
			if got := pinNames(t, path); !slices.Equal(got, names) {
				t.Errorf("pins %v, want %v", got, names)
			}
			session(t, path).started(StartAdopt).leave()
		})
	}
}

// A start that made a lost map anew and died before it pinned programs leaves
// programs which write where nobody reads.
func TestProgramsOfUnpinnedMapsAreNotAdopted(t *testing.T) {
	path := testbed.BPFFS(t)
	session(t, path).leave()
	ring := pinOf(path, kernelMapFlatEvents)
	if err := os.Remove(ring); err != nil {
		t.Fatal(err)
	}
	objects, err := objectsOfKernel()
	if err != nil {
		t.Fatal(err)
	}
	spec, err := objects[0].spec()
	if err != nil {
		t.Fatal(err)
	}
	spec.Maps[kernelMapFlatEvents].Pinning = ebpf.PinNone
	m, err := ebpf.NewMap(spec.Maps[kernelMapFlatEvents])
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Pin(ring); err != nil {
		t.Fatal(err)
	}

	session(t, path).started(StartReplace).leave()
	away(t, path, kernelProgFlatEgress, flow4.syn(t, 1))
	away(t, path, kernelProgFlatIngress, flow4.back().synAck(t, 2))
	session(t, path).started(StartAdopt).one()
}

func TestUncommittedRecordsComeAgainAfterARestart(t *testing.T) {
	path := testbed.BPFFS(t)
	first := session(t, path)
	for i := range uint32(5) {
		first.handshake(i)
	}
	read, positions := sequences(first.reader)
	first.reader.commitTo(positions[3] - recordHeader)
	first.leave()

	second := session(t, path)
	again, _ := sequences(second.reader)
	if !slices.Equal(again, read[3:]) {
		t.Errorf("after a restart %v, want %v", again, read[3:])
	}
	second.reader.Commit()
	second.leave()
	if got := session(t, path).records(); got != nil {
		t.Errorf("committed records come again: %+v", got)
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	path := testbed.BPFFS(t)
	first := session(t, path)
	_, err := Open(path, Auto)
	if !errors.Is(err, ErrLocked) {
		t.Fatalf("error %v, want ErrLocked", err)
	}
	for _, want := range []string{path, "systemctl stop flatd", "pin_path"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
	if _, err := Remove(path); !errors.Is(err, ErrLocked) {
		t.Errorf("Remove under a daemon: error %v, want ErrLocked", err)
	}
	first.handshake(1)
	first.one()
	first.leave()
	session(t, path).started(StartAdopt)
}

func TestOtherFileSystemIsRefused(t *testing.T) {
	testbed.Root(t)
	path := t.TempDir()
	precious := pinOf(path, "precious")
	if err := os.MkdirAll(filepath.Dir(precious), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(precious, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(path, Auto)
	if !errors.Is(err, ErrNoBPFFS) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "mount -t bpf") {
		t.Errorf("error %v, want ErrNoBPFFS with place and remedy", err)
	}
	if _, err := Remove(path); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Errorf("Remove went through a directory that holds no pins: %v", err)
	}
}

// foreignMap pins a map with no more in common with ours than the name.
func foreignMap(t *testing.T, path string) {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if err := m.Pin(path); err != nil {
		t.Fatal(err)
	}
}

func TestMapOfAnotherLayoutIsRefusedAndRemoved(t *testing.T) {
	path := testbed.BPFFS(t)
	session(t, path).leave()
	foreignMap(t, pinOf(path, kernelMapFlatOurs))
	_, err := Open(path, Auto)
	if err == nil {
		t.Fatal("opened on a map of another layout")
	}
	for _, want := range []string{path, "another layout", kernelMapFlatOurs, "flatctl detach"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
	removed, err := Remove(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(removed) != pins {
		t.Errorf("removed %v, want %d pins", removed, pins)
	}
	session(t, path).started(StartFresh)
}

func TestRemoveTakesWhatIsThereAndNoMore(t *testing.T) {
	path := testbed.BPFFS(t)
	k := session(t, path)
	k.handshake(1)
	sequence := k.one().Sequence
	k.leave()
	// Half of the pins are gone, others are not what they should be, and older
	// and newer versions left theirs.
	for _, name := range []string{kernelProgFlatEgress, kernelMapFlatEvents, kernelMapFlatSequence} {
		if err := os.Remove(pinOf(path, name)); err != nil {
			t.Fatal(err)
		}
	}
	foreignMap(t, pinOf(path, kernelProgFlatIngress))
	foreignMap(t, pinOf(path, "links/7-ingress"))
	for _, dir := range []string{"v0", "v23/links", "v3-flat510/links", "v4-later", "vienna", "v3-"} {
		if err := os.MkdirAll(filepath.Join(path, dir), 0o700); err != nil {
			t.Fatal(err)
		}
		foreignMap(t, filepath.Join(path, dir, "any"))
	}
	foreignMap(t, filepath.Join(path, "somebody"))

	if _, err := Remove(path); err != nil {
		t.Fatal(err)
	}
	var left []string
	entries, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".debug") { // the kernel's own
			left = append(left, e.Name())
		}
	}
	if want := []string{"somebody", "v3-", "vienna"}; !slices.Equal(left, want) {
		t.Errorf("Remove leaves %v, want %v", left, want)
	}
	if removed, err := Remove(path); err != nil || len(removed) != 0 {
		t.Errorf("a second Remove: %v, %v", removed, err)
	}

	// No number is given twice, though the one who counted is gone.
	k = session(t, path).started(StartFresh)
	k.handshake(1)
	if got := k.one().Sequence; got <= sequence {
		t.Errorf("sequence %d after %d", got, sequence)
	}
}
