package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/tidings-go/tidings/driver"
)

func lanesVerb(s *session) *cobra.Command {
	return group("lanes", "Parked lanes: aggregates whose events wait behind one that failed",
		`Parked lanes: aggregates whose events wait, in order, behind one that failed or
cannot be read yet. The application's own instances carry out what is asked for
here, within two seconds, through the subscription's lane and handler.`,
		lanesListVerb(s), lanesShowVerb(s),
		laneOrderVerb(s, driver.RetryHead, "retry-head", "Tries the oldest event of a lane at once instead of when it is due"),
		laneOrderVerb(s, driver.SkipHead, "skip-head", "Makes a dead letter of the oldest event; the lane goes on behind it"),
		laneOrderVerb(s, driver.SkipLane, "skip-lane", "Makes dead letters of all events that a lane holds"))
}

func (s *session) lanes() (driver.LaneStore, error) {
	database, err := s.database(nil)
	if err != nil {
		return nil, err
	}
	return database.Lanes(), nil
}

// parkedLane is a lane as `tidings lanes ls` shows it.
type parkedLane struct {
	Subscription string      `json:"subscription"`
	Channel      string      `json:"channel"`
	AggregateID  string      `json:"aggregateId"`
	Events       int         `json:"events"`
	Head         parkedEvent `json:"head"`
}

// parkedEvent is an event as `tidings lanes show` shows it. Payload is there only
// when it was asked for.
type parkedEvent struct {
	ID       string          `json:"id"`
	Type     string          `json:"type"`
	Reason   string          `json:"reason"`
	Attempts int             `json:"attempts"`
	Error    string          `json:"error,omitempty"`
	ParkedAt time.Time       `json:"parkedAt"`
	Position string          `json:"position,omitempty"`
	Body     json.RawMessage `json:"body,omitempty"`
}

func showParked(p *driver.Parked, payload bool) parkedEvent {
	event := parkedEvent{ID: p.ID, Type: p.Message.Type, Reason: p.Reason, Attempts: p.Attempts, Error: p.Err, ParkedAt: p.ParkedAt.UTC(), Position: p.Position}
	if event.Type == "" {
		event.Type = p.Message.Headers.Get(driver.HeaderEventType)
	}
	if payload {
		event.Body = bodyJSON(p.Message.Body)
	}
	return event
}

// bodyJSON is a body as it is where it is JSON, else as a string (of base64, where
// it is no text).
func bodyJSON(body []byte) json.RawMessage {
	if json.Valid(body) {
		return body
	}
	var text []byte
	if utf8.Valid(body) {
		text, _ = json.Marshal(string(body)) // a string
	} else {
		text, _ = json.Marshal(body) // bytes
	}
	return text
}

func lanesListVerb(s *session) *cobra.Command {
	var limit int
	command := &cobra.Command{
		Use: "ls [SUBSCRIPTION]", Short: "Lists parked lanes", Args: cobra.MaximumNArgs(1),
		Example: "  tidings lanes ls\n  tidings lanes ls billing.ledger --limit 20",
	}
	command.Flags().IntVar(&limit, "limit", 100, "most lanes to list")
	command.RunE = s.do(func(ctx context.Context, arguments []string) error {
		if limit < 1 {
			return usage("--limit is %d: 1 or more", limit)
		}
		store, err := s.lanes()
		if err != nil {
			return err
		}
		subscription := ""
		if len(arguments) > 0 {
			subscription = arguments[0]
		}
		found, err := store.List(ctx, subscription, driver.ParkedLane{}, limit+1)
		if err != nil {
			return err
		}
		more := len(found) > limit
		found = found[:min(len(found), limit)]
		lanes := make([]parkedLane, 0, len(found))
		for _, lane := range found {
			lanes = append(lanes, parkedLane{lane.Subscription, lane.Lane.Channel, lane.Lane.Key, lane.Events, showParked(&lane.Head, false)})
		}
		value := struct {
			Lanes []parkedLane `json:"lanes"`
			More  bool         `json:"more"`
		}{lanes, more}
		return s.print(value, func(w io.Writer) {
			if len(lanes) == 0 {
				printf(w, "No lane is parked.\n")
				return
			}
			printf(w, "SUBSCRIPTION\tCHANNEL\tAGGREGATE\tEVENTS\tSINCE\tATTEMPTS\tREASON\tERROR\n")
			for _, l := range lanes {
				printf(w, "%s\t%s\t%s\t%d\t%s\t%d\t%s\t%s\n", l.Subscription, l.Channel, l.AggregateID, l.Events, moment(l.Head.ParkedAt), l.Head.Attempts, l.Head.Reason, oneLine(l.Head.Error, 60))
			}
			if more {
				printf(w, "There are more: raise --limit, or name a subscription.\n")
			}
		})
	})
	return command
}

