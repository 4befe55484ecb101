// Package storetest is the suite that every store passes: claims and dead letters.
// A store's own test calls it with a function that opens the store empty. The
// suite waits for leases to end in real time, by a store's own clock; nothing in it
// takes longer than a few seconds.
package storetest

import (
	"testing"
	"time"
)

// patience is how long the suite waits for something that is sure to come.
const patience = 10 * time.Second

// leaseTime is short, so that its end comes soon, and long enough for a slow
// store to answer before.
const leaseTime = 300 * time.Millisecond

// eventually waits for a condition.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	within(t, patience, what, condition)
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
