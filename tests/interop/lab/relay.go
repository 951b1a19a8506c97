package lab

import (
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"net/netip"
	"testing"

	"tailscale.com/tailcfg"
)

// RelayRegion is the DERP region that a relay of the lab stands for.
const RelayRegion = 900

// Relay is a running tailrace-relay with a certificate of its own making.
type Relay struct {
	*Process
	// Addr is where it speaks DERP over TLS, STUN where it answers STUN.
	Addr, STUN netip.AddrPort

	bin  string
	args []string
}

// StartRelay starts a relay and waits until it answers. Extra arguments go to `tailrace-relay serve`.
func StartRelay(t testing.TB, extra ...string) *Relay {
	t.Helper()
	r := &Relay{Addr: freePort(t), STUN: freePort(t), bin: binary(t, "tailrace-relay")}
	r.args = append([]string{
		"serve",
		"--listen", r.Addr.String(),
		"--stun-listen", r.STUN.String(),
		"--state-dir", t.TempDir(),
	}, extra...)
	r.Start(t)
	return r
}

// Start starts the relay again after it was killed, on the same addresses with the same state.
func (r *Relay) Start(t testing.TB) {
	t.Helper()
	r.Process = start(t, nil, r.bin, r.args...)
	Eventually(t, "the relay answers", func() error {
		if err := r.Exited(); err != nil {
			t.Fatal(err)
		}
		_, err := leafPin(r.Addr)
		return err
	})
}

// Region describes the relay as a client's DERP map would, pinned to its certificate.
func (r *Relay) Region(t testing.TB) *tailcfg.DERPRegion {
	t.Helper()
	pin, err := leafPin(r.Addr)
	if err != nil {
		t.Fatal(err)
	}
	return region(r.Addr, r.STUN.Port(), pin)
}

// region describes one relay that is reached by address and trusted by pin.
func region(derp netip.AddrPort, stunPort uint16, pin string) *tailcfg.DERPRegion {
	return &tailcfg.DERPRegion{
		RegionID:   RelayRegion,
		RegionCode: "lab",
		RegionName: "Lab",
		Nodes: []*tailcfg.DERPNode{{
			Name:     "lab1",
			RegionID: RelayRegion,
			HostName: derp.Addr().String(),
			IPv4:     derp.Addr().String(),
			IPv6:     "none",
			CertName: pin,
			DERPPort: int(derp.Port()),
			STUNPort: int(stunPort),
		}},
	}
}

// leafPin returns the pin of the certificate that a TLS server presents, in the DERP map's form.
func leafPin(server netip.AddrPort) (string, error) {
	// The pin is what trust will rest on, so there is nothing to verify against yet.
	conn, err := tls.Dial("tcp", server.String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return pinOf(conn.ConnectionState().PeerCertificates[0].Raw), nil
}

// pinOf returns the pin of a DER certificate.
func pinOf(certificate []byte) string {
	return fmt.Sprintf("sha256-raw:%x", sha256.Sum256(certificate))
}
