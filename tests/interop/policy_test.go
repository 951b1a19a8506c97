package interop

import (
	"fmt"
	"net"
	"sync/atomic"
	"testing"

	"tailrace.dev/interop/lab"
	"tailscale.com/tailcfg"
)

// Official nodes connect, or fail to, as the policy says. All share one company, because nodes take longer to
// join than policies to change.
func TestPolicy(t *testing.T) {
	c := found(t, lab.StartControl(t))

	t.Run("without a policy all is allowed", c.allowAll)
	t.Run("empty rules allow nothing", c.denyAll)
	t.Run("an ACL opens one port in one direction", c.openOnePort)
	t.Run("port ranges and lists", c.openPortRanges)
	t.Run("a grant opens a port of one protocol", c.grantProtocols)
	t.Run("hosts, prefixes and sets of addresses", c.nameAddresses)
	t.Run("tags, and a node that changes its tag", c.changeTag)
	t.Run("autogroup:self", c.reachOwnDevices)
	t.Run("autogroup:member and autogroup:tagged", c.splitMembersFromTagged)
	t.Run("a user whose role changes", c.changeRole)
	t.Run("postures", c.demandPostures)
	t.Run("application capabilities", c.grantCapabilities)
	t.Run("attributes", c.setAttributes)
	t.Run("SSH rules", c.ruleSSH)
	t.Run("routes wait for an approval", c.approveRoutes)
	t.Run("routes that the policy approves", c.approveRoutesByPolicy)
	t.Run("a route that changes its router", c.takeRouteOver)
	t.Run("a route through a router of the policy's choice", c.steerRoute)
	t.Run("exit nodes", c.useExitNode)
	t.Run("a policy that takes effect at once", c.changeLive)
	t.Run("a policy that is refused", c.refusePolicies)
}

func (c *company) allowAll(t *testing.T) {
	expect(t,
		allowed(c.laptop, c.phone.at(1)),
		allowed(c.desk, c.laptop.at(65535)),
		allowed(c.web, c.db.at(5432)),
		allowed(c.db, c.desk.at(80)))
}

func (c *company) denyAll(t *testing.T) {
	c.obey(t, `"acls": [],`)
	for _, m := range c.machines() {
		lab.Eventually(t, m.Hostname+" is alone", func() error {
			for _, peer := range m.Status(t).Peer {
				return fmt.Errorf("it knows %q", peer.HostName)
			}
			return nil
		})
	}
	expect(t,
		unknown(c.laptop, c.phone.at(80)),
		unknown(c.db, c.web.at(80)))
}

func (c *company) openOnePort(t *testing.T) {
	c.obey(t, `"acls": [{"action": "accept", "src": ["alice@example.com"], "dst": ["tag:web:80"]}],`)
	expect(t,
		allowed(c.laptop, c.web.at(80)),
		allowed(c.phone, c.web.at(80)),
		refused(c.laptop, c.web.at(81)),
		refused(c.web, c.laptop.at(80)), // they know each other, but only one may call
		unknown(c.laptop, c.phone.at(80)),
		unknown(c.laptop, c.db.at(80)),
		unknown(c.desk, c.web.at(80)))
}

func (c *company) openPortRanges(t *testing.T) {
	c.obey(t, `"acls": [{"action": "accept", "src": ["alice@example.com"], "dst": ["tag:web:443,8000-8010"]}],`)
	expect(t,
		allowed(c.laptop, c.web.at(443)),
		allowed(c.laptop, c.web.at(8000)),
		allowed(c.laptop, c.web.at(8010)),
		refused(c.laptop, c.web.at(442)),
		refused(c.laptop, c.web.at(7999)),
		refused(c.laptop, c.web.at(8011)))
}

func (c *company) grantProtocols(t *testing.T) {
	c.obey(t, `
		"groups": {"group:dba": ["bob@example.com"]},
		"grants": [{"src": ["group:dba"], "dst": ["tag:db"], "ip": ["tcp:5432", "udp:53"]}],`)
	expect(t,
		allowed(c.desk, c.db.at(5432)),
		refused(c.desk, c.db.at(53)),
		unknown(c.laptop, c.db.at(5432)))
	expectDatagrams(t, c.desk, c.db, 53, 5432)
}

