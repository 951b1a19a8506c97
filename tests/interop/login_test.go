package interop

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"slices"
	"strings"
	"testing"

	"tailrace.dev/interop/lab"
	"tailscale.com/ipn"
)

func TestAnInteractiveLoginIsApprovedByTheAdmin(t *testing.T) {
	control := lab.StartControl(t)
	node := lab.StartNode(t, control, lab.NodeOptions{Hostname: "alpha"})
	url := loginURL(t, node)

	// What the person who opens the page sees must lead to the admin's command.
	code := path.Base(url)
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK || !strings.Contains(string(page), code) {
		t.Errorf("login page: %s without the code %s:\n%s", resp.Status, code, page)
	}

	control.Run(t, "nodes", "approve", code, "--user", lab.User)
	expectOverlayAddresses(t, node.AwaitRunning(t).TailscaleIPs)
}

func TestALoginWithANewKeyKeepsTheNode(t *testing.T) {
	control := lab.StartControl(t)
	witness := lab.JoinNode(t, control, "witness")
	joined := lab.NodeOptions{Hostname: "alpha", AuthKey: control.NewKey(t), Dir: t.TempDir()}
	node := lab.StartNode(t, control, joined)
	before := node.AwaitRunning(t)
	if err := node.Close(); err != nil {
		t.Fatal(err)
	}
	// As long as it is given an auth key, an official node logs in with nothing else.
	joined.AuthKey = ""
	node = lab.StartNode(t, control, joined)
	node.AwaitRunning(t)

	// A login of a node that runs makes a new node key, and leaves the old one working until it is approved.
	code := path.Base(loginURL(t, node))
	expectPeer(t, witness, "alpha", online)
	control.Run(t, "nodes", "approve", code, "--user", lab.User)

	lab.Eventually(t, "the node has its new key", func() error {
		if node.Status(t).Self.PublicKey == before.Self.PublicKey {
			return errors.New("still the old one")
		}
		return nil
	})
	after := node.AwaitRunning(t)
	if after.Self.ID != before.Self.ID || !slices.Equal(after.TailscaleIPs, before.TailscaleIPs) {
		t.Errorf("it is now %v %v, was %v %v", after.Self.ID, after.TailscaleIPs, before.Self.ID, before.TailscaleIPs)
	}
	lab.Eventually(t, "a peer knows it by its new key alone", func() error {
		status := witness.Status(t)
		if status.Peer[after.Self.PublicKey] == nil || len(status.Peer) != 1 {
			return fmt.Errorf("it knows %v", status.Peers())
		}
		return nil
	})
}

// loginURL has a node ask its user to log in, and returns the address of the page to open.
func loginURL(t *testing.T, node *lab.Node) string {
	t.Helper()
	ctx := lab.Context(t)
	watcher, err := node.Local.WatchIPNBus(ctx, ipn.NotifyInitialState)
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	if err := node.Local.StartLoginInteractive(ctx); err != nil {
		t.Fatal(err)
	}
	for {
		notice, err := watcher.Next()
		if err != nil {
			t.Fatalf("waiting for a login URL: %v", err)
		}
		if url := notice.BrowseToURL; url != nil && *url != "" {
			return *url
		}
	}
}
