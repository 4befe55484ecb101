package main

import (
	"os"
	"strings"
	"testing"

	"github.com/tidings-go/tidings/driver/drivertest"
)

// Every part runs to its end with little work. Its figures say nothing, and
// whether they reach their bounds is not asked.
func TestEveryPartRuns(t *testing.T) {
	url := drivertest.Server(t, "TIDINGS_POSTGRES_URL")
	small := workload{rounds: 1, free: 600, slow: 600, rivalFree: 200, rivalSlow: 50, commits: 5, rivalCommits: 1, transactions: 20, kept: 2000, cleaned: 1000}
	var out strings.Builder
	err := run(t.Context(), &out, url, "", small)
	if err != nil && !strings.Contains(err.Error(), "miss their bound") {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, want := range []string{"four relays, 2 ms a call", "Commit to handler", "10 × Tidings", "2000 kept before", "Cleaning 1000 rows"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table has nothing of %q:\n%s", want, out.String())
		}
	}
	for line := range strings.Lines(out.String()) {
		if strings.HasPrefix(line, "| four relays") || strings.HasPrefix(line, "| one relay") {
			if !strings.Contains(line, "| 0 out of order, 0 at once, 0 lost,") {
				t.Errorf("disorder: %s", line)
			}
		}
	}
}

func TestWithoutAServer(t *testing.T) {
	if err := run(t.Context(), os.Stderr, "", "", full); err == nil || !strings.Contains(err.Error(), "TIDINGS_POSTGRES_URL") {
		t.Errorf("without an address: %v", err)
	}
}
