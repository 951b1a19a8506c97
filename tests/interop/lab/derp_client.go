package lab

import (
	"bytes"
	"crypto/tls"
	"testing"

	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netmon"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// DERPClient is an official DERP client that reads all the time, as the official node does, and reconnects
// when its connection breaks.
type DERPClient struct {
	*derphttp.Client
	// Key is the node key it goes by.
	Key key.NodePublic

	messages chan derp.ReceivedMessage
}

// DERPOptions say how an official DERP client connects.
type DERPOptions struct {
	// Private is its node key; a fresh one if zero.
	Private key.NodePrivate
	// MaxTLS bounds the TLS version. Below 1.3 a client does not look for the server's key among the
	// certificates, and takes the normal start with an HTTP response instead of the fast one.
	MaxTLS uint16
	// MeshKey makes it a trusted client that watches who is connected.
	MeshKey key.DERPMesh
}

// ConnectDERP connects an official DERP client and waits until the server has taken it in.
func ConnectDERP(t testing.TB, region *tailcfg.DERPRegion, options DERPOptions) *DERPClient {
	t.Helper()
	c := NewDERPClient(t, region, options)
	if err := c.Connect(Context(t)); err != nil {
		t.Fatal(err)
	}
	go c.read()
	Await[derp.ServerInfoMessage](t, c)
	return c
}

// NewDERPClient makes an official DERP client that has not connected yet.
func NewDERPClient(t testing.TB, region *tailcfg.DERPRegion, options DERPOptions) *DERPClient {
	t.Helper()
	if options.Private.IsZero() {
		options.Private = key.NewNode()
	}
	discard := func(string, ...any) {}
	c := &DERPClient{
		Client:   derphttp.NewRegionClient(options.Private, discard, netmon.NewStatic(), func() *tailcfg.DERPRegion { return region }),
		Key:      options.Private.Public(),
		messages: make(chan derp.ReceivedMessage, 64),
	}
	c.MeshKey, c.WatchConnectionChanges = options.MeshKey, !options.MeshKey.IsZero()
	if options.MaxTLS != 0 {
		c.TLSConfig = &tls.Config{MaxVersion: options.MaxTLS}
	}
	t.Cleanup(func() {
		// A test may have closed it already.
		_ = c.Close()
	})
	return c
}

// read hands on messages until the client is closed. After an error the next Recv connects again.
func (c *DERPClient) read() {
	for {
		message, err := c.Recv()
		if err == derphttp.ErrClientClosed {
			return
		}
		if err != nil {
			continue
		}
		if packet, ok := message.(derp.ReceivedPacket); ok {
			packet.Data = bytes.Clone(packet.Data)
			message = packet
		}
		select {
		case c.messages <- message:
		default: // nobody waits for so many
		}
	}
}

// Await returns the next message of one kind, passing over others.
func Await[M derp.ReceivedMessage](t testing.TB, c *DERPClient) M {
	t.Helper()
	ctx := Context(t)
	for {
		select {
		case message := <-c.messages:
			if wanted, ok := message.(M); ok {
				return wanted
			}
		case <-ctx.Done():
			var wanted M
			t.Fatalf("no %T within %v", wanted, Patience)
		}
	}
}

// Deliver sends a packet and checks that it arrives whole and under the sender's key.
func Deliver(t testing.TB, from, to *DERPClient, packet []byte) {
	t.Helper()
	if err := from.Send(to.Key, packet); err != nil {
		t.Fatal(err)
	}
	got := Await[derp.ReceivedPacket](t, to)
	if got.Source != from.Key {
		t.Errorf("packet came from %v, want %v", got.Source, from.Key)
	}
	if !bytes.Equal(got.Data, packet) {
		t.Errorf("packet of %d bytes came as %d other ones", len(packet), len(got.Data))
	}
}
