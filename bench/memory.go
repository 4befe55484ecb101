package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver/memory"
)

// userCreated has the payload of the guide, about 120 bytes as JSON.
type userCreated struct {
	UserID string `json:"userId"`
	Email  string `json:"email"`
	Name   string `json:"name"`
}

var (
	// created repeats, so that dedup has a new key for each event.
	created = tidings.Define[userCreated]("identity.user.created", 1, tidings.Repeatable)
	sample  = userCreated{UserID: "0190f5c2-7c1e-7e39-9c0a-5d0f6a3d9b11", Email: "ada.lovelace@example.com", Name: "Ada Lovelace"}
)

const inMemoryEvents = 200_000

// envelope is the floor's: what an event cannot do without.
type envelope struct {
	id, aggregateID, eventType string
	occurredAt                 time.Time
	version                    int
	payload                    userCreated
}

func floor(handle func(*envelope)) func(context.Context) (int, time.Duration, error) {
	return func(context.Context) (int, time.Duration, error) {
		for range inMemoryEvents {
			id, err := uuid.NewV7()
			if err != nil {
				return 0, 0, err
			}
			handle(&envelope{id.String(), sample.UserID, "identity.user.created", time.Now(), 1, sample})
		}
		return inMemoryEvents, 0, nil
	}
}

// quiet is a production logger that has nothing to say about healthy events.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// started runs a bus with one no-op handler and returns a function that ends it.
func started(ctx context.Context, d *memory.Driver, withoutDedup bool, handled *atomic.Int64) (*tidings.Bus, func() error, error) {
	bus := tidings.New(d, &tidings.Options{Logger: quiet(), WithoutDedup: withoutDedup})
	bus.Module("billing").Subscribe("create-default-profile", nil, created.On(func(context.Context, tidings.Event[userCreated]) error {
		handled.Add(1)
		return nil
	}))
	running, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- bus.Run(running) }()
	return bus, func() error { stop(); return <-done }, bus.Ready(ctx)
}

func publishAll(async, withoutDedup bool) func(context.Context) (int, time.Duration, error) {
	return func(ctx context.Context) (int, time.Duration, error) {
		var handled atomic.Int64
		bus, stop, err := started(ctx, memory.New(&memory.Options{Async: async}), withoutDedup, &handled)
		if err != nil {
			return 0, 0, err
		}
		for n := range inMemoryEvents {
			if err := bus.Publish(ctx, created.New(aggregates[n%len(aggregates)], sample)); err != nil {
				return 0, 0, err
			}
		}
		// The end of Run's context lets the bus finish what is queued.
		if err := stop(); err != nil {
			return 0, 0, err
		}
		if handled.Load() != inMemoryEvents {
			return 0, 0, fmt.Errorf("%d of %d events were handled", handled.Load(), inMemoryEvents)
		}
		return inMemoryEvents, 0, nil
	}
}

// aggregates are a hundred ids, as events of a hundred users have.
var aggregates = func() []string {
	ids := make([]string, 100)
	for n := range ids {
		ids[n] = fmt.Sprintf("0190f5c2-7c1e-7e39-9c0a-5d0f6a3d%04d", n)
	}
	return ids
}()

func inMemory(ctx context.Context, out io.Writer, rounds int) (below int, err error) {
	return compare(ctx, out, rounds, []side{
		{name: floorName, run: floor(func(e *envelope) { handled.Store(e) })},
		{name: "in memory, sync", run: publishAll(false, true), against: floorName, bound: 0.2, allocations: 8},
		{name: "in memory, sync, dedup", run: publishAll(false, false), against: floorName},
		{name: "in memory, async", run: publishAll(true, true), against: floorName},
		{name: "in memory, async, dedup", run: publishAll(true, false), against: floorName},
	})
}

// floorName is the side that the others are compared with: the payload copied, an
// envelope made with a UUID and the time, the handler called.
const floorName = "floor"

// handled keeps the compiler from seeing that the floor's handler does nothing.
var handled atomic.Pointer[envelope]
