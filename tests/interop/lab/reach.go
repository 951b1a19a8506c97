package lab

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"tailscale.com/ipn/ipnstate"
)

var (
	// ErrRefused says that a peer's packet filter dropped a connection.
	ErrRefused = errors.New("refused by the peer's packet filter")
	// ErrNoPeer says that no peer has an address, or a route to it.
	ErrNoPeer = errors.New("no peer has the address")
	// ErrOneSided says that a node knows a peer which does not know it, as happens for a moment when a policy
	// makes them known to each other.
	ErrOneSided = errors.New("the peer does not know the node")
)

// droppedByFilter counts what a node's packet filter dropped.
const droppedByFilter = `tailscaled_inbound_dropped_packets_total{reason="acl"}`

// Connect opens a stream to an overlay address that peer has or routes. When the policy stands in the way it
// says so at once, with one of the errors above, instead of waiting for an answer that never comes.
func (n *Node) Connect(ctx context.Context, peer *Node, to netip.AddrPort) (net.Conn, error) {
	status, err := n.Local.Status(ctx)
	if err != nil {
		return nil, err
	}
	if !routed(status, to.Addr()) {
		// The dialer would leave the overlay.
		return nil, ErrNoPeer
	}
	peerStatus, err := peer.Local.Status(ctx)
	if err != nil {
		return nil, err
	}
	if other := peerStatus.Peer[status.Self.PublicKey]; other == nil || !other.InMagicSock {
		// It could not place the handshake, which WireGuard repeats only after seconds.
		return nil, ErrOneSided
	}
	// One at a time, so that what the peer drops is this connection.
	peer.dialled.Lock()
	defer peer.dialled.Unlock()
	before, err := peer.dropped(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { cancel(peer.awaitDrop(ctx, before)) }()
	conn, err := n.Dial(ctx, "tcp", to.String())
	if err != nil && context.Cause(ctx) != nil {
		return nil, context.Cause(ctx)
	}
	return conn, err
}

// awaitDrop waits until the node's filter has dropped more than before, and returns [ErrRefused] then.
func (n *Node) awaitDrop(ctx context.Context, before float64) error {
	for {
		dropped, err := n.dropped(ctx)
		if err != nil {
			return err
		}
		if dropped > before {
			return ErrRefused
		}
		time.Sleep(pollOften)
	}
}

// dropped returns how many packets the node's filter has dropped.
func (n *Node) dropped(ctx context.Context) (float64, error) {
	page, err := n.Local.UserMetrics(ctx)
	if err != nil {
		return 0, err
	}
	// Before the first drop there is no such metric.
	value, _, err := metric(page, droppedByFilter)
	return value, err
}

// routed reports whether a node sends packets for an address to one of its peers.
func routed(status *ipnstate.Status, addr netip.Addr) bool {
	for _, peer := range status.Peer {
		if peer.AllowedIPs == nil {
			continue
		}
		for _, prefix := range peer.AllowedIPs.All() {
			if prefix.Contains(addr) && (prefix.Bits() > 0 || peer.ExitNode) {
				return true
			}
		}
	}
	return false
}

// AnswerStreams hands every stream to the node, or to what it routes, on whatever port, to answer.
func (n *Node) AnswerStreams(answer func(net.Conn)) {
	n.RegisterFallbackTCPHandler(func(_, _ netip.AddrPort) (func(net.Conn), bool) {
		return answer, true
	})
}
