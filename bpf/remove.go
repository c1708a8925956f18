package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// Remove detaches everything of flatd's and removes its pins, whatever state
// they are in and whatever version made them. Nobody may be using the pin
// path. It returns what it removed, one line each.
func Remove(pinPath string) (removed []string, err error) {
	lock, lockErr := lockRoot(pinPath)
	switch {
	case lockErr == nil:
		defer lock.Close()
	case errors.Is(lockErr, ErrNoBPFFS):
		// No pins then, but clsact filters live without them.
	default:
		return nil, lockErr
	}

	layouts, err := layoutsIn(pinPath)
	if err != nil && lockErr == nil {
		return nil, err
	}
	var errs []error
	note := func(lines []string, err error) { removed, errs = append(removed, lines...), append(errs, err) }
	// Filters live without pins, also those of the layouts of this version.
	attached := slices.Clone(layouts)
	for _, l := range []layout{{2, ""}, {ABI, objectFlat.name}, {ABI, objectFlat510.name}} {
		if !slices.Contains(attached, l) {
			attached = append(attached, l)
		}
	}
	for _, l := range attached {
		note(removeFilters(clsact{l.handle(pinPath)}))
	}
	if lockErr != nil {
		return removed, errors.Join(errs...)
	}
	// The pin path itself stays: tmpfiles.d made it for the next start, and others may have
	// pins in it.
	for _, l := range layouts {
		note(removeDir(l.dir(pinPath)))
	}
	sequence := filepath.Join(pinPath, kernelMapFlatSequence)
	if err := os.Remove(sequence); err == nil {
		removed = append(removed, sequence)
	} else if !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, fmt.Errorf("unpin: %w", err))
	}
	return removed, errors.Join(errs...)
}

func removeFilters(filters clsact) (removed []string, err error) {
	indexes, err := filters.interfaces()
	errs := []error{err}
	for _, index := range indexes {
		if err := filters.detach(index); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, fmt.Sprintf("clsact filters of interface %d", index))
	}
	return removed, errors.Join(errs...)
}

func removeDir(dir string) (removed []string, err error) {
	var dirs []string
	errs := []error{filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir():
			dirs = append(dirs, path)
			return nil
		}
		removed = append(removed, path)
		return unpin(path)
	})}
	for _, path := range slices.Backward(dirs) {
		if err := os.Remove(path); err != nil {
			errs = append(errs, fmt.Errorf("remove the pin directory: %w", err))
		}
	}
	return removed, errors.Join(errs...)
}
