package lab

import (
	"fmt"
	"net/netip"
	"testing"
)

// LAN is a host behind a namespace that routes for it, and an address far beyond that host.
type LAN struct {
	// Host is the host; its packets to other networks go through the router.
	Host *Namespace
	// Addrs are the host's addresses: IPv4, IPv6.
	Addrs []netip.Addr
	// Outside are addresses behind the host, public ones as far as the router can tell.
	Outside []netip.Addr
}

// The networks of every LAN. Each router has its own, so they may be the same for all.
var (
	LANPrefixes = []netip.Prefix{netip.MustParsePrefix("10.77.1.0/24"), netip.MustParsePrefix("fd77:1::/64")}
	outside     = []netip.Addr{netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("2001:db8:77::9")}
)

// NewLAN lays a network behind router, with one host in it; it goes with the test.
func NewLAN(t testing.TB, router *Namespace) *LAN {
	t.Helper()
	name := router.name + "-lan"
	lan := &LAN{Host: &Namespace{name: name}, Outside: outside}
	do(t, "netns", "add", name)
	t.Cleanup(func() {
		if err := ip("netns", "del", name); err != nil {
			t.Error(err)
		}
	})
	do(t, "-n", router.name, "link", "add", "lan0", "type", "veth", "peer", "name", "eth0", "netns", name)
	for i, prefix := range LANPrefixes {
		gateway := prefix.Addr().Next()
		host := gateway.Next()
		lan.Addrs = append(lan.Addrs, host)
		do(t, "-n", router.name, "addr", "add", fmt.Sprintf("%v/%d", gateway, prefix.Bits()), "dev", "lan0", "nodad")
		do(t, "-n", name, "addr", "add", fmt.Sprintf("%v/%d", host, prefix.Bits()), "dev", "eth0", "nodad")
		do(t, "-n", name, "addr", "add", fmt.Sprintf("%v/%d", outside[i], outside[i].BitLen()), "dev", "lo", "nodad")
	}
	do(t, "-n", name, "link", "set", "lo", "up")
	do(t, "-n", name, "link", "set", "eth0", "up")
	do(t, "-n", router.name, "link", "set", "lan0", "up")
	for i, prefix := range LANPrefixes {
		do(t, "-n", name, "route", "add", "default", "via", prefix.Addr().Next().String())
		do(t, "-n", router.name, "route", "add", outside[i].String(), "via", lan.Addrs[i].String())
	}
	lan.Host.Addr = lan.Addrs[0]
	return lan
}
