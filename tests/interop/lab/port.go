package lab

import (
	"net"
	"net/netip"
	"testing"
)

// freePort returns an address of the lab with a TCP port that nothing listens on.
func freePort(t testing.TB) netip.AddrPort {
	t.Helper()
	listener, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(Addr(), 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).AddrPort()
}

// freeUDPPort returns an address of the lab with a UDP port that nothing is bound to.
func freeUDPPort(t testing.TB) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(Addr(), 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}
