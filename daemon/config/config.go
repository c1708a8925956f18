// Package config reads the configuration of flatd: its keys, their ranges and defaults, and
// errors that name file, line and key.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// ErrInvalid marks errors of the configuration.
var ErrInvalid = errors.New("bad configuration")

// DefaultPath is where the configuration is, unless the command line says
// otherwise. A host without this file runs on the defaults.
const DefaultPath = "/etc/flatd/flatd.toml"

// fileBytesMax bounds a configuration file. Filters of the greatest size take
// a tenth of it.
const fileBytesMax = 1 << 20

// Load reads the configuration at path and then, in lexical order, the files
// <path>.d/*.toml, each of which overrides key by key. Only at DefaultPath may
// the file be missing. The error joins everything that is wrong, each with its
// file, line and key, including files of credentials that cannot be read.
func Load(path string) (Config, error) {
	files, err := readFiles(path, path == DefaultPath)
	if err != nil {
		return Config{}, err
	}
	r := parse(files)
	r.checkSecretFiles()
	return r.result()
}

// readFiles reads the main file, which may be missing if it is optional, and its
// drop-ins.
func readFiles(path string, optional bool) ([]File, error) {
	paths := []string{path}
	if _, err := os.Stat(path); optional && errors.Is(err, fs.ErrNotExist) {
		paths = nil
	}
	dropIns, err := dropInsOf(path)
	if err != nil {
		return nil, err
	}

	var files []File
	var problems []error
	for _, p := range append(paths, dropIns...) {
		text, err := readBounded(p)
		if err != nil {
			problems = append(problems, fmt.Errorf("configuration: %w", err))
			continue
		}
		files = append(files, File{Name: p, Text: text})
	}
	return files, errors.Join(problems...)
}

// dropInsOf lists the drop-ins of path in lexical order. Hidden files are left
// out: editors keep unfinished ones under such names.
func dropInsOf(path string) ([]string, error) {
	entries, err := os.ReadDir(path + ".d")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	var paths []string
	for _, e := range entries {
		if name := e.Name(); strings.HasSuffix(name, ".toml") && !strings.HasPrefix(name, ".") {
			paths = append(paths, filepath.Join(path+".d", name))
		}
	}
	return paths, nil
}

// masks reports whether path is a link to /dev/null, which stands for an empty file as in the
// directories of systemd.
func masks(path string) bool {
	to, err := filepath.EvalSymlinks(path)
	return err == nil && to == os.DevNull
}

func readBounded(path string) (string, error) {
	if masks(path) {
		return "", nil
	}
	f, err := openRegular(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, fileBytesMax+1))
	if err == nil && len(text) > fileBytesMax {
		err = fmt.Errorf("%s has more than %d bytes", path, fileBytesMax)
	}
	return string(text), err
}
