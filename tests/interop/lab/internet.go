package lab

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
)

// NAT is a kind of router, by how it maps UDP and whom it lets in (RFC 4787).
type NAT string

const (
	// PortRestricted keeps one mapping and lets in whoever was sent to, by address and port: most home routers.
	PortRestricted NAT = "port-restricted"
	// Restricted keeps one mapping and lets in whomever was sent to, from any of its ports.
	Restricted NAT = "restricted"
	// Symmetric makes another mapping for each destination and lets in answers only.
	Symmetric NAT = "symmetric"
)

// nodePort is the UDP port of nodes behind a router, which some kinds treat by itself.
const nodePort = 41641

// rules are the router's, before a host with the address inside. What is not an answer must not come in: else
// connection tracking would keep the early packet of a hole punch, and the late one would get another port.
func (n NAT) rules(inside netip.Addr) string {
	var letIn, note, random string
	switch n {
	case Restricted:
		note = `oifname wan meta l4proto udp update @heard { ip daddr timeout 60s }`
		letIn = fmt.Sprintf(`iifname wan udp dport %d ip saddr @heard dnat to %v:%d`, nodePort, inside, nodePort)
	case Symmetric:
		random = "random"
	}
	return fmt.Sprintf(`table ip nat {
	set heard { type ipv4_addr; flags dynamic,timeout; timeout 60s; }
	chain note { type filter hook postrouting priority 0
		%s
	}
	chain prerouting { type nat hook prerouting priority -100
		%s
	}
	chain postrouting { type nat hook postrouting priority 100
		oifname wan masquerade %s
	}
}
table ip guard {
	chain input { type filter hook input priority 0
		iifname wan ct state established,related accept
		iifname wan drop
	}
	chain forward { type filter hook forward priority 0; policy drop
		iifname lan accept
		iifname wan ct state established,related accept
		iifname wan ct status dnat accept
	}
}
`, note, letIn, random)
}

// Internet is a network on which routers reach each other and the lab's servers.
type Internet struct {
	bridge string
}

// internetPrefix is reserved for documentation, like every address that stands for a public one.
var internetPrefix = netip.MustParsePrefix("203.0.113.0/24")

// NewInternet makes the network, without routers; it goes with the test. There is one at a time.
func NewInternet(t testing.TB) *Internet {
	t.Helper()
	NeedNamespaces(t)
	i := &Internet{bridge: fmt.Sprintf("inet%d", namespaces.Add(1))}
	do(t, "link", "add", i.bridge, "type", "bridge", "stp_state", "0", "forward_delay", "0")
	t.Cleanup(func() {
		if err := ip("link", "del", i.bridge); err != nil {
			t.Error(err)
		}
	})
	do(t, "addr", "add", fmt.Sprintf("%v/%d", internetPrefix.Addr().Next(), internetPrefix.Bits()), "dev", i.bridge)
	do(t, "link", "set", i.bridge, "up")
	return i
}

// Site is a host behind a router of its own.
type Site struct {
	// Host is where a node runs.
	Host *Namespace
	// Public is the router's address, under which the host is seen.
	Public netip.Addr

	router *Namespace
}

// NewSite puts a host behind a router of a kind.
func (i *Internet) NewSite(t testing.TB, kind NAT) *Site {
	t.Helper()
	if _, err := run(nil, "nft", "--version"); err != nil {
		Skip(t, "nft (nftables) is not installed")
	}
	router, n := emptyNamespace(t)
	host, _ := emptyNamespace(t)
	host.Addr = netip.AddrFrom4([4]byte{192, 168, n, 2})
	public := internetPrefix.Addr().As4()
	// The bridge itself has the first address.
	public[3] = n + 1
	site := &Site{Host: host, Public: netip.AddrFrom4(public), router: router}
	port := fmt.Sprintf("%sp%d", i.bridge, n)

	do(t, "link", "add", port, "type", "veth", "peer", "name", "wan", "netns", router.name)
	do(t, "link", "set", port, "master", i.bridge, "up")
	do(t, "-n", router.name, "addr", "add", fmt.Sprintf("%v/%d", site.Public, internetPrefix.Bits()), "dev", "wan")
	do(t, "-n", router.name, "link", "set", "wan", "up")
	do(t, "-n", router.name, "route", "add", "default", "via", internetPrefix.Addr().Next().String())

	inside := netip.AddrFrom4([4]byte{192, 168, n, 1})
	do(t, "-n", router.name, "link", "add", "lan", "type", "veth", "peer", "name", "eth0", "netns", host.name)
	do(t, "-n", router.name, "addr", "add", inside.String()+"/24", "dev", "lan")
	do(t, "-n", router.name, "link", "set", "lan", "up")
	do(t, "-n", host.name, "addr", "add", host.Addr.String()+"/24", "dev", "eth0")
	do(t, "-n", host.name, "link", "set", "eth0", "up")
	do(t, "-n", host.name, "route", "add", "default", "via", inside.String())

	if _, err := run(router, "nft", kind.rules(host.Addr)); err != nil {
		t.Fatal(err)
	}
	var forwarding error
	err := router.in(func() {
		forwarding = os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
	})
	if err != nil || forwarding != nil {
		t.Fatal(err, forwarding)
	}
	return site
}

// Rules gives the router further rules of nftables.
func (s *Site) Rules(t testing.TB, rules string) {
	t.Helper()
	if _, err := run(s.router, "nft", rules); err != nil {
		t.Fatal(err)
	}
}

// Counted returns how many packets a named counter of the router's table has seen.
func (s *Site) Counted(t testing.TB, table, counter string) int {
	t.Helper()
	listed, err := run(s.router, "nft", "list", "counter", "ip", table, counter)
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(listed, "packets ")
	number, _, _ := strings.Cut(after, " ")
	packets, err := strconv.Atoi(number)
	if err != nil {
		t.Fatalf("no counter in %s: %v", listed, err)
	}
	return packets
}

// do runs iproute2's ip and fails the test when that refuses.
func do(t testing.TB, args ...string) {
	t.Helper()
	if err := ip(args...); err != nil {
		t.Fatal(err)
	}
}
