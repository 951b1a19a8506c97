package interop

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"tailrace.dev/interop/lab"
	"tailscale.com/ipn/ipnstate"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// echoPort is where both sides serve echoes on their overlay addresses.
const echoPort = 7

// tailnet is one agent and one official node that know each other.
type tailnet struct {
	control *lab.Control
	agent   *lab.Agent
	node    *lab.Node
}

// join makes a tailnet on the given control server.
func join(t *testing.T, control *lab.Control) tailnet {
	t.Helper()
	n := tailnet{control: control, agent: lab.StartAgent(t)}
	n.node = lab.JoinNode(t, control, "official")
	n.agent.Up(t, control, "agent", control.NewKey(t))
	expectPeer(t, n.node, "agent", online)
	expectPeer(t, n.agent, "official", online)
	return n
}

func TestAgentAndOfficialNode(t *testing.T) {
	n := join(t, lab.StartControl(t))

	t.Run("they see the same names and addresses", n.seeEachOther)
	t.Run("streams cross both ways", n.exchangeStreams)
	t.Run("datagrams cross both ways", n.exchangeDatagrams)
	t.Run("pings are answered both ways", n.pingEachOther)
	t.Run("their path becomes direct both ways", n.goDirect)
	t.Run("traffic is counted", n.countTraffic)
	t.Run("official tools work on the agent", n.useOfficialTools)
	t.Run("the agent keeps its identity over kill -9", n.killAgent)
}

func TestAgentAndOfficialNodeOverAnOfficialRelay(t *testing.T) {
	relay := lab.StartOfficialDERP(t)
	n := join(t, lab.StartControlWithMap(t, relay.Map()))

	t.Run("streams cross both ways", n.exchangeStreams)
	t.Run("the agent is connected to it", func(t *testing.T) {
		status := n.agent.Status(t)
		if home := status.Self.Relay; home != "lab" {
			t.Errorf("the agent's home relay is %q, want %q", home, "lab")
		}
		if agent := status.Self.PublicKey; !relay.Server.IsClientConnectedForTest(agent) {
			t.Errorf("the relay does not know the agent %v", agent)
		}
	})
}

func TestAgentAndOfficialNodeSurviveTheirServer(t *testing.T) {
	n := join(t, lab.StartControl(t))
	n.exchangeStreams(t)

	// Control and relay are one process here.
	n.control.Kill()
	n.control.Start(t)

	n.exchangeStreams(t)
}

func TestTheAgentSeesPeersComeAndGo(t *testing.T) {
	control := lab.StartControl(t)
	n := join(t, control)
	third := lab.JoinNode(t, control, "third")
	expectPeer(t, n.agent, "third", online)
	if err := third.Close(); err != nil {
		t.Fatal(err)
	}
	control.Run(t, "nodes", "delete", "third")
	expectNoPeer(t, n.agent, "third")
}

// seeEachOther compares what each side says of itself with what the other says of it.
func (n *tailnet) seeEachOther(t *testing.T) {
	agent, node := n.agent.Status(t), n.node.Status(t)
	for _, pair := range []struct{ self, seen *ipnstate.Status }{{agent, node}, {node, agent}} {
		self := pair.self.Self
		seen, err := lab.Peer(pair.seen, self.HostName)
		if err != nil {
			t.Error(err)
			continue
		}
		if seen.DNSName != self.DNSName || seen.ID != self.ID || seen.PublicKey != self.PublicKey || seen.OS != self.OS {
			t.Errorf("%s is seen as %q %v %v on %q, is %q %v %v on %q", self.HostName,
				seen.DNSName, seen.ID, seen.PublicKey, seen.OS, self.DNSName, self.ID, self.PublicKey, self.OS)
		}
		expectOverlayAddresses(t, self.TailscaleIPs)
		if !slices.Equal(seen.TailscaleIPs, self.TailscaleIPs) {
			t.Errorf("%s is seen at %v, is at %v", self.HostName, seen.TailscaleIPs, self.TailscaleIPs)
		}
	}
	// The home relay is found after joining, and told then.
	home := agent.Self.Relay
	expectPeer(t, n.node, "agent", atRelay(home))
	expectPeer(t, n.agent, "official", atRelay(home))
	if suffix := agent.MagicDNSSuffix; suffix == "" || suffix != node.MagicDNSSuffix {
		t.Errorf("the agent's name suffix is %q, the official node's %q", suffix, node.MagicDNSSuffix)
	}
}

// atRelay is a check of expectPeer: the peer's home relay.
func atRelay(code string) func(*ipnstate.PeerStatus) error {
	return func(peer *ipnstate.PeerStatus) error {
		if peer.Relay == "" || peer.Relay != code {
			return fmt.Errorf("its relay is %q, not %q", peer.Relay, code)
		}
		return nil
	}
}

// exchangeStreams dials an echo from each side on the other, over IPv4 and IPv6.
func (n *tailnet) exchangeStreams(t *testing.T) {
	nodeAddrs, agentAddrs := n.node.Status(t).TailscaleIPs, n.agent.Status(t).TailscaleIPs

	onNode, err := n.node.Listen("tcp", ":"+strconv.Itoa(echoPort))
	if err != nil {
		t.Fatal(err)
	}
	defer onNode.Close()
	go echoStreams(onNode)
	for _, addr := range nodeAddrs {
		conn, err := n.agent.Namespace.Dial(lab.Context(t), "tcp", echoAt(addr))
		if err != nil {
			t.Fatalf("from the agent: %v", err)
		}
		expectEcho(t, conn)
	}

	for _, addr := range agentAddrs {
		onAgent, err := n.agent.Namespace.Listen("tcp", echoAt(addr))
		if err != nil {
			t.Fatal(err)
		}
		defer onAgent.Close()
		go echoStreams(onAgent)
		conn, err := n.node.Dial(lab.Context(t), "tcp", echoAt(addr))
		if err != nil {
			t.Fatalf("from the official node: %v", err)
		}
		expectEcho(t, conn)
	}
}