func (c *company) nameAddresses(t *testing.T) {
	c.obey(t, fmt.Sprintf(`
		"hosts": {"shop": %q},
		"ipsets": {"ipset:stores": ["add %v"]},
		"acls": [
			{"action": "accept", "src": ["alice@example.com"], "dst": ["shop:80"]},
			{"action": "accept", "src": ["%v"], "dst": ["ipset:stores:5432"]},
			{"action": "accept", "src": ["%v"], "dst": ["%v/32:22"]},
		],`, c.web.addr, c.db.addr, c.desk.addr, c.laptop.addr, c.phone.addr))
	expect(t,
		allowed(c.laptop, c.web.at(80)),
		allowed(c.desk, c.db.at(5432)),
		allowed(c.laptop, c.phone.at(22)),
		refused(c.laptop, c.web.at(22)),
		refused(c.phone, c.laptop.at(22)),
		unknown(c.laptop, c.db.at(5432)),
		unknown(c.desk, c.web.at(80)))
}

func (c *company) changeTag(t *testing.T) {
	c.obey(t, `"acls": [{"action": "accept", "src": ["tag:web"], "dst": ["tag:db:5432"]}],`)
	expect(t,
		allowed(c.web, c.db.at(5432)),
		refused(c.web, c.db.at(80)),
		unknown(c.router, c.db.at(5432)))

	t.Cleanup(func() { c.control.Run(t, "nodes", "tag", "router", "tag:router") })
	c.control.Run(t, "nodes", "tag", "router", "tag:web")
	expect(t, allowed(c.router, c.db.at(5432)))

	c.control.Run(t, "nodes", "tag", "router", "tag:router")
	expect(t, unknown(c.router, c.db.at(5432)))
}

func (c *company) reachOwnDevices(t *testing.T) {
	c.obey(t, `"grants": [{"src": ["autogroup:member"], "dst": ["autogroup:self"], "ip": ["22"]}],`)
	expect(t,
		allowed(c.laptop, c.phone.at(22)),
		allowed(c.phone, c.laptop.at(22)),
		refused(c.laptop, c.phone.at(23)),
		unknown(c.laptop, c.desk.at(22)),
		unknown(c.laptop, c.web.at(22)))
}

func (c *company) splitMembersFromTagged(t *testing.T) {
	c.obey(t, `"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:tagged:22"]}],`)
	expect(t,
		allowed(c.laptop, c.web.at(22)),
		allowed(c.desk, c.db.at(22)),
		refused(c.db, c.desk.at(22)),
		unknown(c.laptop, c.desk.at(22)),
		unknown(c.web, c.db.at(22)))
}

func (c *company) changeRole(t *testing.T) {
	t.Cleanup(func() { c.control.Run(t, "users", "role", alice, "member") })
	c.control.Run(t, "users", "role", alice, "admin")
	c.obey(t, `"acls": [{"action": "accept", "src": ["autogroup:admin"], "dst": ["tag:db:22"]}],`)
	expect(t,
		allowed(c.laptop, c.db.at(22)),
		unknown(c.desk, c.db.at(22)))

	t.Cleanup(func() { c.control.Run(t, "users", "role", bob, "member") })
	c.control.Run(t, "users", "role", bob, "admin")
	expect(t, allowed(c.desk, c.db.at(22)))

	c.control.Run(t, "users", "role", bob, "member")
	expect(t, unknown(c.desk, c.db.at(22)))
}

func (c *company) demandPostures(t *testing.T) {
	c.obey(t, `
		"postures": {
			"posture:linux": ["node:os == 'linux'", "node:tsVersion >= '1.90'"],
			"posture:future": ["node:tsVersion >= '9.0'"],
		},
		"grants": [
			{"src": ["alice@example.com"], "dst": ["tag:db"], "ip": ["tcp:1"], "srcPosture": ["posture:linux"]},
			{"src": ["alice@example.com"], "dst": ["tag:db"], "ip": ["tcp:2"], "srcPosture": ["posture:future"]},
		],`)
	expect(t,
		allowed(c.laptop, c.db.at(1)),
		refused(c.laptop, c.db.at(2)))
}

