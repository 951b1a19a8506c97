package lab

import (
	"os"
	"path/filepath"
	"testing"
)

// StartControlWithPolicy starts a control server that takes its policy from a file.
func StartControlWithPolicy(t testing.TB, file string) *Control {
	t.Helper()
	return startControl(t, append(embeddedRelay(t), "--policy", file)...)
}

// SetPolicy puts a policy in force.
func (c *Control) SetPolicy(t testing.TB, policy string) {
	t.Helper()
	c.Run(t, "policy", "set", WriteFile(t, "policy.hujson", policy))
}

// WriteFile writes a file into a folder that goes with the test, and returns its path.
func WriteFile(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
