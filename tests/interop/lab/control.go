package lab

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tailscale.com/tailcfg"
)

// User owns the nodes of a test.
const User = "lab"

// Control is a running tailrace-control, by default with its own relay.
type Control struct {
	*Process
	// Addr is where it serves plain HTTP.
	Addr netip.AddrPort

	bin   string
	state string
	args  []string
}

// StartControl starts a control server that embeds a relay, and makes the user of the test.
func StartControl(t testing.TB) *Control {
	t.Helper()
	return startControl(t, embeddedRelay(t)...)
}

// embeddedRelay returns the arguments that make a control server embed a relay.
func embeddedRelay(t testing.TB) []string {
	return []string{"--derp-listen", freePort(t).String(), "--stun-listen", freePort(t).String()}
}

// StartControlWithMap starts a control server without a relay, which hands out the given DERP map.
func StartControlWithMap(t testing.TB, derpMap *tailcfg.DERPMap) *Control {
	t.Helper()
	raw, err := json.Marshal(derpMap)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "derp-map.json")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return startControl(t, "--no-derp", "--derp-map", file)
}

// startControl starts a control server with further arguments.
func startControl(t testing.TB, extra ...string) *Control {
	t.Helper()
	c := &Control{Addr: freePort(t), bin: binary(t, "tailrace-control"), state: t.TempDir()}
	c.args = append([]string{
		"serve",
		"--state-dir", c.state,
		"--listen", c.Addr.String(),
		"--server-url", c.URL(),
	}, extra...)
	c.Start(t)
	c.Run(t, "users", "create", User)
	return c
}

// Start starts the server again after it was killed, on the same addresses with the same state.
func (c *Control) Start(t testing.TB) {
	t.Helper()
	c.Process = start(t, nil, c.bin, c.args...)
	Eventually(t, "control is healthy", func() error {
		if err := c.Exited(); err != nil {
			t.Fatal(err)
		}
		resp, err := http.Get(c.URL() + "/health")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("health: %s", resp.Status)
		}
		return nil
	})
}

// URL returns the login server that nodes are pointed at.
func (c *Control) URL() string {
	return "http://" + c.Addr.String()
}

// Run runs an admin command and returns what it prints.
func (c *Control) Run(t testing.TB, args ...string) string {
	t.Helper()
	out, err := c.TryRun(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TryRun runs an admin command that may fail; the error carries what it says.
func (c *Control) TryRun(args ...string) (string, error) {
	out, err := run(nil, c.bin, append([]string{"--state-dir", c.state}, args...)...)
	return strings.TrimSpace(out), err
}

// NewKey makes an auth key of the test's user; extra arguments go to `keys create`.
func (c *Control) NewKey(t testing.TB, extra ...string) string {
	t.Helper()
	return c.NewKeyOf(t, User, extra...)
}

// NewKeyOf makes an auth key of a user; extra arguments go to `keys create`.
func (c *Control) NewKeyOf(t testing.TB, user string, extra ...string) string {
	t.Helper()
	return c.Run(t, append([]string{"keys", "create", "--user", user}, extra...)...)
}
