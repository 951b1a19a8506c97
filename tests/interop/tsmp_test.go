package interop

import (
	"strings"
	"testing"

	"tailrace.dev/interop/lab"
	"tailscale.com/tailcfg"
)

func TestAgentsAnswerEachOtherInsideTheTunnel(t *testing.T) {
	n := join(t, lab.StartControl(t))

	t.Run("the official node asks", func(t *testing.T) {
		for _, addr := range n.agent.Status(t).TailscaleIPs {
			result, err := n.node.Local.Ping(lab.Context(t), addr, tailcfg.PingTSMP)
			if err != nil || result.Err != "" {
				t.Errorf("TSMP ping of %v: %v %+v", addr, err, result)
			} else if result.PeerAPIPort != 0 {
				t.Errorf("the agent claims a PeerAPI on port %d", result.PeerAPIPort)
			}
		}
	})
	t.Run("the agent asks", func(t *testing.T) {
		for _, addr := range n.node.Status(t).TailscaleIPs {
			out, err := n.agent.Run("ping", addr.String(), "--tsmp", "-c", "1")
			if err != nil || !strings.HasPrefix(out, "pong from official (") || !strings.Contains(out, " via TSMP in ") {
				t.Errorf("TSMP ping of %v: %v\n%s", addr, err, out)
			}
		}
	})
	t.Run("official tools ask the agent's local API", func(t *testing.T) {
		result, err := n.agent.Local.Ping(lab.Context(t), n.node.Addr(t), tailcfg.PingTSMP)
		if err != nil || result.Err != "" || result.LatencySeconds <= 0 {
			t.Errorf("TSMP ping: %v %+v", err, result)
		}
	})
	t.Run("the official node's PeerAPI answers", func(t *testing.T) {
		out, err := n.agent.Run("ping", "official", "--peerapi", "-c", "1")
		if err != nil || !strings.HasPrefix(out, "hit peerapi of official (") {
			t.Errorf("%v\n%s", err, out)
		}
	})
}
