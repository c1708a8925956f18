package packaging_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flatd/flatd/daemon/config"
	"github.com/flatd/flatd/packaging"
	"github.com/flatd/flatd/packaging/testbed"
)

// packages are the deb and the rpm of amd64, built by `make package`.
type packages struct{ deb, rpm string }

// build builds the packages of the tree below root into a directory of its own,
// with a version and a time that do not depend on git.
func build(t *testing.T, root, umask string, environment ...string) packages {
	t.Helper()
	dist := t.TempDir()
	shell := "umask " + umask + " && exec make -s -C \"$0\" package BIN=\"$1/bin\" DIST=\"$1\" ARCHES=amd64 VERSION=v1.2.0-rc1"
	cmd := exec.Command("sh", "-c", shell, root, dist)
	cmd.Env = append(append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000"), environment...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make package: %v\n%s", err, out)
	}
	return packages{deb: only(t, dist, "flatd_1.2.0~rc1-1_amd64.deb"), rpm: only(t, dist, "flatd-1.2.0~rc1-1.x86_64.rpm")}
}

func only(t *testing.T, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		found, _ := filepath.Glob(filepath.Join(dir, "*"))
		t.Fatalf("no %s among %v", name, found)
	}
	return path
}

// TestPackages builds the packages once, for all that is to be known of them.
func TestPackages(t *testing.T) {
	if testing.Short() {
		t.Skip("builds packages")
	}
	for _, tool := range []string{"dpkg-deb", "rpm", "lintian", "rpmlint"} {
		testbed.Tool(t, tool)
	}
	tree := copyTree(t, "..") // which nobody edits meanwhile
	built := build(t, tree, "022")
	t.Run("contents", func(t *testing.T) { wantContents(t, tree, built) })
	t.Run("deb", func(t *testing.T) { wantDebFields(t, built.deb) })
	t.Run("rpm", func(t *testing.T) { wantRPMFields(t, built.rpm) })
	t.Run("lintian", func(t *testing.T) {
		wantSilence(t, "lintian", "--allow-root", "--display-info", "--fail-on=error,warning,info", built.deb)
	})
	t.Run("rpmlint", func(t *testing.T) { wantNoFinding(t, built.rpm) })
	t.Run("reproducible", func(t *testing.T) { wantSameElsewhere(t, tree, built) })
}

// wantContents wants of both packages what `make install` installs, and besides
// only what they say of themselves.
func wantContents(t *testing.T, tree string, built packages) {
	root := filepath.Join(t.TempDir(), "root")
	testbed.Run(t, "make", "-s", "-C", tree, "install", "BIN="+filepath.Join(filepath.Dir(built.deb), "bin"), "DESTDIR="+root)
	installed := files(t, root)

	unpacked := filepath.Join(t.TempDir(), "deb")
	testbed.Run(t, "dpkg-deb", "--extract", built.deb, unpacked)
	wantFiles(t, "deb", files(t, unpacked), installed, map[string]string{
		"/usr/share/doc/flatd/LICENSE":              "/usr/share/doc/flatd/copyright",
		"/usr/share/zsh/site-functions/_flatctl":    "/usr/share/zsh/vendor-completions/_flatctl",
		"changelog, which dpkg has in its own form": "/usr/share/doc/flatd/changelog.Debian.gz",
		"what lintian is not to say":                "/usr/share/lintian/overrides/flatd",
	})
	listed := testbed.Run(t, "sh", "-c", `rpm -qp --noglob --qf '[%{FILEMODES:perms} %{FILENAMES}\n]' "$0"`, built.rpm)
	wantFiles(t, "rpm", regularFiles(listed), installed, map[string]string{
		"/usr/share/doc/flatd/LICENSE": "/usr/share/licenses/flatd/LICENSE",
	})
}

// wantFiles compares lists of files, some of which have another name in the
// package, or no counterpart.
func wantFiles(t *testing.T, what string, got, installed []string, renamed map[string]string) {
	t.Helper()
	var want []string
	for _, path := range installed {
		if _, ok := renamed[path]; !ok {
			want = append(want, path)
		}
	}
	for _, path := range renamed {
		want = append(want, path)
	}
	slices.Sort(want)
	for _, path := range got {
		if !slices.Contains(want, path) {
			t.Errorf("%s: %s is not what make install installs", what, path)
		}
	}
	for _, path := range want {
		if !slices.Contains(got, path) {
			t.Errorf("%s lacks %s", what, path)
		}
	}
}

