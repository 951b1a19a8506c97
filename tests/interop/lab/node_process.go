package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"tailscale.com/client/local"
	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnstate"
	"tailscale.com/tsnet"
)

// nodeEnv marks a process that is nothing but an official node, and says which.
const nodeEnv = "TAILRACE_INTEROP_NODE"

// NodeProcess is an official node with a process of its own, which may be in a namespace and be killed.
type NodeProcess struct {
	*Process
	// Local is its local API.
	Local *local.Client

	namespace *Namespace
	run       nodeRun
}

// nodeRun is what the process is told.
type nodeRun struct {
	Dir, Hostname, AuthKey, ControlURL, Socket string
}

// JoinNodeIn starts an official node in a namespace, with a fresh auth key, and waits until it runs.
func JoinNodeIn(t testing.TB, ns *Namespace, c *Control, hostname string) *NodeProcess {
	t.Helper()
	dir := t.TempDir()
	n := &NodeProcess{namespace: ns, run: nodeRun{
		Dir:        dir,
		Hostname:   hostname,
		AuthKey:    c.NewKey(t),
		ControlURL: c.URL(),
		Socket:     filepath.Join(dir, "local.sock"),
	}}
	n.Local = &local.Client{Socket: n.run.Socket, UseSocketOnly: true}
	n.Start(t)
	return n
}

// Start starts the node again after it was killed, with the same state, and waits until it runs.
func (n *NodeProcess) Start(t testing.TB) {
	t.Helper()
	told, err := json.Marshal(n.run)
	if err != nil {
		t.Fatal(err)
	}
	n.Process = start(t, n.namespace, "/usr/bin/env", nodeEnv+"="+string(told), self(t))
	Eventually(t, "the official node runs", func() error {
		if err := n.Exited(); err != nil {
			t.Fatal(err)
		}
		status, err := n.Local.StatusWithoutPeers(t.Context())
		if err == nil && status.BackendState != ipn.Running.String() {
			err = fmt.Errorf("its state is %s", status.BackendState)
		}
		return err
	})
}

// self is the path of the test binary.
func self(t testing.TB) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Status returns what the node knows, peers included.
func (n *NodeProcess) Status(t testing.TB) *ipnstate.Status {
	t.Helper()
	status, err := n.Local.Status(Context(t))
	if err != nil {
		t.Fatal(err)
	}
	return status
}

// Addr returns the node's overlay IPv4 address.
func (n *NodeProcess) Addr(t testing.TB) netip.Addr {
	t.Helper()
	return firstAddr(t, n.Status(t))
}

// discoKeyLine is how the official client logs its disco key, shortened, when it starts.
var discoKeyLine = regexp.MustCompile(`magicsock: disco key = (d:[0-9a-f]+)`)

// DiscoKey returns the disco key that the process took, in the short form in which it is logged.
func (n *NodeProcess) DiscoKey(t testing.TB) string {
	t.Helper()
	found := discoKeyLine.FindSubmatch(n.Log())
	if found == nil {
		t.Fatal("the official node does not log its disco key")
	}
	return string(found[1])
}

// runNode is the process: it serves the node's local API on a socket until it is killed.
func runNode(told string) error {
	var run nodeRun
	if err := json.Unmarshal([]byte(told), &run); err != nil {
		return err
	}
	logf := func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, format+"\n", args...)
	}
	server := &tsnet.Server{
		Dir:        run.Dir,
		Hostname:   run.Hostname,
		AuthKey:    run.AuthKey,
		ControlURL: run.ControlURL,
		Port:       nodePort,
		Logf:       logf,
		UserLogf:   logf,
	}
	if err := server.Start(); err != nil {
		return err
	}
	client, err := server.LocalClient()
	if err != nil {
		return err
	}
	// A killed one leaves its socket behind.
	if err := os.Remove(run.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", run.Socket)
	if err != nil {
		return err
	}
	return http.Serve(listener, &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", "local-tailscaled.sock"
			r.Out.RequestURI = ""
		},
		Transport: roundTripper(client.DoLocalRequest),
	})
}

// roundTripper makes a function one.
type roundTripper func(*http.Request) (*http.Response, error)

// RoundTrip implements [http.RoundTripper].
func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	return f(r)
}
