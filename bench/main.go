// Command bench measures Tidings against its floor and against the raw client
// of a broker, in one run: the sides are interleaved, and each figure is the
// median of its rounds. Only the ratios travel to another machine.
//
//	go run ./bench                            in memory
//	KAFKA_BROKERS=127.0.0.1:9092 go run ./bench   and on that Kafka
//	go run ./bench -only databases            drivers sqlite and, with TIDINGS_POSTGRES_URL, postgres
//
// It exits with 1 when a ratio is below the bound that is printed beside it.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"text/tabwriter"
	"time"
)

func main() {
	rounds := flag.Int("rounds", 7, "rounds of each side; at least five for a median worth quoting")
	only := flag.String("only", "", "measure memory, kafka or databases alone")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout, max(*rounds, 1), *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, rounds int, only string) error {
	fmt.Fprintf(out, "%s, %d processors, %d rounds, medians\n\n", runtime.Version(), runtime.NumCPU(), rounds)
	below := 0
	if only == "" || only == "memory" {
		b, err := inMemory(ctx, out, rounds)
		if err != nil {
			return err
		}
		below += b
	}
	if only == "" || only == "kafka" {
		if brokers := os.Getenv("KAFKA_BROKERS"); brokers == "" {
			fmt.Fprintln(out, "\nKafka: not measured, KAFKA_BROKERS is not set")
		} else {
			b, err := onKafka(ctx, out, rounds, brokers)
			if err != nil {
				return fmt.Errorf("kafka: %w", err)
			}
			below += b
		}
	}
	if only == "" || only == "databases" {
		if err := onDatabases(ctx, out, rounds); err != nil {
			return err
		}
	}
	if below > 0 {
		return fmt.Errorf("%d figures are below their bound", below)
	}
	return nil
}

// side is one of the things that are compared.
type side struct {
	name string
	// run does some work and returns how many events that were, and how long it
	// took where not all that it does is to be measured.
	run func(ctx context.Context) (events int, took time.Duration, err error)
	// against names the side that this one is compared with, bound is the least
	// ratio of the rates, allocations the most per event; 0 means no bound.
	against     string
	bound       float64
	allocations float64
}

type figure struct {
	rates  []float64 // events per second
	allocs []float64
}

// compare runs every side once per round, in turn, and prints a table. It
// returns how many figures are below their bound.
func compare(ctx context.Context, out io.Writer, rounds int, sides []side) (below int, err error) {
	figures := make(map[string]*figure)
	for round := range rounds + 1 {
		for _, s := range sides {
			runtime.GC()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			started := time.Now()
			events, took, err := s.run(ctx)
			if took == 0 {
				took = time.Since(started)
			}
			if err != nil {
				return 0, fmt.Errorf("%s: %w", s.name, err)
			}
			runtime.ReadMemStats(&after)
			if round == 0 {
				continue // warm-up
			}
			f := figures[s.name]
			if f == nil {
				f = &figure{}
				figures[s.name] = f
			}
			f.rates = append(f.rates, float64(events)/took.Seconds())
			f.allocs = append(f.allocs, float64(after.Mallocs-before.Mallocs)/float64(events))
		}
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\tevents/s\tallocations\tratio\tbound\t")
	for _, s := range sides {
		f := figures[s.name]
		allocs := median(f.allocs)
		ratio, bound, verdict := "", "", ""
		if s.against != "" {
			// Round by round, so that a drift of the machine cancels out.
			ratios := make([]float64, len(f.rates))
			for n, rate := range f.rates {
				ratios[n] = rate / figures[s.against].rates[n]
			}
			r := median(ratios)
			ratio = fmt.Sprintf("%.2f × %s", r, s.against)
			if s.bound > 0 {
				bound = fmt.Sprintf("≥ %.2f", s.bound)
				if r < s.bound {
					below++
					verdict = "BELOW"
				}
			}
		}
		if s.allocations > 0 {
			bound += fmt.Sprintf(" ≤ %.0f allocations", s.allocations)
			if allocs > s.allocations {
				below++
				verdict = "TOO MANY"
			}
		}
		fmt.Fprintf(table, "%s\t%.0f\t%.1f\t%s\t%s\t%s\n", s.name, median(f.rates), allocs, ratio, bound, verdict)
	}
	return below, table.Flush()
}

func median(values []float64) float64 { return quantile(values, 0.5) }

func quantile(values []float64, q float64) float64 {
	sorted := slices.SortedFunc(slices.Values(values), cmp.Compare)
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}
