package main

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/outbox"
)

func TestHeldEvents(t *testing.T) {
	databases(t, func(t *testing.T, app application) {
		tool(t, app.environment, "outbox", "held").want(t, exitOK, "No event is held.")
		app.add(t, row("large", 1), row("large", 2), row("small", 1))
		queue, err := queueOf(app.database)
		if err != nil {
			t.Fatal(err)
		}
		relay, err := outbox.NewRelay(queue, func(_ context.Context, messages []driver.Message) error {
			e := &driver.PublishError{Results: make([]driver.PublishResult, len(messages))}
			failed := false
			for n, m := range messages {
				e.Results[n].State = driver.Stored
				if m.Key == "large" {
					e.Results[n] = driver.PublishResult{State: driver.NotStored, Err: fmt.Errorf("larger than the topic takes: %w", driver.ErrTooLarge)}
					failed = true
				}
			}
			if failed {
				return e
			}
			return nil
		}, &outbox.Options{PollInterval: 20 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- relay.Run(ctx) }()
		var list struct{ Held []heldEvent }
		eventually(t, "no event is held", func() bool {
			list.Held = nil
			tool(t, app.environment, "outbox", "held", "--json").want(t, exitOK).decode(t, &list)
			return len(list.Held) == 1
		})
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		held := list.Held[0]
		if held.ID != "large-1" || held.Attempts < 1 || held.Failure == "" {
			t.Errorf("%+v", held)
		}
		tool(t, app.environment, "outbox", "held").want(t, exitOK, "large", "larger than the topic takes")
		sequence := strconv.FormatInt(held.Sequence, 10)
		tool(t, app.environment, "outbox", "retry", sequence).want(t, exitOK, "at its next look")
		tool(t, app.environment, "outbox", "retry", "999999").want(t, exitFailure, "is not held", "tidings outbox held")
		tool(t, app.environment, "outbox", "discard", sequence).want(t, exitUsage, "say --reason")
		tool(t, app.environment, "outbox", "discard", "x", "--reason", "y").want(t, exitUsage, `SEQUENCE is "x"`)
		tool(t, app.environment, "outbox", "discard", sequence, "--reason", "told by hand").want(t, exitOK, "Discarded")
		tool(t, app.environment, "outbox", "discarded").want(t, exitOK, "told by hand", "large")
		tool(t, app.environment, "outbox", "held").want(t, exitOK, "No event is held.")
	})
}
