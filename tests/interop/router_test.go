package interop

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tailrace.dev/interop/lab"
	"tailscale.com/ipn"
	"tailscale.com/net/tsaddr"
)

// routerPolicy lets everybody reach web servers behind the router and the outside, and nothing else there.
const routerPolicy = `{"acls": [
	{"action": "accept", "src": ["*"], "dst": ["10.77.1.0/24:80", "fd77:1::/64:80", "autogroup:internet:443"]},
]}`

// refusedFor is how long a connection must go unanswered to count as refused: several SYNs.
const refusedFor = 4 * time.Second

// TestOfficialNodeThroughOurRouter has an official node reach a host behind the agent, and the outside through it.
func TestOfficialNodeThroughOurRouter(t *testing.T) {
	control := lab.StartControl(t)
	n := join(t, control)
	control.SetPolicy(t, routerPolicy)
	lan := lab.NewLAN(t, n.agent.Namespace)
	for _, port := range []uint16{80, 81, 443, 444} {
		listener, err := lan.Host.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		go echoStreams(listener)
	}

	t.Run("to a host in its subnet", func(t *testing.T) {
		n.routeThroughAgent(t, "--advertise-routes="+joined(lab.LANPrefixes), lab.LANPrefixes...)
		n.prefer(t, ipn.MaskedPrefs{Prefs: ipn.Prefs{RouteAll: true}, RouteAllSet: true})
		for _, addr := range lan.Addrs {
			n.expectThrough(t, netip.AddrPortFrom(addr, 80))
			n.expectRefused(t, netip.AddrPortFrom(addr, 81))
		}
	})
	t.Run("to the outside by the exit node", func(t *testing.T) {
		n.routeThroughAgent(t, "--advertise-exit-node", tsaddr.AllIPv4(), tsaddr.AllIPv6())
		expectPeer(t, n.node, "agent", isExitNode(true))
		exit := n.agent.Status(t).Self.ID
		n.prefer(t, ipn.MaskedPrefs{Prefs: ipn.Prefs{ExitNodeID: exit}, ExitNodeIDSet: true})
		for _, addr := range lan.Outside {
			n.expectThrough(t, netip.AddrPortFrom(addr, 443))
			n.expectRefused(t, netip.AddrPortFrom(addr, 444))
		}
	})
}

// routeThroughAgent has the agent offer routes with a flag, and control approve them.
func (n *tailnet) routeThroughAgent(t *testing.T, flag string, routes ...netip.Prefix) {
	t.Helper()
	if _, err := n.agent.Run("set", flag, "--enable-ip-forward"); err != nil {
		t.Fatal(err)
	}
	for _, route := range routes {
		lab.Eventually(t, fmt.Sprintf("control approves %v", route), func() error {
			_, err := n.control.TryRun("nodes", "routes", "approve", "agent", route.String())
			return err
		})
	}
}

// prefer edits the official node's preferences.
func (n *tailnet) prefer(t *testing.T, prefs ipn.MaskedPrefs) {
	t.Helper()
	if _, err := n.node.Local.EditPrefs(lab.Context(t), &prefs); err != nil {
		t.Fatal(err)
	}
}

// expectThrough waits until the official node reaches an echo behind the agent.
func (n *tailnet) expectThrough(t *testing.T, to netip.AddrPort) {
	t.Helper()
	lab.Eventually(t, fmt.Sprintf("the official node reaches %v", to), func() error {
		ctx, cancel := context.WithTimeout(t.Context(), refusedFor)
		defer cancel()
		conn, err := n.node.Dial(ctx, "tcp", to.String())
		if err != nil {
			return err
		}
		defer conn.Close()
		return echoed(ctx, conn)
	})
}

// expectRefused checks that the agent lets no connection pass to a port where an echo would answer.
func (n *tailnet) expectRefused(t *testing.T, to netip.AddrPort) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), refusedFor)
	defer cancel()
	conn, err := n.node.Dial(ctx, "tcp", to.String())
	if err == nil {
		conn.Close()
		t.Errorf("the official node reaches %v, which the policy forbids", to)
	}
}

// joined lists prefixes as flags do.
func joined(prefixes []netip.Prefix) string {
	texts := make([]string, len(prefixes))
	for i, prefix := range prefixes {
		texts[i] = prefix.String()
	}
	return strings.Join(texts, ",")
}
