package interop

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"tailrace.dev/interop/lab"
	"tailscale.com/derp"
	"tailscale.com/disco"
	"tailscale.com/net/stun"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// onEachServer runs a test against our relay, and against the official server to show that what the test
// expects is right.
func onEachServer(t *testing.T, test func(t *testing.T, region *tailcfg.DERPRegion)) {
	t.Run("tailrace-relay", func(t *testing.T) {
		test(t, lab.StartRelay(t).Region(t))
	})
	t.Run("official", func(t *testing.T) {
		test(t, lab.StartOfficialDERP(t).Region())
	})
}

func TestPacketsCrossTheRelayBothWays(t *testing.T) {
	onEachServer(t, func(t *testing.T, region *tailcfg.DERPRegion) {
		for name, maxTLS := range map[string]uint16{"fast start": tls.VersionTLS13, "normal start": tls.VersionTLS12} {
			t.Run(name, func(t *testing.T) {
				a := lab.ConnectDERP(t, region, lab.DERPOptions{MaxTLS: maxTLS})
				b := lab.ConnectDERP(t, region, lab.DERPOptions{MaxTLS: maxTLS})
				for _, size := range []int{1, 1280, derp.MaxPacketSize} {
					packet := bytes.Repeat([]byte{byte(size)}, size)
					lab.Deliver(t, a, b, packet)
					lab.Deliver(t, b, a, packet)
				}
			})
		}
	})
}

func TestFastStartIsOffered(t *testing.T) {
	onEachServer(t, func(t *testing.T, region *tailcfg.DERPRegion) {
		c := lab.ConnectDERP(t, region, lab.DERPOptions{})
		state, ok := c.TLSConnectionState()
		if !ok {
			t.Fatal("no TLS state on a connection over TLS")
		}
		// This is what makes the official client skip the HTTP response.
		meta := state.PeerCertificates[len(state.PeerCertificates)-1]
		want := "derpkey" + c.ServerPublicKey().UntypedHexString()
		if meta.Subject.CommonName != want || meta.SerialNumber.Int64() != derp.ProtocolVersion {
			t.Errorf("last certificate is %q serial %v, want %q serial %d",
				meta.Subject.CommonName, meta.SerialNumber, want, derp.ProtocolVersion)
		}
	})
}

func TestARelayWithAnotherCertificateIsRefused(t *testing.T) {
	onEachServer(t, func(t *testing.T, region *tailcfg.DERPRegion) {
		region.Nodes[0].CertName = "sha256-raw:" + strings.Repeat("00", 32)
		err := lab.NewDERPClient(t, region, lab.DERPOptions{}).Connect(lab.Context(t))
		if err == nil || !strings.Contains(err.Error(), "hash") {
			t.Errorf("connecting with a wrong pin: %v, want an error about the certificate's hash", err)
		}
	})
}

func TestTheRelayAnswersPings(t *testing.T) {
	onEachServer(t, func(t *testing.T, region *tailcfg.DERPRegion) {
		if err := lab.ConnectDERP(t, region, lab.DERPOptions{}).Ping(lab.Context(t)); err != nil {
			t.Error(err)
		}
	})
}

func TestTheDepartureOfAPeerIsTold(t *testing.T) {
	onEachServer(t, func(t *testing.T, region *tailcfg.DERPRegion) {
		a := lab.ConnectDERP(t, region, lab.DERPOptions{})
		b := lab.ConnectDERP(t, region, lab.DERPOptions{})
		lab.Deliver(t, b, a, []byte("so that a knows of b"))
		b.Close()
		gone := lab.Await[derp.PeerGoneMessage](t, a)
		if gone.Peer != b.Key || gone.Reason != derp.PeerGoneReasonDisconnected {
			t.Errorf("got %+v, want peer %v gone as disconnected", gone, b.Key)
		}
	})
}

func TestDiscoToAnAbsentPeerIsAnswered(t *testing.T) {
	onEachServer(t, func(t *testing.T, region *tailcfg.DERPRegion) {
		c := lab.ConnectDERP(t, region, lab.DERPOptions{})
		absent := key.NewNode().Public()
		ping := append([]byte(disco.Magic), make([]byte, 100)...)
		if err := c.Send(absent, ping); err != nil {
			t.Fatal(err)
		}
		gone := lab.Await[derp.PeerGoneMessage](t, c)
		if gone.Peer != absent || gone.Reason != derp.PeerGoneReasonNotHere {
			t.Errorf("got %+v, want peer %v not here", gone, absent)
		}
	})
}

func TestOfTwoConnectionsOfAKeyTheLastToSendReceives(t *testing.T) {
	onEachServer(t, func(t *testing.T, region *tailcfg.DERPRegion) {
		twice := key.NewNode()
		first := lab.ConnectDERP(t, region, lab.DERPOptions{Private: twice})
		second := lab.ConnectDERP(t, region, lab.DERPOptions{Private: twice})
		peer := lab.ConnectDERP(t, region, lab.DERPOptions{})
		for _, active := range []*lab.DERPClient{first, second, first} {
			lab.Deliver(t, active, peer, []byte("I am the active one"))
			lab.Deliver(t, peer, active, []byte("I see"))
		}
	})
}