// exchangeDatagrams sends a datagram from each side and expects it back.
func (n *tailnet) exchangeDatagrams(t *testing.T) {
	nodeAddr, agentAddr := n.node.Addr(t), n.agent.Addr(t)

	onNode, err := n.node.ListenPacket("udp", echoAt(nodeAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer onNode.Close()
	go echoDatagrams(onNode)
	fromAgent, err := n.agent.Namespace.Dial(lab.Context(t), "udp", echoAt(nodeAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer fromAgent.Close()
	expectDatagramBack(t, fromAgent)

	onAgent, err := n.agent.Namespace.ListenPacket("udp", echoAt(agentAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer onAgent.Close()
	go echoDatagrams(onAgent)
	fromNode, err := n.node.Dial(lab.Context(t), "udp", echoAt(agentAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer fromNode.Close()
	expectDatagramBack(t, fromNode)
}

// pingEachOther pings through the tunnel and by disco over the relay.
func (n *tailnet) pingEachOther(t *testing.T) {
	agentAddr, nodeAddr := n.agent.Addr(t), n.node.Addr(t)
	for _, kind := range []tailcfg.PingType{tailcfg.PingDisco, tailcfg.PingICMP} {
		result, err := n.node.Local.Ping(lab.Context(t), agentAddr, kind)
		if err != nil || result.Err != "" {
			t.Errorf("%s ping from the official node: %v %+v", kind, err, result)
		}
	}
	for _, args := range [][]string{
		{"ping", "official", "-c", "3"},
		{"ping", nodeAddr.String(), "-c", "3", "--icmp"},
	} {
		if out, err := n.agent.Run(args...); err != nil {
			t.Errorf("from the agent: %v\n%s", err, out)
		}
	}
}

// goDirect has each side use the tunnel until it reaches the other without a relay; then both say so when
// they are pinged.
func (n *tailnet) goDirect(t *testing.T) {
	for hostname, of := range map[string]watcher{"agent": n.node, "official": n.agent} {
		lab.Eventually(t, hostname+" is reached directly", func() error {
			n.exchangeDatagrams(t)
			peer, err := lab.Peer(of.Status(t), hostname)
			if err != nil {
				return err
			}
			if peer.CurAddr == "" {
				return fmt.Errorf("by relay %q", peer.Relay)
			}
			return nil
		})
	}
	result, err := n.node.Local.Ping(lab.Context(t), n.agent.Addr(t), tailcfg.PingDisco)
	if err != nil || result.Err != "" || result.Endpoint == "" {
		t.Errorf("the official node pings the agent: %v %+v", err, result)
	}
	out, err := n.agent.Run("ping", "official", "--until-direct", "-c", "3")
	if err != nil || strings.Contains(out, "DERP") {
		t.Errorf("the agent pings the official node: %v\n%s", err, out)
	}
}

// countTraffic checks that each side has counted bytes in both directions for the other, and names its relay.
func (n *tailnet) countTraffic(t *testing.T) {
	for hostname, of := range map[string]watcher{"agent": n.node, "official": n.agent} {
		expectPeer(t, of, hostname, func(peer *ipnstate.PeerStatus) error {
			if peer.RxBytes == 0 || peer.TxBytes == 0 || peer.LastHandshake.IsZero() {
				return fmt.Errorf("received %d bytes, sent %d, last handshake %v", peer.RxBytes, peer.TxBytes, peer.LastHandshake)
			}
			return nil
		})
	}
}

// killAgent kills the agent, starts it again, and checks that it is the same node with a working tunnel.
func (n *tailnet) killAgent(t *testing.T) {
	identity := func() (key.NodePublic, []netip.Addr) {
		status := n.agent.Status(t)
		return status.Self.PublicKey, status.TailscaleIPs
	}
	keyBefore, addrsBefore := identity()
	n.agent.Kill()
	n.agent.Start(t)
	lab.Eventually(t, "the agent runs again", func() error {
		status := n.agent.Status(t)
		if status.BackendState != "Running" {
			return fmt.Errorf("its state is %s", status.BackendState)
		}
		return nil
	})
	keyAfter, addrsAfter := identity()
	if keyAfter != keyBefore || !slices.Equal(addrsAfter, addrsBefore) {
		t.Errorf("after the restart it is %v %v, was %v %v", keyAfter, addrsAfter, keyBefore, addrsBefore)
	}
	n.exchangeStreams(t)
}

// echoAt returns the address of the echo service at an overlay address.
func echoAt(addr netip.Addr) string {
	return netip.AddrPortFrom(addr, echoPort).String()
}

// echoDatagrams sends every datagram back to where it came from, until the socket is closed.
func echoDatagrams(conn net.PacketConn) {
	buffer := make([]byte, 64<<10)
	for {
		n, from, err := conn.ReadFrom(buffer)
		if err != nil {
			return
		}
		// A lost answer is sent for again.
		_, _ = conn.WriteTo(buffer[:n], from)
	}
}

// expectDatagramBack sends a datagram until it comes back: datagrams may be lost.
func expectDatagramBack(t *testing.T, conn net.Conn) {
	t.Helper()
	sent := strings.Repeat("d", 1200)
	got := make([]byte, len(sent)+1)
	lab.Eventually(t, "a datagram comes back", func() error {
		if _, err := conn.Write([]byte(sent)); err != nil {
			return err
		}
		if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		n, err := conn.Read(got)
		if err == nil && string(got[:n]) != sent {
			err = fmt.Errorf("%d other bytes came back", n)
		}
		return err
	})
}
