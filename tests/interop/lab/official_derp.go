package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"tailscale.com/derp/derpserver"
	"tailscale.com/net/stunserver"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// OfficialDERP is an official DERP server with STUN, running inside the test process.
type OfficialDERP struct {
	// Server is the running server, to ask about its clients.
	Server *derpserver.Server

	addr netip.AddrPort
	stun netip.AddrPort
	pin  string
}

// StartOfficialDERP starts an official DERP server behind TLS with a self-signed certificate for its address.
func StartOfficialDERP(t testing.TB) *OfficialDERP {
	t.Helper()
	certificate := selfSigned(t, Addr())
	d := &OfficialDERP{
		Server: derpserver.New(key.NewNode(), t.Logf),
		stun:   freePort(t),
		pin:    pinOf(certificate.Certificate[0]),
	}
	listener, err := net.Listen("tcp", freePort(t).String())
	if err != nil {
		t.Fatal(err)
	}
	d.addr = listener.Addr().(*net.TCPAddr).AddrPort()

	tlsConfig := &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		// The server appends to what it gets, so each connection gets a copy.
		own := certificate
		return &own, nil
	}}
	d.Server.ModifyTLSConfigToAddMetaCert(tlsConfig)
	web := &http.Server{Handler: d.handler()}
	go func() {
		// Ends when the test closes it.
		_ = web.Serve(tls.NewListener(listener, tlsConfig))
	}()
	t.Cleanup(func() {
		web.Close()
		d.Server.Close()
	})

	stun := stunserver.New(t.Context())
	if err := stun.Listen(d.stun.String()); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = stun.Serve()
	}()
	return d
}

// handler is the web side of an official relay: DERP, latency probes and the captive portal check.
func (d *OfficialDERP) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/derp", derpserver.Handler(d.Server))
	mux.HandleFunc("/derp/probe", derpserver.ProbeHandler)
	mux.HandleFunc("/derp/latency-check", derpserver.ProbeHandler)
	mux.HandleFunc("/generate_204", derpserver.ServeNoContent)
	return mux
}

// Region describes the server as a client's DERP map would, pinned to its certificate.
func (d *OfficialDERP) Region() *tailcfg.DERPRegion {
	return region(d.addr, d.stun.Port(), d.pin)
}

// Addr returns where it speaks DERP.
func (d *OfficialDERP) Addr() netip.AddrPort {
	return d.addr
}

// Map returns a DERP map with this server alone.
func (d *OfficialDERP) Map() *tailcfg.DERPMap {
	return &tailcfg.DERPMap{
		OmitDefaultRegions: true,
		Regions:            map[int]*tailcfg.DERPRegion{RelayRegion: d.Region()},
	}
}

// selfSigned makes a certificate for an address.
func selfSigned(t testing.TB, addr netip.Addr) tls.Certificate {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: addr.String()},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses:  []net.IP{addr.AsSlice()},
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: private}
}