func TestTheRelayTellsAClientItsAddress(t *testing.T) {
	onEachServer(t, func(t *testing.T, region *tailcfg.DERPRegion) {
		node := region.Nodes[0]
		server := netip.AddrPortFrom(netip.MustParseAddr(node.IPv4), uint16(node.STUNPort))
		conn, err := net.Dial("udp", server.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		deadline, _ := lab.Context(t).Deadline()
		if err := conn.SetDeadline(deadline); err != nil {
			t.Fatal(err)
		}
		request := stun.NewTxID()
		if _, err := conn.Write(stun.Request(request)); err != nil {
			t.Fatal(err)
		}
		response := make([]byte, 1500)
		n, err := conn.Read(response)
		if err != nil {
			t.Fatal(err)
		}
		answered, addr, err := stun.ParseResponse(response[:n])
		if err != nil {
			t.Fatal(err)
		}
		if answered != request || addr.String() != conn.LocalAddr().String() {
			t.Errorf("answer to %x says %v, want %x and %v", answered, addr, request, conn.LocalAddr())
		}
	})
}

func TestClientsComeBackToARestartedRelay(t *testing.T) {
	relay := lab.StartRelay(t)
	region := relay.Region(t)
	a := lab.ConnectDERP(t, region, lab.DERPOptions{})
	b := lab.ConnectDERP(t, region, lab.DERPOptions{})
	before := a.ServerPublicKey()
	lab.Deliver(t, a, b, []byte("before"))

	relay.Kill()
	relay.Start(t)

	// Both readers connect again by themselves, to a server with the same key and certificate.
	lab.Await[derp.ServerInfoMessage](t, a)
	lab.Await[derp.ServerInfoMessage](t, b)
	if after := a.ServerPublicKey(); after != before {
		t.Errorf("the relay's key is %v after a restart, was %v", after, before)
	}
	lab.Deliver(t, a, b, []byte("after"))
}

func TestAMeshClientWatchesWhoIsConnected(t *testing.T) {
	secret := strings.Repeat("5a", 32)
	file := filepath.Join(t.TempDir(), "mesh.key")
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	meshKey, err := key.ParseDERPMesh(secret)
	if err != nil {
		t.Fatal(err)
	}
	region := lab.StartRelay(t, "--mesh-key-file", file).Region(t)

	early := lab.ConnectDERP(t, region, lab.DERPOptions{})
	watcher := lab.ConnectDERP(t, region, lab.DERPOptions{MeshKey: meshKey})
	if present := lab.Await[derp.PeerPresentMessage](t, watcher); present.Key != early.Key {
		t.Errorf("%v is said to be present, want %v", present.Key, early.Key)
	}
	late := lab.ConnectDERP(t, region, lab.DERPOptions{})
	if present := lab.Await[derp.PeerPresentMessage](t, watcher); present.Key != late.Key || present.IPPort.Addr() != lab.Addr() {
		t.Errorf("%+v is said to be present, want %v at %v", present, late.Key, lab.Addr())
	}
	early.Close()
	if gone := lab.Await[derp.PeerGoneMessage](t, watcher); gone.Peer != early.Key {
		t.Errorf("%v is said to be gone, want %v", gone.Peer, early.Key)
	}
}

func TestTheRelayAdmitsWhomTheVerifierAllows(t *testing.T) {
	var allow atomic.Bool
	asked := make(chan tailcfg.DERPAdmitClientRequest, 16)
	verifier := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var request tailcfg.DERPAdmitClientRequest
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		asked <- request
		json.NewEncoder(w).Encode(tailcfg.DERPAdmitClientResponse{Allow: allow.Load()})
	}))
	defer verifier.Close()
	region := lab.StartRelay(t, "--verify-url", verifier.URL).Region(t)

	allow.Store(true)
	admitted := lab.ConnectDERP(t, region, lab.DERPOptions{})
	request := <-asked
	if request.NodePublic != admitted.Key || request.Source != lab.Addr() {
		t.Errorf("the relay asked about %+v, want %v from %v", request, admitted.Key, lab.Addr())
	}

	allow.Store(false)
	expectRefused(t, region)

	// Nobody comes in while the verifier is away.
	allow.Store(true)
	verifier.Close()
	expectRefused(t, region)
}

// expectRefused checks that a relay closes the connection of a new client without taking it in.
func expectRefused(t *testing.T, region *tailcfg.DERPRegion) {
	t.Helper()
	c := lab.NewDERPClient(t, region, lab.DERPOptions{})
	if err := c.Connect(lab.Context(t)); err != nil {
		return
	}
	if message, err := c.Recv(); err == nil {
		t.Errorf("a client that should be refused received %T", message)
	}
}
