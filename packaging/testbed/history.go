package testbed

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// BuildAt builds a command as it was at a commit of the project's history, and
// returns the binary's path. A commit does not change, so one build serves for
// ever: it stays in the user's cache.
func BuildAt(t testing.TB, commit, name string) string {
	t.Helper()
	builtMu.Lock()
	defer builtMu.Unlock()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(cache, "flatd-test", "at-"+commit, name)
	if _, err := os.Stat(binary); err == nil {
		return binary
	}
	// Root tests what may be somebody else's tree.
	git := func(args ...string) *exec.Cmd {
		return exec.Command(Tool(t, "git"), append([]string{"-c", "safe.directory=*", "-C", Tree(t)}, args...)...)
	}
	if out, err := git("cat-file", "-e", commit+"^{commit}").CombinedOutput(); err != nil {
		Missing(t, "commit %s is not in the history that is here, a shallow clone's perhaps: git fetch --unshallow gets it (%s)",
			commit, strings.TrimSpace(string(out)))
	}
	dir := t.TempDir()
	if err := unpack(git("archive", commit), dir); err != nil {
		t.Fatalf("unpack commit %s: %v", commit, err)
	}
	fresh := filepath.Join(t.TempDir(), name)
	if out, err := compile(dir, fresh, name, "0"); err != nil {
		t.Fatalf("build %s of commit %s: %v\n%s", name, commit, err, out)
	}
	if err := install(fresh, binary); err != nil {
		t.Fatalf("build %s of commit %s: %v", name, commit, err)
	}
	return binary
}

// unpack puts the files of an archive into a directory.
func unpack(archive *exec.Cmd, dir string) error {
	files := exec.Command("tar", "--extract", "--directory", dir)
	var err error
	if files.Stdin, err = archive.StdoutPipe(); err != nil {
		return err
	}
	if err := archive.Start(); err != nil {
		return err
	}
	out, err := files.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("tar: %w: %s", err, out)
	}
	if made := archive.Wait(); made != nil {
		return made
	}
	return err
}
