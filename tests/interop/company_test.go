package interop

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"tailrace.dev/interop/lab"
	"tailscale.com/ipn"
	"tailscale.com/tailcfg"
)

// Who owns the machines of a company.
const (
	alice = "alice@example.com"
	bob   = "bob@example.com"
)

// tags declares those of the machines; only administrators give them.
const tags = `"tagOwners": {"tag:web": [], "tag:db": [], "tag:router": []},`

// company is a tailnet of official nodes for policies to be tried on.
type company struct {
	control *lab.Control
	// laptop and phone are Alice's, desk is Bob's.
	laptop, phone, desk *machine
	// web, db and router carry the tags of their names.
	web, db, router *machine
	// policies counts those that were put in force.
	policies int
}

// machine is a node of a company. It echoes every stream that reaches it or what it routes.
type machine struct {
	*lab.Node
	addr netip.Addr
}

// found makes a company without a policy on a control server.
func found(t *testing.T, control *lab.Control) *company {
	t.Helper()
	control.Run(t, "users", "create", alice)
	control.Run(t, "users", "create", bob)
	c := &company{
		control: control,
		laptop:  hire(t, control, "laptop", control.NewKeyOf(t, alice)),
		phone:   hire(t, control, "phone", control.NewKeyOf(t, alice)),
		desk:    hire(t, control, "desk", control.NewKeyOf(t, bob)),
		web:     hire(t, control, "web", control.NewKey(t, "--tags", "tag:web")),
		db:      hire(t, control, "db", control.NewKey(t, "--tags", "tag:db")),
		router:  hire(t, control, "router", control.NewKey(t, "--tags", "tag:router")),
	}
	for _, m := range c.machines() {
		m.begin(t)
	}
	// Packets to a peer whose relay is not known yet are lost, and the first ones are slow to be repeated.
	for _, m := range c.machines() {
		lab.Eventually(t, m.Hostname+" can reach all others", func() error {
			peers := m.Status(t).Peer
			if len(peers) != len(c.machines())-1 {
				return fmt.Errorf("it knows %d peers", len(peers))
			}
			for _, peer := range peers {
				if peer.Relay == "" {
					return fmt.Errorf("the relay of %s is not known", peer.HostName)
				}
			}
			return nil
		})
	}
	return c
}

// hire starts a machine, without waiting for it.
func hire(t *testing.T, control *lab.Control, hostname, authKey string) *machine {
	t.Helper()
	return &machine{Node: lab.StartNode(t, control, lab.NodeOptions{Hostname: hostname, AuthKey: authKey})}
}

// begin waits until the machine is in the tailnet. It uses the routes of others.
func (m *machine) begin(t *testing.T) {
	t.Helper()
	m.AwaitRunning(t)
	m.AnswerStreams(echoStream)
	m.addr = m.Addr(t)
	m.prefer(t, ipn.MaskedPrefs{Prefs: ipn.Prefs{RouteAll: true}, RouteAllSet: true})
}

// machines are all of the company's.
func (c *company) machines() []*machine {
	return []*machine{c.laptop, c.phone, c.desk, c.web, c.db, c.router}
}

// prefer edits the machine's preferences.
func (m *machine) prefer(t *testing.T, prefs ipn.MaskedPrefs) {
	t.Helper()
	if _, err := m.Local.EditPrefs(lab.Context(t), &prefs); err != nil {
		t.Fatal(err)
	}
}

// place is a port somewhere on a machine or behind it.
type place struct {
	machine *machine
	addr    netip.AddrPort
}

// at is a port of the machine.
func (m *machine) at(port uint16) place {
	return m.behind(m.addr, port)
}

// behind is a port at an address that the machine routes.
func (m *machine) behind(addr netip.Addr, port uint16) place {
	return place{m, netip.AddrPortFrom(addr, port)}
}

// obey puts a policy in force, given without its outer braces without tagOwners and without
// nodeAttrs, each of which is an entry of attrs; returns once all machines have it.
func (c *company) obey(t *testing.T, sections string, attrs ...string) {
	t.Helper()
	c.policies++
	mark := fmt.Sprintf("example.com/cap/policy-%d", c.policies)
	attrs = append(attrs, fmt.Sprintf(`{"target": ["*"], "attr": [%q]}`, mark))
	c.control.SetPolicy(t, fmt.Sprintf("{%s\n%s\n\"nodeAttrs\": [%s]}", tags, sections, strings.Join(attrs, ",\n")))
	for _, m := range c.machines() {
		lab.Eventually(t, m.Hostname+" has the policy", func() error {
			if self := m.Status(t).Self; !self.HasCap(tailcfg.NodeCapability(mark)) {
				return fmt.Errorf("its attributes are %v", self.CapMap)
			}
			return nil
		})
	}
}

// link is a stream that a machine may or may not open.
type link struct {
	from *machine
	to   place
	want error // nil: it works
}

// allowed is a stream that works.
func allowed(from *machine, to place) link { return link{from, to, nil} }

// refused is a stream that the packet filter at its end drops.
func refused(from *machine, to place) link { return link{from, to, lab.ErrRefused} }

// unknown is a stream to an address that the machine is told of by nobody.
func unknown(from *machine, to place) link { return link{from, to, lab.ErrNoPeer} }

// expect tries streams, all at once. The allowed ones come first: when they work, the policy is in force, and
// what it forbids must already fail.
func expect(t *testing.T, links ...link) {
	t.Helper()
	expectEach(t, links, func(l link) bool { return l.want == nil })
	expectEach(t, links, func(l link) bool { return l.want != nil })
}

// expectEach tries those of the streams that are chosen.
func expectEach(t *testing.T, links []link, chosen func(link) bool) {
	t.Helper()
	var tries sync.WaitGroup
	failures := make([]error, len(links))
	for i, l := range links {
		if chosen(l) {
			tries.Go(func() { failures[i] = lab.Until(func() error { return l.try(lab.Patience / 10) }) })
		}
	}
	tries.Wait()
	for _, err := range failures {
		if err != nil {
			t.Error(err)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
}

// try opens a stream once, within a time that lost packets may exceed, and returns an error if the outcome is
// not the expected one.
func (l link) try(patience time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := l.from.Connect(ctx, l.to.machine.Node, l.to.addr)
	if err == nil {
		err = echoed(ctx, conn)
		conn.Close()
	}
	if !errors.Is(err, l.want) {
		return fmt.Errorf("%s to %v: %v, want %v", l.from.Hostname, l.to.addr, outcome(err), outcome(l.want))
	}
	return nil
}

// outcome names the outcome of a connection.
func outcome(err error) string {
	if err == nil {
		return "connected"
	}
	return err.Error()
}

// echoed sends a line and reads it back.
func echoed(ctx context.Context, conn net.Conn) error {
	const line = "over the tunnel\n"
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	if _, err := conn.Write([]byte(line)); err != nil {
		return err
	}
	got := make([]byte, len(line))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if string(got) != line {
		return fmt.Errorf("echo says %q", got)
	}
	return nil
}
