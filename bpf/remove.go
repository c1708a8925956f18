package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Remove detaches everything of flatd's and removes its pins, whatever state
// they are in and whatever version made them. Nobody may be using the pin
// path. It returns what it removed, one line each.
func Remove(pinPath string) (removed []string, err error) {
	switch lock, lockErr := lockRoot(pinPath); {
	case lockErr == nil:
		defer lock.Close()
	case errors.Is(lockErr, ErrNoBPFFS):
		// No pins then, but clsact filters live without them.
	default:
		return nil, lockErr
	}

	indexes, err := clsactInterfaces()
	errs := []error{err}
	for _, index := range indexes {
		if err := detachClsact(index); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, fmt.Sprintf("clsact filters of interface %d", index))
	}
	// The directory itself stays: tmpfiles.d made it for the next start.
	var dirs []string
	errs = append(errs, filepath.WalkDir(pinPath, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case entry.IsDir():
			if path != pinPath {
				dirs = append(dirs, path)
			}
			return nil
		}
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("unpin: %w", err)
		}
		removed = append(removed, path)
		return nil
	}))
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := os.Remove(dirs[i]); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove the pin directory: %w", err))
		}
	}
	return removed, errors.Join(errs...)
}
