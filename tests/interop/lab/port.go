package lab

import (
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
)

// ports counts those given out. They lie below the range that connections take theirs from, so a port stays
// free between the choice and its use, and while a server that is killed starts again.
var ports atomic.Uint32

// firstPort is where the counting starts.
const firstPort = 20000

// freePort returns an address of the lab with a port that nothing uses, TCP or UDP.
func freePort(t testing.TB) netip.AddrPort {
	t.Helper()
	for range 1000 {
		candidate := netip.AddrPortFrom(Addr(), uint16(firstPort+ports.Add(1)))
		if isFree(candidate) {
			return candidate
		}
	}
	t.Fatal("no free port")
	return netip.AddrPort{}
}

// isFree reports whether a TCP and a UDP socket can be bound to an address.
func isFree(addr netip.AddrPort) bool {
	listener, err := net.Listen("tcp", addr.String())
	if err != nil {
		return false
	}
	defer listener.Close()
	conn, err := net.ListenPacket("udp", addr.String())
	if err != nil {
		return false
	}
	defer conn.Close()
	return true
}
