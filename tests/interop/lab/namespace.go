package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace joined to the lab, by a veth pair or through a router; it goes with the test.
type Namespace struct {
	name string
	// Addr is the namespace's own address on its way there.
	Addr netip.Addr
}

// namespaces counts those made by this process; it makes names and addresses unique.
var namespaces atomic.Uint32

// NewNamespace makes a namespace whose default route leads to the lab.
func NewNamespace(t testing.TB) *Namespace {
	t.Helper()
	ns, n := emptyNamespace(t)
	ns.Addr = netip.AddrFrom4([4]byte{10, 213, n, 2})
	gateway := netip.AddrFrom4([4]byte{10, 213, n, 1})
	outer := fmt.Sprintf("ns%d", n)
	do(t, "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", ns.name)
	do(t, "addr", "add", gateway.String()+"/30", "dev", outer)
	do(t, "link", "set", outer, "up")
	do(t, "-n", ns.name, "addr", "add", ns.Addr.String()+"/30", "dev", "eth0")
	do(t, "-n", ns.name, "link", "set", "eth0", "up")
	do(t, "-n", ns.name, "route", "add", "default", "via", gateway.String())
	return ns
}

// emptyNamespace makes a namespace with nothing but loopback, and returns its number too.
func emptyNamespace(t testing.TB) (*Namespace, byte) {
	t.Helper()
	NeedNamespaces(t)
	n := byte(namespaces.Add(1))
	ns := &Namespace{name: fmt.Sprintf("interop-%d-%d", os.Getpid(), n)}
	do(t, "netns", "add", ns.name)
	t.Cleanup(func() {
		if err := ip("netns", "del", ns.name); err != nil {
			t.Error(err)
		}
	})
	do(t, "-n", ns.name, "link", "set", "lo", "up")
	return ns, n
}

// Dial connects from inside the namespace. The address must be a literal one: name resolution would leave
// the namespace.
func (ns *Namespace) Dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	inErr := ns.in(func() {
		conn, err = new(net.Dialer).DialContext(ctx, network, addr)
	})
	if inErr != nil {
		return nil, inErr
	}
	return conn, err
}

// Listen accepts streams inside the namespace, on a literal address.
func (ns *Namespace) Listen(network, addr string) (listener net.Listener, err error) {
	inErr := ns.in(func() {
		listener, err = net.Listen(network, addr)
	})
	if inErr != nil {
		return nil, inErr
	}
	return listener, err
}

// ListenPacket receives datagrams inside the namespace, on a literal address.
func (ns *Namespace) ListenPacket(network, addr string) (conn net.PacketConn, err error) {
	inErr := ns.in(func() {
		conn, err = net.ListenPacket(network, addr)
	})
	if inErr != nil {
		return nil, inErr
	}
	return conn, err
}

// in runs f on a thread that is inside the namespace. A socket belongs for good to the namespace of the
// thread that made it, so f has only to make one.
func (ns *Namespace) in(f func()) error {
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("opening the thread's namespace: %w", err)
	}
	defer unix.Close(home)
	there, err := unix.Open("/run/netns/"+ns.name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("opening namespace %s: %w", ns.name, err)
	}
	defer unix.Close(there)
	if err := unix.Setns(there, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("entering namespace %s: %w", ns.name, err)
	}
	f()
	if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
		// The thread stays locked, so Go ends it with the goroutine instead of using it again.
		return fmt.Errorf("leaving namespace %s: %w", ns.name, err)
	}
	runtime.UnlockOSThread()
	return nil
}
