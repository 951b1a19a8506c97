package interop

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"tailrace.dev/interop/lab"
	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnstate"
	"tailscale.com/net/tsaddr"
)

// What stands behind the router. It answers for all of these addresses itself.
var (
	office    = netip.MustParsePrefix("10.55.0.0/24")
	warehouse = netip.MustParsePrefix("10.56.7.0/24")
	inOffice  = netip.MustParseAddr("10.55.0.9")
	inStore   = netip.MustParseAddr("10.56.7.9")
	outside   = netip.MustParseAddr("198.51.100.9")
)

func (c *company) approveRoutes(t *testing.T) {
	c.obey(t, `"acls": [
		{"action": "accept", "src": ["alice@example.com"], "dst": ["10.55.0.0/24:80", "tag:router:22"]},
		{"action": "accept", "src": ["bob@example.com"], "dst": ["tag:router:22"]},
	],`)
	c.router.advertise(t, office)
	c.expectOffered(t, c.router, office)
	// It is known, but nobody uses it.
	expect(t,
		allowed(c.laptop, c.router.at(22)),
		unknown(c.laptop, c.router.behind(inOffice, 80)))

	c.control.Run(t, "nodes", "routes", "approve", "router", office.String())
	expect(t,
		allowed(c.laptop, c.router.behind(inOffice, 80)),
		allowed(c.desk, c.router.at(22)),
		refused(c.laptop, c.router.behind(inOffice, 81)),
		refused(c.laptop, c.router.at(80)),
		unknown(c.desk, c.router.behind(inOffice, 80)))
	expectPeer(t, c.laptop, "router", isPrimaryOf(office))

	c.control.Run(t, "nodes", "routes", "remove", "router", office.String())
	expect(t,
		allowed(c.laptop, c.router.at(22)),
		unknown(c.laptop, c.router.behind(inOffice, 80)))
}

func (c *company) approveRoutesByPolicy(t *testing.T) {
	c.obey(t, `
		"autoApprovers": {"routes": {"10.56.0.0/16": ["tag:router"]}},
		"acls": [{"action": "accept", "src": ["alice@example.com"], "dst": ["10.0.0.0/8:80"]}],`)
	c.router.advertise(t, office, warehouse)
	expect(t,
		allowed(c.laptop, c.router.behind(inStore, 80)),
		unknown(c.laptop, c.router.behind(inOffice, 80)))

	c.router.advertise(t)
	expect(t, unknown(c.laptop, c.router.behind(inStore, 80)))
}

// takeRouteOver has two routers of one route, of which one withdraws.
func (c *company) takeRouteOver(t *testing.T) {
	c.obey(t, `
		"autoApprovers": {"routes": {"10.55.0.0/16": ["tag:router", "tag:web"]}},
		"acls": [{"action": "accept", "src": ["alice@example.com"], "dst": ["10.55.0.0/16:80"]}],`)
	c.router.advertise(t, office)
	expectPeer(t, c.laptop, "router", isPrimaryOf(office))
	c.web.advertise(t, office)
	c.expectOffered(t, c.web, office)

	// The one that has the route keeps it, until it no longer offers it.
	expectPeer(t, c.laptop, "router", isPrimaryOf(office))
	expect(t, allowed(c.laptop, c.router.behind(inOffice, 80)))
	c.router.advertise(t)
	expectPeer(t, c.laptop, "web", isPrimaryOf(office))
	expect(t,
		allowed(c.laptop, c.web.behind(inOffice, 80)),
		refused(c.laptop, c.web.behind(inOffice, 81)))
}

