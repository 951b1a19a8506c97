package lab

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"tailscale.com/client/local"
	"tailscale.com/ipn/ipnstate"
	"tailscale.com/tsnet"
)

// Node is an official node, with a network stack of its own inside the test process.
type Node struct {
	*tsnet.Server
	// Local is its local API.
	Local *local.Client

	log     officialLog
	dialled sync.Mutex // held while another node connects to it
}

// NodeOptions say how an official node joins.
type NodeOptions struct {
	Hostname string
	// AuthKey may be empty: then the node waits for an interactive login.
	AuthKey string
	// Dir is where its state lives; a fresh folder if empty.
	Dir       string
	Ephemeral bool
	Tags      []string
}

// StartNode starts an official node that joins c, without waiting for it.
func StartNode(t testing.TB, c *Control, options NodeOptions) *Node {
	t.Helper()
	if options.Dir == "" {
		options.Dir = t.TempDir()
	}
	n := &Node{}
	n.Server = &tsnet.Server{
		Dir:           options.Dir,
		Hostname:      options.Hostname,
		AuthKey:       options.AuthKey,
		Ephemeral:     options.Ephemeral,
		AdvertiseTags: options.Tags,
		ControlURL:    c.URL(),
		Logf:          n.log.printf,
		UserLogf:      n.log.printf,
	}
	if err := n.Start(); err != nil {
		t.Fatalf("official node %s: %v", options.Hostname, err)
	}
	t.Cleanup(func() {
		// A test may have closed it already.
		_ = n.Close()
		if t.Failed() {
			t.Logf("end of the log of official node %s:\n%s", options.Hostname, n.log.tail(shownLog))
		}
	})
	var err error
	if n.Local, err = n.LocalClient(); err != nil {
		t.Fatal(err)
	}
	return n
}

// JoinNode starts an official node with a fresh auth key and waits until it runs.
func JoinNode(t testing.TB, c *Control, hostname string) *Node {
	t.Helper()
	n := StartNode(t, c, NodeOptions{Hostname: hostname, AuthKey: c.NewKey(t)})
	n.AwaitRunning(t)
	return n
}

// AwaitRunning waits until the node is in the tailnet and returns its status.
func (n *Node) AwaitRunning(t testing.TB) *ipnstate.Status {
	t.Helper()
	status, err := n.Up(Context(t))
	if err != nil {
		t.Fatalf("official node %s does not come up: %v", n.Hostname, err)
	}
	return status
}

// Status returns what the node knows, peers included.
func (n *Node) Status(t testing.TB) *ipnstate.Status {
	t.Helper()
	status, err := n.Local.Status(Context(t))
	if err != nil {
		t.Fatal(err)
	}
	return status
}

// Addr returns the node's overlay IPv4 address.
func (n *Node) Addr(t testing.TB) netip.Addr {
	t.Helper()
	return firstAddr(t, n.Status(t))
}

// Peer finds a peer by host name in a status.
func Peer(status *ipnstate.Status, hostname string) (*ipnstate.PeerStatus, error) {
	var names []string
	for _, peer := range status.Peer {
		if peer.HostName == hostname {
			return peer, nil
		}
		names = append(names, peer.HostName)
	}
	return nil, fmt.Errorf("no peer %q among %q", hostname, names)
}

// officialLog keeps what an official node logs, for a test that fails. Nodes log a little after their test
// has ended, when testing.T's own log panics.
type officialLog struct {
	mu   sync.Mutex
	text strings.Builder
}

// printf adds a line.
func (l *officialLog) printf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(&l.text, format, args...)
	if !strings.HasSuffix(l.text.String(), "\n") {
		l.text.WriteByte('\n')
	}
}

// tail returns the last n bytes.
func (l *officialLog) tail(n int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := l.text.String()
	return text[max(0, len(text)-n):]
}
