package interop

import (
	"testing"

	"tailrace.dev/interop/lab"
	"tailscale.com/net/netcheck"
	"tailscale.com/net/netmon"
	"tailscale.com/tailcfg"
)

func TestNetcheckFindsTheRelayOverUDP(t *testing.T) {
	onEachServer(t, func(t *testing.T, region *tailcfg.DERPRegion) {
		report := netcheckOf(t, region)
		if !report.UDP || !report.IPv4 {
			t.Errorf("no answer over UDP: %+v", report)
		}
		if addr := report.GlobalV4.Addr(); addr != lab.Addr() {
			t.Errorf("our address is seen as %v, want %v", addr, lab.Addr())
		}
	})
}

func TestNetcheckFindsTheRelayOverHTTPSWhereUDPIsBlocked(t *testing.T) {
	onEachServer(t, func(t *testing.T, region *tailcfg.DERPRegion) {
		region.Nodes[0].STUNPort = -1
		if report := netcheckOf(t, region); report.UDP {
			t.Errorf("an answer over UDP from a relay without STUN: %+v", report)
		}
	})
}

// netcheckOf runs the official client's network check against one region, which must come out as home.
func netcheckOf(t *testing.T, region *tailcfg.DERPRegion) *netcheck.Report {
	t.Helper()
	ctx := lab.Context(t)
	client := &netcheck.Client{NetMon: netmon.NewStatic(), Logf: t.Logf, SkipExternalNetwork: true}
	if err := client.Standalone(ctx, ":0"); err != nil {
		t.Fatal(err)
	}
	regions := &tailcfg.DERPMap{
		OmitDefaultRegions: true,
		Regions:            map[int]*tailcfg.DERPRegion{region.RegionID: region},
	}
	report, err := client.GetReport(ctx, regions, nil)
	if err != nil {
		t.Fatal(err)
	}
	if report.PreferredDERP != region.RegionID || report.RegionLatency[region.RegionID] <= 0 {
		t.Errorf("home is region %d with latencies %v, want %d", report.PreferredDERP, report.RegionLatency, region.RegionID)
	}
	return report
}
