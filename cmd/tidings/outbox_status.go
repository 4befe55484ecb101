package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidings-go/tidings/outbox"
)

// outboxStatus is what `tidings outbox status` says.
type outboxStatus struct {
	At            time.Time `json:"at"`
	Backlog       int64     `json:"backlog"`
	OldestSeconds float64   `json:"oldestSeconds"`
	Held          int64     `json:"heldAggregates"`
	// Change is by how many rows a second the backlog grew (or, negative, shrank)
	// since the sample before; the first has none.
	Change *float64 `json:"changePerSecond,omitempty"`
}

func outboxStatusVerb(s *session) *cobra.Command {
	var watch bool
	var every, limit time.Duration
	command := &cobra.Command{
		Use: "status", Short: "Says what is not sent, and since when", Args: cobra.NoArgs,
		Long: `Says how many events are not sent, how long the oldest of them has waited, how
many aggregates are held because the broker refuses their first event, and by how
much the backlog grows or shrinks (negative) per second: the rate at which events
come less the rate at which they are sent.

The rate is measured between two looks, one second apart, or --every with --watch.`,
		Example: "  tidings outbox status\n  tidings outbox status --watch --every 5s\n  tidings outbox status --fail-after 5m   # exit status 3 when the oldest is older",
	}
	command.Flags().BoolVar(&watch, "watch", false, "say it again and again, until interrupted")
	command.Flags().DurationVar(&every, "every", time.Second, "time between two looks")
	command.Flags().DurationVar(&limit, "fail-after", 0, "exit with status 3 when the oldest event has waited longer")
	command.RunE = s.do(func(ctx context.Context, _ []string) error {
		if every <= 0 {
			return usage("--every is %v: a duration such as 1s", every)
		}
		queue, err := s.queue()
		if err != nil {
			return err
		}
		sample, err := sampleOutbox(ctx, queue, nil)
		if err != nil {
			return err
		}
		if watch {
			return s.watchOutbox(ctx, queue, sample, every)
		}
		if !wait(ctx, every) {
			return ctx.Err()
		}
		if sample, err = sampleOutbox(ctx, queue, sample); err != nil {
			return err
		}
		if err := s.printOutbox(sample); err != nil {
			return err
		}
		if limit > 0 && sample.OldestSeconds > limit.Seconds() {
			return errFindings
		}
		return nil
	})
	return command
}

// watchOutbox says one line a look until ctx ends. A database that does not
// answer is asked again.
func (s *session) watchOutbox(ctx context.Context, queue outbox.Queue, last *outboxStatus, every time.Duration) error {
	if err := s.printOutbox(last); err != nil {
		return err
	}
	for wait(ctx, every) {
		sample, err := sampleOutbox(ctx, queue, last)
		if err != nil {
			if ctx.Err() == nil {
				s.logger().Warn("the database does not answer", "error", err)
			}
			continue
		}
		if err := s.printOutbox(sample); err != nil {
			return err
		}
		last = sample
	}
	return nil
}

func sampleOutbox(ctx context.Context, queue outbox.Queue, before *outboxStatus) (*outboxStatus, error) {
	asked, cancel := context.WithTimeout(ctx, brokerTime)
	defer cancel()
	status, err := queue.Status(asked)
	if err != nil {
		return nil, err
	}
	sample := &outboxStatus{At: time.Now().UTC(), Backlog: status.Backlog, OldestSeconds: status.Oldest.Seconds(), Held: status.Held}
	if before != nil {
		if passed := sample.At.Sub(before.At).Seconds(); passed > 0 {
			change := float64(sample.Backlog-before.Backlog) / passed
			sample.Change = &change
		}
	}
	return sample, nil
}

func (s *session) printOutbox(o *outboxStatus) error {
	change := "-"
	if o.Change != nil {
		change = fmt.Sprintf("%+.1f", *o.Change)
	}
	return s.print(o, func(w io.Writer) {
		printf(w, "%s  backlog %d  oldest %s  held aggregates %d  change %s/s\n", moment(o.At), o.Backlog, age(seconds(o.OldestSeconds)), o.Held, change)
	})
}

func seconds(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }

// wait reports false when ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
