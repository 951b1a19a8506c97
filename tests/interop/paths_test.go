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
