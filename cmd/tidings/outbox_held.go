package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidings-go/tidings/outbox"
)

// heldEvent is the first event of an aggregate that the broker refused.
type heldEvent struct {
	Sequence    int64   `json:"sequence"`
	Channel     string  `json:"channel"`
	AggregateID string  `json:"aggregateId"`
	Type        string  `json:"type"`
	ID          string  `json:"id"`
	Attempts    int     `json:"attempts"`
	Failure     string  `json:"failure"`
	WaitSeconds float64 `json:"waitSeconds"`
}

// discardedEvent is one that was taken out instead of being sent.
type discardedEvent struct {
	heldEvent
	At     time.Time `json:"at"`
	Reason string    `json:"reason"`
}

func showHeld(r *outbox.Row) heldEvent {
	return heldEvent{Sequence: r.Sequence, Channel: r.Channel, AggregateID: r.AggregateID, Type: r.Type, ID: r.ID, Attempts: r.Attempts, Failure: r.Failure}
}

// operations is what can be done about events that the broker refuses.
func (s *session) operations() (outbox.Operations, error) {
	queue, err := s.queue()
	if err != nil {
		return nil, err
	}
	operations, ok := queue.(outbox.Operations)
	if !ok {
		return nil, usage("the outbox of a %T lists no held events", queue)
	}
	return operations, nil
}

// pageFlags are where a list begins and how long it is.
type pageFlags struct {
	after int64
	limit int
}

func (f *pageFlags) register(command *cobra.Command) {
	command.Flags().Int64Var(&f.after, "after", 0, "begin behind this sequence number, the last one of the page before")
	command.Flags().IntVar(&f.limit, "limit", 100, "most events to list")
}

func (f *pageFlags) check() error {
	if f.limit < 1 || f.after < 0 {
		return usage("--limit is %d and --after %d: 1 or more, and a sequence number", f.limit, f.after)
	}
	return nil
}

func outboxHeldVerb(s *session) *cobra.Command {
	var page pageFlags
	command := &cobra.Command{
		Use: "held", Short: "Lists events that the broker refuses, each of which holds its aggregate", Args: cobra.NoArgs,
		Long: `Lists the first event of each aggregate that is held because the broker refuses it
(too large, no topic for it). Its later events wait behind it; the relay tries it
again by itself, ever less often. Mend the cause and say retry, or discard it.`,
	}
	page.register(command)
	command.RunE = s.do(func(ctx context.Context, _ []string) error {
		if err := page.check(); err != nil {
			return err
		}
		operations, err := s.operations()
		if err != nil {
			return err
		}
		found, err := operations.Held(ctx, page.after, page.limit)
		if err != nil {
			return err
		}
		events := make([]heldEvent, 0, len(found))
		for n := range found {
			e := showHeld(&found[n].Row)
			e.WaitSeconds = found[n].Wait.Seconds()
			events = append(events, e)
		}
		return s.print(map[string]any{"held": events}, func(w io.Writer) {
			if len(events) == 0 {
				printf(w, "No event is held.\n")
				return
			}
			printf(w, "SEQUENCE\tCHANNEL\tAGGREGATE\tTYPE\tATTEMPTS\tNEXT IN\tFAILURE\n")
			for _, e := range events {
				printf(w, "%d\t%s\t%s\t%s\t%d\t%s\t%s\n", e.Sequence, e.Channel, e.AggregateID, e.Type, e.Attempts, age(seconds(e.WaitSeconds)), oneLine(e.Failure, 80))
			}
		})
	})
	return command
}

func outboxDiscardedVerb(s *session) *cobra.Command {
	var page pageFlags
	command := &cobra.Command{Use: "discarded", Short: "Lists events that were discarded instead of being sent", Args: cobra.NoArgs}
	page.register(command)
	command.RunE = s.do(func(ctx context.Context, _ []string) error {
		if err := page.check(); err != nil {
			return err
		}
		operations, err := s.operations()
		if err != nil {
			return err
		}
		found, err := operations.Discarded(ctx, page.after, page.limit)
		if err != nil {
			return err
		}
		events := make([]discardedEvent, 0, len(found))
		for n := range found {
			events = append(events, discardedEvent{showHeld(&found[n].Row), found[n].At.UTC(), found[n].Reason})
		}
		return s.print(map[string]any{"discarded": events}, func(w io.Writer) {
			if len(events) == 0 {
				printf(w, "No event was discarded.\n")
				return
			}
			printf(w, "SEQUENCE\tCHANNEL\tAGGREGATE\tTYPE\tAT\tREASON\n")
			for _, e := range events {
				printf(w, "%d\t%s\t%s\t%s\t%s\t%s\n", e.Sequence, e.Channel, e.AggregateID, e.Type, moment(e.At), oneLine(e.Reason, 80))
			}
		})
	})
	return command
}

// sequenceOf reads the argument of retry and discard.
func sequenceOf(argument string) (int64, error) {
	sequence, err := strconv.ParseInt(argument, 10, 64)
	if err != nil || sequence < 1 {
		return 0, usage("SEQUENCE is %q: the number that `tidings outbox held` shows", argument)
	}
	return sequence, nil
}

func notHeld(err error, sequence int64) error {
	if errors.Is(err, outbox.ErrNotHeld) {
		return fmt.Errorf("%w: sequence %d: `tidings outbox held` lists those that are", outbox.ErrNotHeld, sequence)
	}
	return err
}

func outboxRetryVerb(s *session) *cobra.Command {
	return &cobra.Command{
		Use: "retry SEQUENCE", Short: "Lets the relay try a held event at its next look", Args: cobra.ExactArgs(1),
		RunE: s.do(func(ctx context.Context, arguments []string) error {
			sequence, err := sequenceOf(arguments[0])
			if err != nil {
				return err
			}
			operations, err := s.operations()
			if err != nil {
				return err
			}
			if err := operations.Retry(ctx, sequence); err != nil {
				return notHeld(err, sequence)
			}
			return s.print(map[string]any{"retry": sequence}, func(w io.Writer) { printf(w, "The relay tries %d at its next look.\n", sequence) })
		}),
	}
}

func outboxDiscardVerb(s *session) *cobra.Command {
	var reason string
	command := &cobra.Command{
		Use: "discard SEQUENCE", Short: "Takes a held event out; its aggregate goes on without it", Args: cobra.ExactArgs(1),
		Long:    "Takes a held event out of the outbox: it is never sent, and what waits behind it is.\nIt is kept with the reason; `tidings outbox discarded` lists it.",
		Example: "  tidings outbox discard 4711 --reason 'larger than the topic takes, told by hand'",
	}
	command.Flags().StringVar(&reason, "reason", "", "why; it is kept with the event")
	command.RunE = s.do(func(ctx context.Context, arguments []string) error {
		sequence, err := sequenceOf(arguments[0])
		if err != nil {
			return err
		}
		if reason = strings.TrimSpace(reason); reason == "" {
			return usage("say --reason: whoever finds the event will want to know why it was not sent")
		}
		operations, err := s.operations()
		if err != nil {
			return err
		}
		if err := operations.Discard(ctx, sequence, reason); err != nil {
			return notHeld(err, sequence)
		}
		return s.print(map[string]any{"discarded": sequence}, func(w io.Writer) { printf(w, "Discarded %d.\n", sequence) })
	})
	return command
}
