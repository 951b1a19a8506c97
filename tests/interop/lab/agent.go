package lab

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"

	"tailscale.com/client/local"
	"tailscale.com/ipn/ipnstate"
)

// Agent is a running tailrace daemon in a namespace of its own.
type Agent struct {
	*Process
	// Namespace is where it runs; sockets made there use its overlay device.
	Namespace *Namespace
	// Local is the official client's library on the agent's local API.
	Local *local.Client

	bin    string
	state  string
	socket string
	args   []string
}

// StartAgent starts a daemon that is logged out, in a namespace on the lab's network.
func StartAgent(t testing.TB) *Agent {
	t.Helper()
	return StartAgentIn(t, NewNamespace(t))
}

// StartAgentIn is [StartAgent] in a given namespace.
func StartAgentIn(t testing.TB, ns *Namespace) *Agent {
	t.Helper()
	a := &Agent{bin: binary(t, "tailrace"), Namespace: ns, state: t.TempDir()}
	a.socket = filepath.Join(a.state, "tailrace.sock")
	a.Local = &local.Client{Socket: a.socket, UseSocketOnly: true}
	a.args = []string{
		"daemon",
		"--state-dir", a.state,
		"--socket", a.socket,
		// Names of pinned objects come from the device's, and are shared by all namespaces.
		"--device", "it" + a.Namespace.name[len("interop-"):],
	}
	a.Start(t)
	return a
}

// Start starts the daemon again after it was ended, with the same state.
func (a *Agent) Start(t testing.TB) {
	t.Helper()
	a.Process = start(t, a.Namespace, a.bin, a.args...)
	Eventually(t, "the agent's local API answers", func() error {
		if err := a.Exited(); err != nil {
			t.Fatal(err)
		}
		_, err := a.Local.StatusWithoutPeers(t.Context())
		return err
	})
}

// Run runs a command of the agent's CLI and returns what it prints.
func (a *Agent) Run(args ...string) (string, error) {
	return run(a.Namespace, a.bin, append([]string{"--socket", a.socket}, args...)...)
}

// Up joins the control server with an auth key, under a host name, and waits until the agent says it is up.
func (a *Agent) Up(t testing.TB, c *Control, hostname, authKey string) {
	t.Helper()
	_, err := a.Run("up", "--login-server", c.URL(), "--hostname", hostname, "--auth-key", authKey, "--timeout", fmt.Sprintf("%ds", int(Patience.Seconds())))
	if err != nil {
		t.Fatal(err)
	}
}

// Status returns what the agent's local API says.
func (a *Agent) Status(t testing.TB) *ipnstate.Status {
	t.Helper()
	status, err := a.Local.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return status
}

// Addr returns the agent's overlay IPv4 address.
func (a *Agent) Addr(t testing.TB) netip.Addr {
	t.Helper()
	return firstAddr(t, a.Status(t))
}

// firstAddr returns the first overlay address of a status, which is IPv4.
func firstAddr(t testing.TB, status *ipnstate.Status) netip.Addr {
	t.Helper()
	if len(status.TailscaleIPs) == 0 {
		t.Fatal(fmt.Errorf("no overlay addresses in state %s", status.BackendState))
	}
	return status.TailscaleIPs[0]
}
