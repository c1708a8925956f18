package bpf

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
)

// ABI is the version of the pinned state: of the maps' keys and values, and of
// the records in the ring. Another layout gets another number and thereby
// another directory. TestLayoutHasItsNumber knows what has which.
const ABI = 3

// layout says how what is pinned in a directory is laid out: which version, and
// which of the two objects its programs and maps are of.
type layout struct {
	abi    int
	object string // "" for version 2 and before, which had one directory for both
}

// String is the name of the directory. The first flatd to have objects in it was that
// of version 3: those before look at names of digits alone.
func (l layout) String() string {
	if l.object == "" {
		return fmt.Sprintf("v%d", l.abi)
	}
	return fmt.Sprintf("v%d-%s", l.abi, l.object)
}

func (l layout) dir(pinPath string) string { return filepath.Join(pinPath, l.String()) }

// handle is that of the clsact filters of a layout. Daemons with pin paths of their
// own have handles of their own, and so have layouts, which are attached beside each
// other while one takes over from the other.
func (l layout) handle(pinPath string) uint32 {
	hash := fnv.New32a()
	hash.Write([]byte(filepath.Clean(pinPath)))
	low := hash.Sum32() ^ uint32(l.abi-1)
	if l.object != "" {
		hash.Write([]byte(l.object))
		low = hash.Sum32() ^ uint32(l.abi-1)
	}
	return 0xf1a70000 | low&0xffff
}

var layoutName = regexp.MustCompile(`^v([0-9]+)(?:-([a-z0-9]+))?$`)

// layoutNamed is the layout of a directory of that name, if it is one.
func layoutNamed(name string) (layout, bool) {
	m := layoutName.FindStringSubmatch(name)
	if m == nil {
		return layout{}, false
	}
	abi, err := strconv.Atoi(m[1])
	return layout{abi, m[2]}, err == nil
}

// layoutsIn lists the layouts that have a directory below a pin path.
func layoutsIn(pinPath string) (all []layout, err error) {
	entries, err := os.ReadDir(pinPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the pin path: %w", err)
	}
	for _, entry := range entries {
		if l, ok := layoutNamed(entry.Name()); ok && entry.IsDir() {
			all = append(all, l)
		}
	}
	return all, nil
}