// steerRoute has two routers of one route, of which the policy names the one to use.
func (c *company) steerRoute(t *testing.T) {
	c.obey(t, `
		"autoApprovers": {"routes": {"10.55.0.0/16": ["tag:router", "tag:web"]}},
		"grants": [{"src": ["alice@example.com"], "dst": ["10.55.0.0/24"], "ip": ["tcp:80"], "via": ["tag:web"]}],`)
	c.router.advertise(t, office)
	c.expectOffered(t, c.router, office)
	c.web.advertise(t, office)
	expect(t,
		allowed(c.laptop, c.web.behind(inOffice, 80)),
		refused(c.laptop, c.web.behind(inOffice, 81)),
		unknown(c.laptop, c.router.at(80)),
		unknown(c.desk, c.web.behind(inOffice, 80)))
}

func (c *company) useExitNode(t *testing.T) {
	c.obey(t, `"grants": [
		{"src": ["alice@example.com"], "dst": ["autogroup:internet"], "ip": ["*"]},
		{"src": ["autogroup:member"], "dst": ["tag:router"], "ip": ["22"]},
	],`)
	c.router.advertise(t, tsaddr.AllIPv4(), tsaddr.AllIPv6())
	c.expectOffered(t, c.router, tsaddr.AllIPv4())
	expectPeer(t, c.laptop, "router", isExitNode(false))

	c.control.Run(t, "nodes", "routes", "approve", "router", "0.0.0.0/0")
	expectPeer(t, c.laptop, "router", isExitNode(true))
	// Who may not use the internet through it is not offered to.
	expectPeer(t, c.desk, "router", isExitNode(false))

	exit := c.router.Status(t).Self.ID
	c.laptop.prefer(t, ipn.MaskedPrefs{Prefs: ipn.Prefs{ExitNodeID: exit}, ExitNodeIDSet: true})
	t.Cleanup(func() { c.laptop.prefer(t, ipn.MaskedPrefs{ExitNodeIDSet: true}) })
	expect(t, allowed(c.laptop, c.router.behind(outside, 443)))

	c.control.Run(t, "nodes", "routes", "remove", "router", "::/0")
	expectPeer(t, c.laptop, "router", isExitNode(false))
}

// advertise has the machine offer these routes and no others, until the test ends.
func (m *machine) advertise(t *testing.T, routes ...netip.Prefix) {
	t.Helper()
	m.prefer(t, ipn.MaskedPrefs{Prefs: ipn.Prefs{AdvertiseRoutes: routes}, AdvertiseRoutesSet: true})
	t.Cleanup(func() { m.prefer(t, ipn.MaskedPrefs{AdvertiseRoutesSet: true}) })
}

// expectOffered waits until control knows that a machine offers a route.
func (c *company) expectOffered(t *testing.T, by *machine, route netip.Prefix) {
	t.Helper()
	lab.Eventually(t, fmt.Sprintf("control hears of %v at %s", route, by.Hostname), func() error {
		list := c.control.Run(t, "nodes", "routes", "list", by.Hostname, "--json")
		var nodes []struct {
			Routes []struct {
				Prefix     netip.Prefix
				Advertised bool
			}
		}
		if err := json.Unmarshal([]byte(list), &nodes); err != nil {
			t.Fatal(err)
		}
		for _, node := range nodes {
			for _, offer := range node.Routes {
				if offer.Prefix == route && offer.Advertised {
					return nil
				}
			}
		}
		return errors.New(list)
	})
}

// isPrimaryOf makes a check of expectPeer: is the peer the one that serves the route?
func isPrimaryOf(route netip.Prefix) func(*ipnstate.PeerStatus) error {
	return func(peer *ipnstate.PeerStatus) error {
		if peer.PrimaryRoutes == nil || !slices.Contains(peer.PrimaryRoutes.AsSlice(), route) {
			return fmt.Errorf("its primary routes are %v", peer.PrimaryRoutes)
		}
		return nil
	}
}

// isExitNode makes a check of expectPeer: is the peer offered as an exit node?
func isExitNode(want bool) func(*ipnstate.PeerStatus) error {
	return func(peer *ipnstate.PeerStatus) error {
		if peer.ExitNodeOption != want {
			return fmt.Errorf("offered as exit node: %v", peer.ExitNodeOption)
		}
		return nil
	}
}
