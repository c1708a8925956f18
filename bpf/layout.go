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
	hash.Write([]byte(filepath.Clean(pinPath) + l.object))
	return 0xf1a70000 | (hash.Sum32()^uint32(l.abi-1))&0xffff
}

var layoutName = regexp.MustCompile(`^v([0-9]+)(?:-([a-z0-9]+))?$`)

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
		name := layoutName.FindStringSubmatch(entry.Name())
		if name == nil || !entry.IsDir() {
			continue
		}
		if abi, err := strconv.Atoi(name[1]); err == nil {
			all = append(all, layout{abi, name[2]})
		}
	}
	return all, nil
}
