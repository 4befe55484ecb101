package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/tidings-go/tidings/store/postgres"
)

// kept shows that sent rows which are kept cost the relay nothing: the same relay
// with an empty table of sent rows and with a large one, and how fast that one is
// cleaned in the portions that the relay cleans in.
func kept(ctx context.Context, out io.Writer, d *database, w workload) (below int, err error) {
	with := make([]*publisher, 2)
	for n, prefix := range []string{"empty_", "large_"} {
		if with[n], err = newPublisher(ctx, d, true, postgres.Options{Prefix: prefix, KeepSent: true}); err != nil {
			return 0, err
		}
		defer with[n].pool.Close()
	}
	if _, err := with[1].pool.Exec(ctx, `INSERT INTO large_outbox_sent (sequence, slot, id, aggregatetype, aggregateid, type, payload, headers, created_at, attempts, sent_at)
		SELECT -n, n % 64, gen_random_uuid(), 'identity.user.created', 'a' || n % 200, 'identity.user.created', repeat('x', 300), '', n, 0, n FROM generate_series(1, $1::bigint) n`, w.kept); err != nil {
		return 0, err
	}
	var rates [2][]float64
	var ratios []float64
	for round := range w.rounds + 1 {
		var one [2]float64
		for n, p := range with {
			rate, seen, err := tidingsRelays(ctx, d, p, 1, w.free/2, 0)
			if err != nil {
				return 0, err
			}
			if seen.inversions+seen.lost > 0 {
				return 1, fmt.Errorf("kept rows: %v", seen)
			}
			one[n] = rate
		}
		if round > 0 || w.rounds == 1 {
			rates[0], rates[1] = append(rates[0], one[0]), append(rates[1], one[1])
			ratios = append(ratios, one[1]/one[0])
		}
	}
	fmt.Fprintln(out, "| One relay, free broker, sent rows kept | events/s | ratio | bound |")
	fmt.Fprintln(out, "| --- | ---: | ---: | ---: |")
	verdict := ""
	if median(ratios) < 0.9 {
		below++
		verdict = " MISSED"
	}
	fmt.Fprintf(out, "| none kept before | %.0f | | |\n| %d kept before | %.0f | %.2f × | ≥ 0.9 ×%s |\n", median(rates[0]), w.kept, median(rates[1]), median(ratios), verdict)

	var portions []float64
	cleaned := 0
	for cleaned < w.cleaned {
		began := time.Now()
		n, err := with[1].store.Clean(ctx, time.Hour, 1000)
		if err != nil {
			return below, err
		}
		if n == 0 {
			break
		}
		cleaned += n
		portions = append(portions, float64(time.Since(began).Microseconds())/1000)
	}
	fmt.Fprintf(out, "\nCleaning %d rows in portions of 1000: p50 %.1f ms, p99 %.1f ms a portion.\n", cleaned, median(portions), quantile(portions, 0.99))
	return below, nil
}
