package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/tidings-go/tidings/store/postgres"
)

// relays compares what moves events from the outbox to a broker.
func relays(ctx context.Context, out io.Writer, d *database, w workload) (below int, err error) {
	p, err := newPublisher(ctx, d, true, postgres.Options{})
	if err != nil {
		return 0, err
	}
	defer p.pool.Close()
	event, err := model(ctx, p)
	if err != nil {
		return 0, err
	}
	cases := []struct {
		name          string
		count         int
		takes         time.Duration
		events, rival int
		bound         float64
	}{
		{"four relays, 2 ms a call", 4, 2 * time.Millisecond, w.slow, w.rivalSlow, 50},
		{"one relay, free broker", 1, 0, w.free, w.rivalFree, 3},
		{"four relays, free broker", 4, 0, w.free, w.rivalFree, 3},
	}
	fmt.Fprintln(out, "| Outbox to broker | Tidings, events/s | Watermill, events/s | ratio | bound | Tidings | Watermill |")
	fmt.Fprintln(out, "| --- | ---: | ---: | ---: | ---: | --- | --- |")
	for _, c := range cases {
		var ours, theirs, ratios []float64
		var our, their trouble
		for round := range w.rounds + 1 {
			a, seen, err := tidingsRelays(ctx, d, p, c.count, c.events, c.takes)
			if err != nil {
				return below, fmt.Errorf("%s: tidings: %w", c.name, err)
			}
			our.add(seen)
			b, seen, err := watermillRelays(ctx, d, event, c.count, c.rival, c.takes)
			if err != nil {
				return below, fmt.Errorf("%s: watermill: %w", c.name, err)
			}
			their.add(seen)
			if round > 0 || w.rounds == 1 { // else it warms up
				ours, theirs, ratios = append(ours, a), append(theirs, b), append(ratios, a/b)
			}
		}
		verdict := ""
		if median(ratios) < c.bound || our.inversions+our.overlaps+our.lost > 0 {
			below++
			verdict = " MISSED"
		}
		fmt.Fprintf(out, "| %s | %.0f | %.0f | %.1f × | ≥ %.0f ×%s | %v | %v |\n", c.name, median(ours), median(theirs), median(ratios), c.bound, verdict, our, their)
	}
	return below, nil
}

func median(values []float64) float64 { return quantile(values, 0.5) }

func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.SortedFunc(slices.Values(values), cmp.Compare)
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}
