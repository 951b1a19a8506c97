package lab

import (
	"context"
	"testing"
	"time"
)

// Patience bounds every wait of a test. Generous: a test that passes never gets near it, and the machine may
// be slow and shared.
const Patience = 60 * time.Second

// pollEvery is how often a condition is looked at that nothing announces.
const pollEvery = 50 * time.Millisecond

// Context returns a context that ends with the test or when its patience does.
func Context(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	t.Cleanup(cancel)
	return ctx
}

// Eventually waits until check returns nil, and fails the test with its last error if that never happens.
func Eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(Patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: still not after %v: %v", what, Patience, err)
		}
		time.Sleep(pollEvery)
	}
}