func (c *company) grantCapabilities(t *testing.T) {
	const capability = "example.com/cap/shop"
	c.obey(t, `"grants": [{
		"src": ["alice@example.com"], "dst": ["tag:web"], "ip": ["tcp:80"],
		"app": {"example.com/cap/shop": [{"role": "editor"}]},
	}, {
		"src": ["*"], "dst": ["*"], "ip": ["icmp:*"],
	}],`)
	expect(t, allowed(c.laptop, c.web.at(80)))

	// What an application on the destination learns of who calls.
	for _, l := range []struct {
		on, caller *machine
		want       string
	}{
		{c.web, c.laptop, `[{"role": "editor"}]`},
		{c.web, c.desk, `[]`},
		{c.db, c.laptop, `[]`},
		{c.laptop, c.web, `[]`},
	} {
		who, err := l.on.Local.WhoIs(lab.Context(t), l.caller.addr.String())
		if err != nil {
			t.Fatal(err)
		}
		type grant struct{ Role string }
		got, err := tailcfg.UnmarshalCapJSON[grant](who.CapMap, capability)
		if err != nil {
			t.Fatal(err)
		}
		if entitled := l.want != `[]`; len(got) != 0 != entitled || entitled && got[0].Role != "editor" {
			t.Errorf("%s has the capability %v on %s, want %s", l.caller.Hostname, got, l.on.Hostname, l.want)
		}
	}
}

func (c *company) setAttributes(t *testing.T) {
	c.obey(t, `"randomizeClientPort": true,`,
		`{"target": ["tag:web"], "attr": ["example.com/cap/flag"]}`,
		`{"target": ["alice@example.com"], "app": {"example.com/cap/valued": [{"limit": 7}]}}`)
	for _, m := range c.machines() {
		caps := m.Status(t).Self.CapMap
		if caps.Contains("example.com/cap/flag") != (m == c.web) {
			t.Errorf("attributes of %s are %v", m.Hostname, caps)
		}
		if !caps.Contains(tailcfg.NodeAttrRandomizeClientPort) {
			t.Errorf("%s is not told of the option for all: %v", m.Hostname, caps)
		}
		type value struct{ Limit int }
		values, err := tailcfg.UnmarshalNodeCapJSON[value](caps, "example.com/cap/valued")
		if err != nil {
			t.Fatal(err)
		}
		if alices := m == c.laptop || m == c.phone; alices != (len(values) == 1) || alices && values[0].Limit != 7 {
			t.Errorf("values of %s are %v", m.Hostname, values)
		}
	}
}

// expectDatagrams checks that datagrams arrive at one port of a machine, and not at another.
//
// They are not sent back: the official library does not keep track of what its own sockets send, so it
// drops answers that no rule allows.
func expectDatagrams(t *testing.T, from, to *machine, open, closed uint16) {
	t.Helper()
	permitted, forbidden := sendDatagrams(t, from, to.at(open)), sendDatagrams(t, from, to.at(closed))
	// Datagrams keep their order: when the later one is there, the earlier one has had its chance.
	lab.Eventually(t, "several datagrams arrive", func() error {
		forbidden.send(t)
		permitted.send(t)
		if n := permitted.arrived.Load(); n < 3 {
			return fmt.Errorf("%d have arrived", n)
		}
		return nil
	})
	if n := forbidden.arrived.Load(); n != 0 {
		t.Errorf("%d datagrams arrived at port %d", n, closed)
	}
}

// datagrams go from one machine to a port of another.
type datagrams struct {
	conn    net.Conn
	arrived atomic.Int32
}

// sendDatagrams prepares to send datagrams to a port and to count what arrives there.
func sendDatagrams(t *testing.T, from *machine, to place) *datagrams {
	t.Helper()
	listener, err := to.machine.ListenPacket("udp", to.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	conn, err := from.Dial(lab.Context(t), "udp", to.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	d := &datagrams{conn: conn}
	go func() {
		buffer := make([]byte, 64)
		for {
			if _, _, err := listener.ReadFrom(buffer); err != nil {
				return
			}
			d.arrived.Add(1)
		}
	}()
	return d
}

// send sends one.
func (d *datagrams) send(t *testing.T) {
	t.Helper()
	if _, err := d.conn.Write([]byte("datagram")); err != nil {
		t.Fatal(err)
	}
}
