package interop

import (
	"encoding/json"
	"slices"
	"testing"

	"tailrace.dev/interop/lab"
	"tailscale.com/tailcfg"
)

// ruleSSH checks what a node's SSH server is told; the official library has none that would obey.
func (c *company) ruleSSH(t *testing.T) {
	c.obey(t, `
		"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["*:22"]}],
		"ssh": [
			{"action": "accept", "src": ["alice@example.com"], "dst": ["tag:db"], "users": ["root", "postgres"]},
			{"action": "check", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["autogroup:nonroot"]},
		],`)

	onDB := sshRules(t, c.db)
	if len(onDB) != 1 {
		t.Fatalf("db has %d rules, want 1", len(onDB))
	}
	rule := onDB[0]
	if !rule.Action.Accept || rule.Action.HoldAndDelegate != "" {
		t.Errorf("action on db is %+v, want accept", rule.Action)
	}
	if rule.SSHUsers["root"] != "root" || rule.SSHUsers["postgres"] != "postgres" || rule.SSHUsers["*"] != "" {
		t.Errorf("users on db are %v", rule.SSHUsers)
	}
	expectPrincipals(t, rule, c.laptop, c.phone)

	onDesk := sshRules(t, c.desk)
	if len(onDesk) != 1 {
		t.Fatalf("desk has %d rules, want 1", len(onDesk))
	}
	rule = onDesk[0]
	if rule.Action.Accept || rule.Action.HoldAndDelegate == "" {
		t.Errorf("action on desk is %+v, want a check", rule.Action)
	}
	if rule.SSHUsers["*"] != "=" || rule.SSHUsers["root"] != "" {
		t.Errorf("users on desk are %v", rule.SSHUsers)
	}
	expectPrincipals(t, rule, c.desk)

	if onWeb := sshRules(t, c.web); len(onWeb) != 0 {
		t.Errorf("web has rules that nobody made: %+v", onWeb)
	}
}

// sshRules returns the SSH rules of the machine's network map.
func sshRules(t *testing.T, m *machine) []*tailcfg.SSHRule {
	t.Helper()
	raw, err := m.Local.DebugResultJSON(lab.Context(t), "current-netmap")
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(raw)
	if err != nil {
		t.Fatal(err)
	}
	var netmap struct{ SSHPolicy *tailcfg.SSHPolicy }
	if err := json.Unmarshal(text, &netmap); err != nil {
		t.Fatal(err)
	}
	if netmap.SSHPolicy == nil {
		return nil
	}
	return netmap.SSHPolicy.Rules
}

// expectPrincipals checks that a rule is for connections from all addresses of the machines, and no others.
func expectPrincipals(t *testing.T, rule *tailcfg.SSHRule, machines ...*machine) {
	t.Helper()
	var got, want []string
	for _, principal := range rule.Principals {
		got = append(got, principal.NodeIP)
	}
	for _, m := range machines {
		for _, addr := range m.Status(t).TailscaleIPs {
			want = append(want, addr.String())
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("principals are %v, want %v", got, want)
	}
}
