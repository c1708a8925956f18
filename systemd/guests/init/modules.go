package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// insertEarly loads the modules of the initrd, in their order.
func insertEarly() error {
	list, err := os.ReadFile("/modules.order")
	if err != nil {
		return err
	}
	for _, file := range strings.Fields(string(list)) {
		if err := insert(filepath.Join("/", file)); err != nil {
			return err
		}
	}
	return nil
}

func insert(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	err = unix.FinitModule(int(file.Fd()), "", 0)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", path, err)
	}
	return nil
}

// modprobe loads a module, by its name or an alias of it, after those which it
// depends on.
func modprobe(name string) error {
	var kernel unix.Utsname
	if err := unix.Uname(&kernel); err != nil {
		return err
	}
	dir := filepath.Join("/lib/modules", unix.ByteSliceToString(kernel.Release[:]))
	names, err := resolve(dir, name)
	if err != nil {
		return err
	}
	dependencies, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return err
	}
	found := false
	for line := range strings.Lines(string(dependencies)) {
		module, needs, _ := strings.Cut(line, ":")
		if !slices.Contains(names, underscores(strings.TrimSuffix(filepath.Base(module), ".ko"))) {
			continue
		}
		found = true
		files := append([]string{module}, strings.Fields(needs)...)
		for _, file := range slices.Backward(files) { // what it depends on stands last
			if err := insert(filepath.Join(dir, file)); err != nil {
				return err
			}
		}
	}
	if !found {
		return fmt.Errorf("no module %s", name)
	}
	return nil
}

// resolve returns the names of the modules that go by a name.
func resolve(dir, name string) ([]string, error) {
	names := []string{underscores(name)}
	aliases, err := os.ReadFile(filepath.Join(dir, "modules.alias"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(aliases)) {
		fields := strings.Fields(line)
		if len(fields) != 3 || fields[0] != "alias" {
			continue
		}
		if ok, _ := filepath.Match(underscores(fields[1]), names[0]); ok {
			names = append(names, underscores(fields[2]))
		}
	}
	return names, nil
}

// underscores writes a module's name as the kernel does: in files it may have
// hyphens in their place.
func underscores(name string) string { return strings.ReplaceAll(name, "-", "_") }
