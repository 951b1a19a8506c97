package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// binDirEnv names the folder that holds our programs; without it, cargo's debug folder of this repository.
const binDirEnv = "TAILRACE_BIN_DIR"

// Skip ends the test as skipped and prints why on a line of its own.
func Skip(t testing.TB, format string, args ...any) {
	t.Helper()
	reason := fmt.Sprintf(format, args...)
	fmt.Printf("SKIP %s: %s\n", t.Name(), reason)
	t.Skip(reason)
}

// binary returns the path of one of our programs, or skips the test where it is not built.
func binary(t testing.TB, name string) string {
	t.Helper()
	dir := os.Getenv(binDirEnv)
	if dir == "" {
		dir = "../../target/debug"
	}
	path, err := filepath.Abs(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		Skip(t, "%s is not built: run `cargo build` or set %s", name, binDirEnv)
	}
	return path
}

// NeedNamespaces skips the test where network namespaces cannot be made.
func NeedNamespaces(t testing.TB) {
	t.Helper()
	if reason := namespacesMissing(); reason != "" {
		Skip(t, "%s", reason)
	}
}

// namespacesMissing says why this process cannot make network namespaces, or nothing if it can.
func namespacesMissing() string {
	if os.Geteuid() != 0 {
		return "network namespaces need root"
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return "ip (iproute2) is not installed"
	}
	return ""
}
