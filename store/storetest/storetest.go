// Package storetest is the suite that every store passes: claims and dead letters.
// A store's own test calls it with a function that opens the store empty. The
// suite waits for leases to end in real time, by a store's own clock; nothing in it
// takes longer than a few seconds.
package storetest

import (
	"testing"
	"time"

	"github.com/tidings-go/tidings/internal/testtime"
)

// patience is how long the suite waits for something that is sure to come.
func patience() time.Duration { return testtime.Patience(30 * time.Second) }

// leaseTime is short, so that its end comes soon. What has to happen before a lease
// ends is tested with a long one.
func leaseTime() time.Duration { return testtime.Scaled(300 * time.Millisecond) }

// eventually waits for a condition.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	within(t, patience(), what, condition)
}

// within waits for a condition, and not longer than limit.
func within(t *testing.T, limit time.Duration, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(limit)
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for !condition() {
		select {
		case <-look.C:
		case <-deadline:
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}