func lanesShowVerb(s *session) *cobra.Command {
	var limit int
	var payload bool
	command := &cobra.Command{
		Use: "show SUBSCRIPTION CHANNEL AGGREGATE", Short: "Shows the events that a lane holds, in order", Args: cobra.ExactArgs(3),
		Long: `Shows the events that a lane holds, in their order, with the failure of the first.
Their bodies may hold personal data: they are shown only with --payload.`,
		Example: "  tidings lanes show billing.ledger billing.booking customer-17 --payload",
	}
	command.Flags().IntVar(&limit, "limit", 50, "most events to show")
	command.Flags().BoolVar(&payload, "payload", false, "show the bodies too")
	command.RunE = s.do(func(ctx context.Context, arguments []string) error {
		if limit < 1 {
			return usage("--limit is %d: 1 or more", limit)
		}
		store, err := s.lanes()
		if err != nil {
			return err
		}
		found, err := store.Events(ctx, arguments[0], driver.Lane{Channel: arguments[1], Key: arguments[2]}, limit)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return fmt.Errorf("%w: subscription %s, channel %s, aggregate %s: `tidings lanes ls` lists them", errNoLane, arguments[0], arguments[1], arguments[2])
		}
		events := make([]parkedEvent, 0, len(found))
		for n := range found {
			events = append(events, showParked(&found[n], payload))
		}
		return s.print(map[string]any{"events": events}, func(w io.Writer) {
			for n, e := range events {
				printf(w, "%d\t%s\t%s\t%s\tparked %s\tattempts %d\n", n+1, e.Type, e.ID, e.Reason, moment(e.ParkedAt), e.Attempts)
				if e.Error != "" {
					printf(w, "\t%s\n", strings.ReplaceAll(e.Error, "\n", "\n\t"))
				}
				if payload {
					printf(w, "\t%s\n", e.Body)
				}
			}
		})
	})
	return command
}

// errNoLane says that a lane holds nothing.
var errNoLane = fmt.Errorf("this lane holds nothing")

func laneOrderVerb(s *session, verb driver.LaneVerb, use, short string) *cobra.Command {
	var reason string
	skips := verb != driver.RetryHead
	command := &cobra.Command{
		Use: use + " SUBSCRIPTION CHANNEL AGGREGATE", Short: short, Args: cobra.ExactArgs(3),
		Example: "  tidings lanes " + use + " billing.ledger billing.booking customer-17",
	}
	if skips {
		command.Long = short + ".\n\nNothing is deleted: what is skipped is among the dead letters, with the reason."
		command.Example += " --reason 'booked by hand, ticket 4711'"
	}
	command.Flags().StringVar(&reason, "reason", "", "why; it is kept with the dead letter")
	command.RunE = s.do(func(ctx context.Context, arguments []string) error {
		reason = strings.TrimSpace(reason)
		if skips && reason == "" {
			return usage("say --reason: whoever finds the dead letter will want to know why it was skipped")
		}
		store, err := s.lanes()
		if err != nil {
			return err
		}
		order := driver.LaneOrder{Lane: driver.Lane{Channel: arguments[1], Key: arguments[2]}, Verb: verb, Reason: reason}
		held, err := store.Order(ctx, arguments[0], order)
		if err != nil {
			return err
		}
		if !held {
			return fmt.Errorf("%w: subscription %s, channel %s, aggregate %s: `tidings lanes ls` lists them", errNoLane, arguments[0], arguments[1], arguments[2])
		}
		value := map[string]string{"order": verb.String(), "subscription": arguments[0], "channel": arguments[1], "aggregateId": arguments[2]}
		return s.print(value, func(w io.Writer) {
			printf(w, "Asked for: %s of %s. The instance that owns the lane does it within two seconds of its next look.\n", verb, strings.Join(slices.Clone(arguments), " "))
		})
	})
	return command
}
