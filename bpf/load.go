package bpf

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// The map of the global variables has the name of its section, which bpffs does
// not allow for a pin.
const (
	variablesMap = ".bss"
	variablesPin = "flat_variables"
)

// object is one of the two that are made of flat.c.
type object struct {
	name string
	spec func() (*ebpf.CollectionSpec, error)
}

// The objects by name: see compat.h.
var (
	objectFlat    = object{"flat", specOf(loadKernel)}
	objectFlat510 = object{"flat510", specOf(loadKernel510)}
)

// objectsOfKernel are those to try, in order. flat510 is the exception: for kernels
// before Linux 5.12, and where the verifier refuses the other.
func objectsOfKernel() ([]object, error) {
	recent, err := haveFetchAdd()
	if err != nil {
		return nil, err
	}
	if !recent {
		return []object{objectFlat510}, nil
	}
	return []object{objectFlat, objectFlat510}, nil
}

// specOf is what to load of an object: as it is embedded, with what the kernel has.
func specOf(load func() (*ebpf.CollectionSpec, error)) func() (*ebpf.CollectionSpec, error) {
	return func() (*ebpf.CollectionSpec, error) {
		spec, err := load()
		if err != nil {
			return nil, fmt.Errorf("read the embedded programs: %w", err)
		}
		for name, is := range map[string]bool{
			"have_pid":    haveHelper(asm.FnGetCurrentPidTgid),
			"have_comm":   haveHelper(asm.FnGetCurrentComm),
			"outer_first": outerFirst(),
		} {
			variable := spec.Variables[name]
			if variable == nil {
				continue // flat510 has no use for it
			}
			if err := variable.Set(is); err != nil {
				return nil, fmt.Errorf("tell the programs what the kernel has: %w", err)
			}
		}
		variables := spec.Maps[variablesMap]
		variables.Name, variables.Pinning = variablesPin, ebpf.PinByName
		variables.Flags |= unix.BPF_F_MMAPABLE // as the library does by the section's name
		return spec, nil
	}
}

// load loads and pins programs; maps are pinned by name, or taken from their pins.
func (s *State) load(spec *ebpf.CollectionSpec, names []string) error {
	maps, err := s.loadMaps(spec)
	if errors.Is(err, ebpf.ErrMapIncompatible) {
		return otherLayout(s.dir, err)
	}
	if err != nil {
		return explain(fmt.Errorf("load the maps: %w", err))
	}
	defer maps.Close() // but for what is taken out of it
	programs, err := loadPrograms(spec, maps.Maps, names)
	if err != nil {
		return explain(fmt.Errorf("load the programs: %w", err))
	}
	if err := s.pinPrograms(programs.Programs); err != nil {
		programs.Close()
		return err
	}
	s.use(programs.Programs)
	if s.maps.FlatEvents != nil {
		return nil // opened before
	}
	return maps.Assign(&s.maps)
}

// The programs that every host needs, and those for devices without a link header.
var (
	basicPrograms = []string{kernelProgFlatIngress, kernelProgFlatEgress, kernelProgFlatTimeout}
	l3Programs    = []string{kernelProgFlatIngressL3, kernelProgFlatEgressL3}
)

// needL3 loads and pins the programs for devices without a link header, if they
// are not there yet. Most hosts have no such device, and start sooner without.
func (s *State) needL3() error {
	if s.programs.FlatIngressL3 != nil {
		return nil
	}
	spec, err := s.spec()
	if err != nil {
		return err
	}
	return s.load(spec, l3Programs)
}

func (s *State) loadMaps(spec *ebpf.CollectionSpec) (*ebpf.Collection, error) {
	spec = spec.Copy()
	spec.Programs = nil
	options := ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: s.dir}, MapReplacements: make(map[string]*ebpf.Map)}
	sequence, err := s.pinnedSequence(spec.Maps[kernelMapFlatSequence])
	if err != nil {
		return nil, err
	}
	defer sequence.Close()
	options.MapReplacements[kernelMapFlatSequence] = sequence
	// Taken by its pin's name alone, it would be set to zeros.
	if variables, err := ebpf.LoadPinnedMap(filepath.Join(s.dir, variablesPin), nil); err == nil {
		defer variables.Close()
		options.MapReplacements[variablesMap] = variables
	}
	return ebpf.NewCollectionWithOptions(spec, options)
}

// loadPrograms loads programs at once, for the verifier takes its time and works
// for each on a CPU of its own.
func loadPrograms(spec *ebpf.CollectionSpec, maps map[string]*ebpf.Map, names []string) (*ebpf.Collection, error) {
	var mu sync.Mutex
	var tasks errgroup.Group
	programs := &ebpf.Collection{Programs: make(map[string]*ebpf.Program)}
	for _, name := range names {
		alone := spec.Copy()
		alone.Programs = map[string]*ebpf.ProgramSpec{name: spec.Programs[name].Copy()}
		tasks.Go(func() error {
			loaded, err := ebpf.NewCollectionWithOptions(alone, ebpf.CollectionOptions{MapReplacements: maps})
			if err != nil {
				return err
			}
			defer loaded.Close() // but for the program
			mu.Lock()
			defer mu.Unlock()
			programs.Programs[name] = loaded.DetachProgram(name)
			return nil
		})
	}
	if err := tasks.Wait(); err != nil {
		programs.Close()
		return nil, err
	}
	return programs, nil
}

// use puts programs, perhaps not all, into their places.
func (s *State) use(programs map[string]*ebpf.Program) {
	for name, place := range map[string]**ebpf.Program{
		kernelProgFlatEgress:    &s.programs.FlatEgress,
		kernelProgFlatEgressL3:  &s.programs.FlatEgressL3,
		kernelProgFlatIngress:   &s.programs.FlatIngress,
		kernelProgFlatIngressL3: &s.programs.FlatIngressL3,
		kernelProgFlatTimeout:   &s.programs.FlatTimeout,
	} {
		if p := programs[name]; p != nil {
			*place = p
		}
	}
}
