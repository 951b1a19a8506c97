package lab

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

// Metric returns one of the server's metrics, by its name with labels.
func (c *Control) Metric(t testing.TB, name string) float64 {
	t.Helper()
	value, found, err := metric(c.page(t, "/metrics"), name)
	if err != nil || !found {
		t.Fatalf("%s/metrics has no %s: %v", c.URL(), name, err)
	}
	return value
}

// Health returns what the server says of its own health.
func (c *Control) Health(t testing.TB) string {
	t.Helper()
	return string(c.page(t, "/health"))
}

// page gets a page of the server.
func (c *Control) page(t testing.TB, path string) []byte {
	t.Helper()
	resp, err := http.Get(c.URL() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// metric finds a metric on a page in Prometheus' text format, by its name with labels.
func metric(page []byte, name string) (value float64, found bool, err error) {
	for line := range strings.Lines(string(page)) {
		if text, found := strings.CutPrefix(line, name+" "); found {
			value, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
			return value, err == nil, err
		}
	}
	return 0, false, nil
}
