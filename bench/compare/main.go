// Command compare does the same work with Tidings and with Watermill on one
// PostgreSQL, in one run: the sides are interleaved, each figure is the median of
// its rounds, and a ratio is the median of the ratios of each round. Only the
// ratios travel to another machine.
//
//	TIDINGS_POSTGRES_URL=postgres://… go run .
//
// Both sides have their default settings. It makes a schema of its own and drops
// it at the end. It exits with 1 when a ratio misses the bound printed beside it,
// and when Tidings lost an event or sent one out of order.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"time"
)

func main() {
	work := full
	flag.IntVar(&work.rounds, "rounds", work.rounds, "rounds of each side; at least five for a median worth quoting")
	only := flag.String("only", "", "parts to run, separated by commas: relays, latency, enqueue, kept; all of them when empty")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Stdout, os.Getenv("TIDINGS_POSTGRES_URL"), *only, work)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

// workload is how much work a round has.
type workload struct {
	rounds int
	// events of one round by side: a slow side gets fewer, so that a round of each
	// takes about as long.
	free, slow, rivalFree, rivalSlow int
	// commits whose way to the handler is timed, in one round.
	commits, rivalCommits int
	// transactions of one round that put an event into the outbox.
	transactions int
	// kept is how many sent rows lie in the table of sent rows, and cleaned how
	// many of them are deleted.
	kept, cleaned int
}

var full = workload{
	rounds: 5, free: 20_000, slow: 20_000, rivalFree: 4_000, rivalSlow: 300,
	commits: 100, rivalCommits: 8, transactions: 600, kept: 1_000_000, cleaned: 50_000,
}

// part is one comparison; below counts the figures that miss their bound.
type part struct {
	name string
	run  func(ctx context.Context, out io.Writer, d *database, w workload) (below int, err error)
}

var parts = []part{{"relays", relays}, {"latency", latency}, {"enqueue", enqueue}, {"kept", kept}}

func run(ctx context.Context, out io.Writer, url, only string, w workload) (err error) {
	if url == "" {
		return errors.New("TIDINGS_POSTGRES_URL is not set: the address of a PostgreSQL where schemas may be made")
	}
	d, err := newDatabase(ctx, url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.drop()) }()
	settings, err := d.describe(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s, %s, %d processors, %s; %d rounds, medians\n", time.Now().UTC().Format(time.DateOnly), runtime.Version(), runtime.NumCPU(), settings, w.rounds)
	below := 0
	for _, p := range parts {
		if only != "" && !strings.Contains(","+only+",", ","+p.name+",") {
			continue
		}
		fmt.Fprintln(out)
		n, err := p.run(ctx, out, d, w)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		below += n
	}
	if below > 0 {
		return fmt.Errorf("%d figures miss their bound", below)
	}
	return nil
}
