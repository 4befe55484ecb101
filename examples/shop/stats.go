package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync/atomic"
	"text/tabwriter"

	"github.com/tidings-go/tidings"
)

// summary is what /stats and the end of a run say.
type summary struct {
	Published     int `json:"published"`
	Handled       int `json:"handled"`
	Retried       int `json:"retried"`
	Deduplicated  int `json:"deduplicated"`
	DeadLettered  int `json:"deadLettered"`
	Profiles      int `json:"profiles"`
	Notifications int `json:"notifications"`

	// expected is how many deliveries the story leads to, where some may be lost.
	expected int
}

func (s summary) plus(o summary) summary {
	return summary{s.Published + o.Published, s.Handled + o.Handled, s.Retried + o.Retried, s.Deduplicated + o.Deduplicated,
		s.DeadLettered + o.DeadLettered, s.Profiles + o.Profiles, s.Notifications + o.Notifications, s.expected + o.expected}
}

// ended is how many deliveries have come to their end.
func (s summary) ended() int { return s.Handled + s.Deduplicated + s.DeadLettered }

func (s summary) write(out io.Writer, format string) error {
	if format == "json" {
		return json.NewEncoder(out).Encode(s)
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, row := range []struct {
		name  string
		value int
		what  string
	}{
		{"published", s.Published, "events that modules published"},
		{"handled", s.Handled, "deliveries that a handler finished"},
		{"retried", s.Retried, "attempts that failed and were made again"},
		{"deduplicated", s.Deduplicated, "deliveries recognised as handled before"},
		{"dead letters", s.DeadLettered, "deliveries given up, kept with their failure"},
		{"profiles", s.Profiles, "billing profiles, one per user"},
		{"notifications", s.Notifications, "messages sent"},
	} {
		if _, err := fmt.Fprintf(table, "  %s\t%d\t%s\n", row.name, row.value, row.what); err != nil {
			return err
		}
	}
	if err := table.Flush(); err != nil || s.expected == 0 {
		return err
	}
	_, err := fmt.Fprintf(out, `
  expected %d deliveries, received %d. This driver delivers at most once: an event
  reaches the instances that listen while it is published, and nobody else. One
  that is starting, restarting or cut off does not get it later, and Publish has
  returned nil all the same. Take redis-streams where an event must arrive.
`, s.expected, s.ended())
	return err
}

// stats counts what the bus does. It is an observer like any other.
type stats struct {
	published, handled, retried, deduplicated, deadLettered atomic.Int64
}

// Observe implements [tidings.Observer].
func (s *stats) Observe(_ context.Context, o tidings.Observation) {
	switch o.Kind {
	case tidings.Published:
		s.published.Add(1)
	case tidings.Handled:
		s.handled.Add(1)
	case tidings.Retried:
		s.retried.Add(1)
	case tidings.Deduplicated:
		s.deduplicated.Add(1)
	case tidings.DeadLettered:
		s.deadLettered.Add(1)
	}
}

func (s *stats) summary() summary {
	return summary{
		Published: int(s.published.Load()), Handled: int(s.handled.Load()), Retried: int(s.retried.Load()),
		Deduplicated: int(s.deduplicated.Load()), DeadLettered: int(s.deadLettered.Load()),
	}
}
