package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// absolute checks a path that must not depend on where flatd was started.
func absolute(s string) error {
	if !filepath.IsAbs(s) {
		return fmt.Errorf("%s is not an absolute path: want one that begins with '/'", show(s))
	}
	if strings.ContainsRune(s, 0) {
		return fmt.Errorf("%s has a NUL in it", show(s))
	}
	return nil
}

// pinPath checks a directory in bpffs, which refuses names with dots.
func pinPath(s string) error {
	if err := absolute(s); err != nil {
		return err
	}
	if strings.Contains(s, ".") {
		return fmt.Errorf("%s has a dot in it, which bpffs refuses: want a path such as \"/sys/fs/bpf/flatd\"", show(s))
	}
	if clean := filepath.Clean(s); clean != s || s == "/" {
		return fmt.Errorf("%s is not the plain path of a directory: want one such as \"/sys/fs/bpf/flatd\"", show(s))
	}
	return nil
}

// socketPathMax is the room in sun_path (unix(7)) without the NUL.
const socketPathMax = 107

func socketPath(s string) error {
	if err := absolute(s); err != nil {
		return err
	}
	if clean := filepath.Clean(s); clean != s || s == "/" {
		return fmt.Errorf("%s is not the plain path of a file: want one such as \"/run/flatd/control.sock\"", show(s))
	}
	if len(s) > socketPathMax {
		return fmt.Errorf("%s has %d bytes: the path of a socket has at most %d", show(s), len(s), socketPathMax)
	}
	return nil
}

// secretFile takes the path of a file that holds a secret; "" is none. It shows
// no value: somebody may have written the secret itself.
func secretFile(to *string) setting {
	kept := settingOf(to, func(value any) (string, error) {
		s, ok := value.(string)
		if ok && (strings.HasPrefix(s, "$") || strings.HasPrefix(s, "%")) {
			return "", errors.New("begins with a variable, and none is filled in: what LoadCredential= of the unit provides is in /run/credentials/flatd.service/")
		}
		if !ok || s != "" && absolute(s) != nil {
			return "", errors.New("is not an absolute path in quotes: want that of a file which holds the secret")
		}
		return s, nil
	})
	kept.file = to
	return kept
}
