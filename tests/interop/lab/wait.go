package lab

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"
)

// Patience bounds every wait of a test. Generous: a test that passes never gets near it, and the machine may
// be slow and shared.
const Patience = 60 * time.Second

// pollEvery is how often a condition is looked at that nothing announces.
const pollEvery = 50 * time.Millisecond

// pollOften is the same where the time it takes is measured.
const pollOften = 2 * time.Millisecond

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
	if err := Until(check); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// Until waits until check returns nil, and returns its last error if that never happens. Unlike
// [Eventually] it may be used in any goroutine.
func Until(check func() error) error {
	deadline := time.Now().Add(Patience)
	for {
		err := check()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("still not after %v: %w", Patience, err)
		}
		time.Sleep(pollEvery)
	}
}

// Takes waits until check returns nil, and returns how long after since that was.
func Takes(t testing.TB, what string, since time.Time, check func() error) time.Duration {
	t.Helper()
	for {
		err := check()
		took := time.Since(since)
		if err == nil {
			return took
		}
		if took > Patience {
			t.Fatalf("%s: still not after %v: %v", what, Patience, err)
		}
		time.Sleep(pollOften)
	}
}

// Promised is a duration that the product promises, stretched where the machine is slower than it must be:
// by the factor in TAILRACE_TIME_SCALE.
func Promised(t testing.TB, d time.Duration) time.Duration {
	t.Helper()
	text := os.Getenv("TAILRACE_TIME_SCALE")
	if text == "" {
		return d
	}
	scale, err := strconv.ParseFloat(text, 64)
	if err != nil {
		t.Fatalf("TAILRACE_TIME_SCALE: %v", err)
	}
	return time.Duration(float64(d) * scale)
}
