package interop

import (
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"tailrace.dev/interop/lab"
	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnstate"
)

func TestPeersComeAndGo(t *testing.T) {
	control := lab.StartControl(t)
	witness := lab.JoinNode(t, control, "witness")
	peer := lab.JoinNode(t, control, "peer")

	expectPeer(t, witness, "peer", online)
	expectPeer(t, peer, "witness", online)

	if err := peer.Close(); err != nil {
		t.Fatal(err)
	}
	expectPeer(t, witness, "peer", func(p *ipnstate.PeerStatus) error {
		if p.Online || p.LastSeen.IsZero() {
			return fmt.Errorf("online %v, last seen %v", p.Online, p.LastSeen)
		}
		return nil
	})

	control.Run(t, "nodes", "delete", "peer")
	expectNoPeer(t, witness, "peer")
}

func TestARenamedPeerIsKnownByItsNewName(t *testing.T) {
	control := lab.StartControl(t)
	witness := lab.JoinNode(t, control, "witness")
	lab.JoinNode(t, control, "peer")
	expectPeer(t, witness, "peer", online)

	control.Run(t, "nodes", "rename", "peer", "renamed")
	expectPeer(t, witness, "peer", func(p *ipnstate.PeerStatus) error {
		if !strings.HasPrefix(p.DNSName, "renamed.") {
			return fmt.Errorf("its DNS name is %q", p.DNSName)
		}
		return nil
	})
}

func TestAnExpiredNodeMustLogInAgain(t *testing.T) {
	control := lab.StartControl(t)
	witness := lab.JoinNode(t, control, "witness")
	peer := lab.JoinNode(t, control, "peer")
	expectPeer(t, witness, "peer", online)

	control.Run(t, "nodes", "expire", "peer")
	expectPeer(t, witness, "peer", func(p *ipnstate.PeerStatus) error {
		if !p.Expired {
			return fmt.Errorf("not expired, key expiry %v", p.KeyExpiry)
		}
		return nil
	})
	lab.Eventually(t, "the expired node asks for a login", func() error {
		if state := peer.Status(t).BackendState; state != ipn.NeedsLogin.String() {
			return fmt.Errorf("its state is %s", state)
		}
		return nil
	})
}

func TestNodesReachEachOtherByName(t *testing.T) {
	control := lab.StartControl(t)
	server := lab.JoinNode(t, control, "server")
	client := lab.JoinNode(t, control, "client")
	expectPeer(t, client, "server", online)

	listener, err := server.Listen("tcp", ":7")
	if err != nil {
		t.Fatal(err)
	}
	go echoStreams(listener)
	conn, err := client.Dial(lab.Context(t), "tcp", "server:7")
	if err != nil {
		t.Fatal(err)
	}
	expectEcho(t, conn)
}

func TestNodesOutliveTheirControlServer(t *testing.T) {
	control := lab.StartControl(t)
	old, peer := lab.JoinNode(t, control, "old"), lab.JoinNode(t, control, "peer")
	before := old.Status(t).TailscaleIPs
	listener, err := peer.Listen("tcp", ":7")
	if err != nil {
		t.Fatal(err)
	}
	go echoStreams(listener)

	// At once, so that what the nodes reported may not be on disk yet.
	control.Kill()
	control.Start(t)

	lab.JoinNode(t, control, "new")
	expectPeer(t, old, "new", online)
	expectPeer(t, old, "peer", atRelay(peer.Status(t).Self.Relay))
	conn, err := old.Dial(lab.Context(t), "tcp", "peer:7")
	if err != nil {
		t.Fatal(err)
	}
	expectEcho(t, conn)
	if after := old.Status(t).TailscaleIPs; !slices.Equal(after, before) {
		t.Errorf("addresses are %v, were %v", after, before)
	}
}

// watcher is whatever can say what it knows of its tailnet.
type watcher interface {
	Status(t testing.TB) *ipnstate.Status
}

// expectPeer waits until a node knows a peer by its host name, and check is content with it.
func expectPeer(t *testing.T, of watcher, hostname string, check func(*ipnstate.PeerStatus) error) {
	t.Helper()
	lab.Eventually(t, "the status shows "+hostname+" as it should", func() error {
		peer, err := lab.Peer(of.Status(t), hostname)
		if err != nil {
			return err
		}
		return check(peer)
	})
}

// expectNoPeer waits until a node does not know a peer any more.
func expectNoPeer(t *testing.T, of watcher, hostname string) {
	t.Helper()
	lab.Eventually(t, hostname+" is forgotten", func() error {
		if _, err := lab.Peer(of.Status(t), hostname); err != nil {
			return nil
		}
		return fmt.Errorf("still there")
	})
}

// online is a check of expectPeer.
func online(peer *ipnstate.PeerStatus) error {
	if !peer.Online {
		return fmt.Errorf("it is offline")
	}
	return nil
}

// echoStreams sends back what comes in on each connection, until the listener is closed.
func echoStreams(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go echoStream(conn)
	}
}

// echoStream sends back what comes in on a connection.
func echoStream(conn net.Conn) {
	defer conn.Close()
	// How a connection ends is for its other side to judge.
	_, _ = io.Copy(conn, conn)
}

// expectEcho sends more than fits in one packet and checks that it comes back, then closes the connection.
func expectEcho(t *testing.T, conn net.Conn) {
	t.Helper()
	defer conn.Close()
	deadline, _ := lab.Context(t).Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		t.Fatal(err)
	}
	sent := strings.Repeat("overlay ", 8<<10)
	go func() {
		// The reader below notices what is missing.
		_, _ = io.WriteString(conn, sent)
	}()
	got := make([]byte, len(sent))
	if n, err := io.ReadFull(conn, got); err != nil {
		t.Fatalf("echo ends after %d of %d bytes: %v", n, len(sent), err)
	}
	if string(got) != sent {
		t.Error("echo differs from what was sent")
	}
}
