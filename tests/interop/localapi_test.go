package interop

import (
	"testing"

	"tailrace.dev/interop/lab"
	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnstate"
	"tailscale.com/tailcfg"
)

// Tools written for the official client work on the agent, as far as their requests mean something to it.
func (n *tailnet) useOfficialTools(t *testing.T) {
	ctx := lab.Context(t)
	local, nodeAddr := n.agent.Local, n.node.Addr(t)

	prefs, err := local.GetPrefs(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if prefs.ControlURL != n.control.URL() || prefs.Hostname != "agent" || !prefs.WantRunning {
		t.Errorf("preferences are %v", prefs.Pretty())
	}

	who, err := local.WhoIs(ctx, nodeAddr.String())
	if err != nil {
		t.Fatal(err)
	}
	if name := n.node.Status(t).Self.DNSName; who.Node.Name != name || who.UserProfile == nil || who.UserProfile.LoginName == "" {
		t.Errorf("%v belongs to %q of %+v, want %q of some user", nodeAddr, who.Node.Name, who.UserProfile, name)
	}

	for _, kind := range []tailcfg.PingType{tailcfg.PingDisco, tailcfg.PingICMP} {
		result, err := local.Ping(ctx, nodeAddr, kind)
		if err != nil || result.Err != "" || result.LatencySeconds <= 0 {
			t.Errorf("%s ping: %v %+v", kind, err, result)
		}
	}

	if _, err := local.GetServeConfig(ctx); err != nil {
		t.Errorf("serve configuration: %v", err)
	}

	watcher, err := local.WatchIPNBus(ctx, ipn.NotifyInitialState)
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	for {
		notice, err := watcher.Next()
		if err != nil {
			t.Fatalf("waiting for the state on the bus: %v", err)
		}
		if notice.State != nil {
			if *notice.State != ipn.Running {
				t.Errorf("state on the bus is %v, want %v", *notice.State, ipn.Running)
			}
			break
		}
	}

	if _, err := local.EditPrefs(ctx, &ipn.MaskedPrefs{Prefs: ipn.Prefs{Hostname: "edited"}, HostnameSet: true}); err != nil {
		t.Fatal(err)
	}
	expectPeer(t, n.node, "edited", func(*ipnstate.PeerStatus) error { return nil })
	if _, err := local.EditPrefs(ctx, &ipn.MaskedPrefs{Prefs: ipn.Prefs{Hostname: "agent"}, HostnameSet: true}); err != nil {
		t.Fatal(err)
	}
	expectPeer(t, n.node, "agent", online)
}
