package interop

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tailrace.dev/interop/lab"
	"tailscale.com/ipn/ipnstate"
	"tailscale.com/tailcfg"
)

// within is how long a path may take to become direct: one way in which it may fail is to be tried again
// after five seconds, by both sides.
const within = 15 * time.Second

// watched is how long nodes are watched that must stay on the relay: longer than one round of tries.
const watched = 7 * time.Second

// housed are an agent and an official node, each behind a router of its own.
type housed struct {
	agent    *lab.Agent
	official *lab.NodeProcess
	sites    map[string]*lab.Site // by who is there
}

// house puts both behind routers of these kinds.
func house(t *testing.T, control *lab.Control, agent, official lab.NAT) housed {
	t.Helper()
	internet := lab.NewInternet(t)
	h := housed{sites: map[string]*lab.Site{
		"agent":    internet.NewSite(t, agent),
		"official": internet.NewSite(t, official),
	}}
	h.agent = lab.StartAgentIn(t, h.sites["agent"].Host)
	h.agent.Up(t, control, "agent", control.NewKey(t))
	h.official = lab.JoinNodeIn(t, h.sites["official"].Host, control, "official")
	return h
}

// seen has each side report what it knows of the other.
func (h *housed) seen() map[string]watcher {
	return map[string]watcher{"agent": h.official, "official": h.agent}
}

func TestPathsThroughRouters(t *testing.T) {
	ownRelay := func(t *testing.T) *lab.Control { return lab.StartControl(t) }
	derper := func(t *testing.T) *lab.Control {
		return lab.StartControlWithMap(t, lab.StartOfficialDERP(t).Map())
	}
	for _, c := range []struct {
		name            string
		control         func(*testing.T) *lab.Control
		agent, official lab.NAT
	}{
		{"home routers, our relay", ownRelay, lab.PortRestricted, lab.PortRestricted},
		{"home routers, official relay", derper, lab.PortRestricted, lab.PortRestricted},
		{"official node behind a symmetric one, our relay", ownRelay, lab.Restricted, lab.Symmetric},
		{"agent behind a symmetric one, official relay", derper, lab.Symmetric, lab.Restricted},
	} {
		for _, initiator := range []string{"agent", "official"} {
			t.Run(c.name+", begun by "+initiator, func(t *testing.T) {
				h := house(t, c.control(t), c.agent, c.official)
				h.becomeDirect(t, initiator)

				before := h.official.DiscoKey(t)
				h.official.Kill()
				h.official.Start(t)
				if after := h.official.DiscoKey(t); after == before {
					t.Fatalf("the official node still has the disco key %s", before)
				}
				h.becomeDirect(t, initiator)
			})
		}
	}
}

// TestRoutersThatAllowNoDirectPath shows that it is the routers which the other tests are about.
func TestRoutersThatAllowNoDirectPath(t *testing.T) {
	h := house(t, lab.StartControl(t), lab.Symmetric, lab.PortRestricted)
	h.knowEachOther(t)
	for begin := time.Now(); time.Since(begin) < watched; {
		for _, from := range []string{"agent", "official"} {
			if err := h.send(t, from); err != nil {
				t.Fatal(err)
			}
		}
		for hostname, of := range h.seen() {
			if err := h.isDirect(t, of, hostname); err == nil {
				t.Fatalf("%s is reached directly", hostname)
			}
		}
	}
}

// blockDisco has a router let no disco in, whose datagrams begin with its magic; WireGuard's pass.
const blockDisco = `table ip block {
	chain forward { type filter hook forward priority -10
		iifname wan meta l4proto udp @th,64,48 0x5453f09f92ac drop
	}
}`

// countCopies counts what comes in of WireGuard's data, straight from an address and from a relay.
const countCopies = `table ip copies {
	counter straight { }
	counter relayed { }
	chain forward { type filter hook forward priority -10
		iifname wan ip saddr %v meta l4proto udp @th,64,32 0x04000000 counter name straight
		iifname wan ip saddr %v tcp sport %d meta length > 120 counter name relayed
	}
}`