// files lists the files below root by their absolute names in it.
func files(t *testing.T, root string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			all = append(all, strings.TrimPrefix(path, root))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// regularFiles picks the files from lines of mode and name.
func regularFiles(listed string) (all []string) {
	for _, line := range strings.Split(strings.TrimSpace(listed), "\n") {
		if mode, name, _ := strings.Cut(line, " "); !strings.HasPrefix(mode, "d") {
			all = append(all, name)
		}
	}
	return all
}

func wantDebFields(t *testing.T, deb string) {
	for field, want := range map[string]string{
		"Package": "flatd", "Version": "1.2.0~rc1-1", "Architecture": "amd64", "Section": "net", "Depends": "systemd (>= 247)",
	} {
		if got := strings.TrimSpace(testbed.Run(t, "dpkg-deb", "--field", deb, field)); got != want {
			t.Errorf("%s is %q, want %q", field, got, want)
		}
	}
	if got := testbed.Run(t, "dpkg-deb", "--info", deb, "conffiles"); got != "/etc/flatd/flatd.toml\n" {
		t.Errorf("conffiles are %q", got)
	}
}

func wantRPMFields(t *testing.T, rpm string) {
	for tag, want := range map[string]string{
		"%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}":                         "flatd-1.2.0~rc1-1.x86_64",
		"%{LICENSE}":                                                    "Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)",
		"[%{FILENAMES} %{FILEFLAGS:fflags}\n]":                          "/etc/flatd/flatd.toml cn\n",
		"[%{REQUIRENAME} %{REQUIREFLAGS:depflags} %{REQUIREVERSION}\n]": "systemd >= 247\n",
	} {
		if got := testbed.Run(t, "rpm", "-qp", "--qf", tag, rpm); !strings.Contains(got, want) {
			t.Errorf("%s is %q, want %q in it", tag, got, want)
		}
	}
}

func wantSilence(t *testing.T, command string, args ...string) {
	t.Helper()
	if out := testbed.Run(t, command, args...); out != "" {
		t.Errorf("%s says:\n%s", command, out)
	}
}

// wantNoFinding runs rpmlint where its cpio unpacks below the directory that it is
// in, and nowhere else: the names of files in nfpm's packages are absolute.
func wantNoFinding(t *testing.T, rpm string) {
	cpio := testbed.Tool(t, "cpio")
	tools := t.TempDir()
	shim := "#!/bin/sh\nexec " + cpio + " --no-absolute-filenames \"$@\"\n"
	if err := os.WriteFile(filepath.Join(tools, "cpio"), []byte(shim), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("rpmlint", "--config", "rpmlint.toml", rpm)
	cmd.Env = append(os.Environ(), "PATH="+tools+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte(" 0 errors, 0 warnings")) {
		t.Errorf("rpmlint: %v\n%s", err, out)
	}
}

// wantSameElsewhere builds the same tree in another directory, by another umask,
// in another place of the world, and wants the same bytes.
func wantSameElsewhere(t *testing.T, tree string, built packages) {
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	testbed.Run(t, "cp", "-r", tree, elsewhere)
	again := build(t, elsewhere, "077", "TZ=Asia/Tokyo", "LANG=de_DE.UTF-8")
	for _, pair := range [][2]string{{built.deb, again.deb}, {built.rpm, again.rpm}} {
		if first, second := sum(t, pair[0]), sum(t, pair[1]); !bytes.Equal(first, second) {
			t.Errorf("%s: %x when built here, %x elsewhere", filepath.Base(pair[0]), first, second)
		}
	}
}

// copyTree copies what git has, or would take, of the tree below root.
func copyTree(t *testing.T, root string) string {
	t.Helper()
	copied := t.TempDir()
	testbed.Run(t, "bash", "-c", `cd "$0" && git ls-files -z -co --exclude-standard --deduplicate |
		while IFS= read -r -d '' name; do [ ! -e "$name" ] || printf '%s\0' "$name"; done |
		tar -c --null -T - | tar -x -C "$1"`, root, copied)
	return copied
}

func sum(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := sha256.Sum256(content)
	return s[:]
}

// TestVersions: dpkg and rpm order the versions of packages as git does those it
// describes.
func TestVersions(t *testing.T) {
	const first, second = "1700000000", "1700000001"
	ordered := []struct{ description, seconds, want string }{
		{"215f177", first, "0~20231114221320.g215f177"},
		{"0123456-dirty", second, "0~20231114221321.g0123456+dirty"},
		{"v0.1.0-rc1", second, "0.1.0~rc1"},
		{"v0.1.0-rc1-3-gabcdef1", second, "0.1.0~rc1+3.gabcdef1"},
		{"v0.1.0", second, "0.1.0"},
		{"v0.1.0-dirty", second, "0.1.0+dirty"},
		{"v0.1.1", second, "0.1.1"},
		{"v0.1.1-5-g0123456", second, "0.1.1+5.g0123456"},
		{"v0.1.1-12-g0012345", second, "0.1.1+12.g0012345"},
		{"v0.10.0", second, "0.10.0"},
	}
	for i, v := range ordered {
		if got := strings.TrimSpace(testbed.Run(t, "./version.sh", v.description, v.seconds)); got != v.want {
			t.Errorf("%s makes the version %s, want %s", v.description, got, v.want)
		}
		if i > 0 {
			testbed.Run(t, "dpkg", "--compare-versions", ordered[i-1].want, "lt", v.want)
			wantRPMOrder(t, ordered[i-1].want, v.want)
		}
	}
	if out, err := exec.Command("./version.sh", "devel", first).CombinedOutput(); err == nil {
		t.Errorf("no error for what is no version, but %s", out)
	}
}

func wantRPMOrder(t *testing.T, older, newer string) {
	t.Helper()
	testbed.Tool(t, "rpm")
	if got := testbed.Run(t, "rpm", "--eval", fmt.Sprintf("%%{lua: print(rpm.vercmp(%q, %q))}", older, newer)); got != "-1\n" {
		t.Errorf("rpm compares %s and %s as %s", older, newer, got)
	}
}

// TestExamples: the examples of configuration are good, alone and together.
func TestExamples(t *testing.T) {
	examples, err := filepath.Glob("examples/*.toml")
	if err != nil || len(examples) < 3 {
		t.Fatalf("examples: %v, %v", examples, err)
	}
	dir := t.TempDir()
	main := filepath.Join(dir, "flatd.toml")
	if err := os.Mkdir(main+".d", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(main, []byte(packaging.Config), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, example := range examples {
		if _, err := config.Load(example); err != nil {
			t.Error(err)
		}
		if err := os.WriteFile(filepath.Join(main+".d", filepath.Base(example)), []byte(readFile(t, example)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := config.Load(main); err != nil {
		t.Error(err)
	}
}
