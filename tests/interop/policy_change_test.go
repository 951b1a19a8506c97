package interop

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"tailrace.dev/interop/lab"
)

// promptly is how soon a new policy takes effect.
const promptly = time.Second

const (
	openWeb  = `"acls": [{"action": "accept", "src": ["alice@example.com"], "dst": ["tag:web:80,443"]}],`
	shrunk   = `"acls": [{"action": "accept", "src": ["alice@example.com"], "dst": ["tag:web:80"]}],`
	closeWeb = `"acls": [{"action": "accept", "src": ["alice@example.com"], "dst": ["tag:db:80"]}],`
)

// changeLive changes what works and what does not, and measures how long it takes.
func (c *company) changeLive(t *testing.T) {
	c.obey(t, shrunk)
	expect(t, allowed(c.laptop, c.web.at(80)), refused(c.laptop, c.web.at(443)))
	streams := c.control.Metric(t, "tailrace_control_map_full_frames_total")
	untouched, err := c.laptop.Connect(lab.Context(t), c.web.Node, c.web.at(80).addr)
	if err != nil {
		t.Fatal(err)
	}
	defer untouched.Close()

	set := func(policy string) func() { return func() { c.control.SetPolicy(t, "{"+tags+policy+"}") } }
	expectPromptly(t, "a port opens", set(openWeb), allowed(c.laptop, c.web.at(443)))
	expectPromptly(t, "a port closes", set(shrunk), refused(c.laptop, c.web.at(443)))
	// A stream that the policy allows all the time does not notice.
	if err := echoed(lab.Context(t), untouched); err != nil {
		t.Errorf("a stream that no change concerned: %v", err)
	}
	expectPromptly(t, "a peer disappears", set(closeWeb), unknown(c.laptop, c.web.at(80)))
	expectPromptly(t, "a peer appears", set(openWeb), allowed(c.laptop, c.web.at(80)))

	if after := c.control.Metric(t, "tailrace_control_map_full_frames_total"); after != streams {
		t.Errorf("map streams began anew: %v full frames, were %v", after, streams)
	}
}

// refusePolicies tries policies that control must not accept; the one in force stays.
func (c *company) refusePolicies(t *testing.T) {
	c.obey(t, shrunk)
	for what, policy := range map[string]string{
		"an unknown key": `"alcs": []`,
		"a failed test":  openWeb + `"tests": [{"src": "alice@example.com", "deny": ["tag:web:443"]}]`,
	} {
		out, err := c.control.TryRun("policy", "set", lab.WriteFile(t, "policy.hujson", "{"+tags+policy+"}"))
		if err == nil {
			t.Errorf("%s was accepted: %s", what, out)
		}
	}
	expect(t, allowed(c.laptop, c.web.at(80)), refused(c.laptop, c.web.at(443)))
}

// expectPromptly makes a change and checks that its effect on a link shows in time.
func expectPromptly(t *testing.T, what string, change func(), l link) {
	t.Helper()
	start := time.Now()
	change()
	// Packets that are lost while the change is under way are not waited for.
	took := lab.Takes(t, what, start, func() error { return l.try(promptly / 10) })
	t.Logf("%s after %v", what, took.Round(time.Millisecond))
	if limit := lab.Promised(t, promptly); took >= limit {
		t.Errorf("%s after %v, promised within %v", what, took, limit)
	}
}

func TestPolicyFile(t *testing.T) {
	allow := "{" + tags + openWeb + "}"
	deny := "{" + tags + closeWeb + "}"
	file := lab.WriteFile(t, "policy.hujson", allow)
	control := lab.StartControlWithPolicy(t, file)
	control.Run(t, "users", "create", alice)
	laptop := hire(t, control, "laptop", control.NewKeyOf(t, alice))
	web := hire(t, control, "web", control.NewKey(t, "--tags", "tag:web"))
	laptop.begin(t)
	web.begin(t)
	expect(t, allowed(laptop, web.at(80)), refused(laptop, web.at(22)))

	write := func(text string) func() {
		return func() {
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	replace := func(text string) func() {
		return func() {
			fresh := file + ".new"
			if err := os.WriteFile(fresh, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(fresh, file); err != nil {
				t.Fatal(err)
			}
		}
	}
	expectPromptly(t, "an edit closes", write(deny), unknown(laptop, web.at(80)))
	expectPromptly(t, "a replaced file opens", replace(allow), allowed(laptop, web.at(80)))

	// A broken file changes nothing, and is complained about.
	write(strings.Replace(deny, "acls", "alcs", 1))()
	lab.Eventually(t, "status complains", func() error {
		return contains(control.Run(t, "status"), "alcs")
	})
	if err := contains(control.Health(t), "degraded"); err != nil {
		t.Errorf("health does not complain: %v", err)
	}
	expect(t, allowed(laptop, web.at(80)), refused(laptop, web.at(22)))

	// The file is the policy's only home.
	_, err := control.TryRun("policy", "set", lab.WriteFile(t, "other.hujson", deny))
	if err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("setting a policy beside the file: %v, want a refusal that names %s", err, file)
	}
	expectPromptly(t, "the repaired file closes", write(deny), unknown(laptop, web.at(80)))
}

// contains is an error unless a text holds another.
func contains(text, wanted string) error {
	if !strings.Contains(text, wanted) {
		return fmt.Errorf("%q is not in:\n%s", wanted, text)
	}
	return nil
}