// TestWhatAnOfficialNodeSendsBothWaysNeverMovesTheEndpoint has an official node that does not trust its path
// send by the relay as well, to an agent whose endpoint for it was chosen by hand.
func TestWhatAnOfficialNodeSendsBothWaysNeverMovesTheEndpoint(t *testing.T) {
	const enough = 5
	relay := lab.StartOfficialDERP(t)
	h := house(t, lab.StartControlWithMap(t, relay.Map()), lab.PortRestricted, lab.PortRestricted)
	h.becomeDirect(t, "official")
	endpoint := h.endpoint(t)
	if _, err := h.agent.Run("debug", "endpoint", h.official.Addr(t).String(), endpoint); err != nil {
		t.Fatal(err)
	}
	site := h.sites["agent"]
	site.Rules(t, fmt.Sprintf(countCopies, h.sites["official"].Public, relay.Addr().Addr(), relay.Addr().Port()))
	h.sites["official"].Rules(t, blockDisco)

	// For a while it sends straight, then both ways, and when its pings are given up by the relay only.
	both := 0
	counted := func() (straight, relayed int) {
		return site.Counted(t, "copies", "straight"), site.Counted(t, "copies", "relayed")
	}
	lab.Eventually(t, "it has sent both ways, and no longer does", func() error {
		straight, relayed := counted()
		if err := h.send(t, "official"); err != nil {
			return err
		}
		straightAfter, relayedAfter := counted()
		if now := h.endpoint(t); now != endpoint {
			t.Fatalf("the official node's endpoint is %q, was %q", now, endpoint)
		}
		switch {
		case straightAfter > straight && relayedAfter > relayed:
			both++
		case both >= enough && straightAfter == straight:
			return nil
		}
		return fmt.Errorf("%d were sent both ways; straight %d, relayed %d", both, straightAfter, relayedAfter)
	})
	t.Logf("%d were sent both ways", both)
}

// endpoint is where the agent reaches the official node.
func (h *housed) endpoint(t *testing.T) string {
	t.Helper()
	peer, err := lab.Peer(h.agent.Status(t), "official")
	if err != nil {
		t.Fatal(err)
	}
	return peer.CurAddr
}

// knowEachOther waits until each side knows the other's relay, and that it is there.
func (h *housed) knowEachOther(t *testing.T) {
	t.Helper()
	for hostname, of := range h.seen() {
		expectPeer(t, of, hostname, func(peer *ipnstate.PeerStatus) error {
			if peer.Relay == "" {
				return fmt.Errorf("no relay is known")
			}
			return online(peer)
		})
	}
}

// becomeDirect has one side send until both say that they reach the other directly, and answer disco there.
func (h *housed) becomeDirect(t *testing.T, initiator string) {
	t.Helper()
	h.knowEachOther(t)
	begin := time.Now()
	lab.Eventually(t, "both are direct", func() error {
		if err := h.send(t, initiator); err != nil {
			return err
		}
		for hostname, of := range h.seen() {
			if err := h.isDirect(t, of, hostname); err != nil {
				return err
			}
		}
		return nil
	})
	took := time.Since(begin)
	t.Logf("both direct within %v of the first packet", took)
	if took > lab.Promised(t, within) {
		t.Errorf("it took %v", took)
	}
	// What is left of an earlier path is not taken for one: these are sealed to the other's disco key.
	lab.Eventually(t, "the agent pings the official node", func() error {
		out, err := h.agent.Run("ping", "official", "-c", "1")
		if err == nil && !strings.Contains(out, " via "+h.sites["official"].Public.String()) {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
	result, err := h.official.Local.Ping(lab.Context(t), h.agent.Addr(t), tailcfg.PingDisco)
	if err != nil || result.Err != "" || !strings.HasPrefix(result.Endpoint, h.sites["agent"].Public.String()+":") {
		t.Errorf("the official node pings the agent: %v %+v", err, result)
	}
}

// send sends one packet through the tunnel, from one side to the other, and waits for its answer.
func (h *housed) send(t *testing.T, from string) error {
	if from == "agent" {
		_, err := h.agent.Run("ping", h.official.Addr(t).String(), "--icmp", "-c", "1")
		return err
	}
	result, err := h.official.Local.Ping(lab.Context(t), h.agent.Addr(t), tailcfg.PingICMP)
	if err == nil && result.Err != "" {
		err = fmt.Errorf("%s", result.Err)
	}
	return err
}

// isDirect checks that a side reaches a peer at the peer's router.
func (h *housed) isDirect(t *testing.T, of watcher, hostname string) error {
	peer, err := lab.Peer(of.Status(t), hostname)
	if err != nil {
		return err
	}
	if peer.CurAddr == "" {
		return fmt.Errorf("%s is reached by relay %q", hostname, peer.Relay)
	}
	addr, err := netip.ParseAddrPort(peer.CurAddr)
	if err != nil {
		return err
	}
	if public := h.sites[hostname].Public; addr.Addr() != public {
		return fmt.Errorf("%s is reached at %v, not %v", hostname, addr, public)
	}
	return nil
}
