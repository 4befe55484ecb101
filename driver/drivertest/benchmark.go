package drivertest

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
)

// RunBenchmarks measures what a driver costs its users: a publish of one event
// and of a hundred, and the way from Publish to the end of the handler. Each
// event has about 200 bytes on the wire; there are 64 aggregates.
func RunBenchmarks(b *testing.B, harness Harness) {
	b.Run("publish 1", func(b *testing.B) { benchmarkPublish(b, harness, 1) })
	b.Run("publish 100", func(b *testing.B) { benchmarkPublish(b, harness, 100) })
	b.Run("publish to handled", func(b *testing.B) { benchmarkHandled(b, harness) })
}

// benchmarkPublish publishes with nobody to listen; ns/op is per event.
func benchmarkPublish(b *testing.B, harness Harness, size int) {
	bus := benchmarkBus(b, harness, nil)
	events := make([]tidings.DomainEvent, size)
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		at := n % size
		events[at] = benchmarkEvent(n)
		if at < size-1 {
			continue
		}
		if err := bus.Publish(b.Context(), events...); err != nil {
			b.Fatal(err)
		}
	}
}

// benchmarkHandled counts an event when its handler has returned; a hundred are
// published at a time, and publishers are not ahead by more than ten thousand.
func benchmarkHandled(b *testing.B, harness Harness) {
	var handled atomic.Int64
	bus := benchmarkBus(b, harness, func(context.Context, tidings.Event[stepPayload]) error {
		handled.Add(1)
		return nil
	})
	await := func(least int) {
		deadline := time.Now().Add(harness.patience())
		for handled.Load() < int64(least) {
			if time.Now().After(deadline) {
				b.Fatalf("%d of %d events were handled", handled.Load(), least)
			}
			time.Sleep(100 * time.Microsecond)
		}
	}
	events := make([]tidings.DomainEvent, 0, 100)
	sent := 0
	flush := func() {
		if err := bus.Publish(b.Context(), events...); err != nil {
			b.Fatal(err)
		}
		sent += len(events)
		events = events[:0]
	}
	b.ReportAllocs()
	b.ResetTimer()
	for n := range b.N {
		if events = append(events, benchmarkEvent(n)); len(events) == cap(events) {
			flush()
			await(sent - 10_000)
		}
	}
	flush()
	await(sent)
	b.StopTimer()
}

func benchmarkEvent(n int) tidings.DomainEvent {
	return stepTaken.New(fmt.Sprint("aggregate-", n%64), stepPayload{Number: n})
}

func benchmarkBus(b *testing.B, harness Harness, handle func(context.Context, tidings.Event[stepPayload]) error) *tidings.Bus {
	b.Helper()
	d := harness.NewBroker(b).Open(b)
	bus := tidings.New(d, &tidings.Options{Logger: slog.New(slog.DiscardHandler)})
	if handle != nil {
		options := &tidings.SubscribeOptions{}
		if d.Features().History {
			options.StartAt = tidings.StartBeginning
		}
		bus.Module(module).Subscribe("benchmark", options, stepTaken.On(handle))
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- bus.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			b.Errorf("Run: %v", err)
		}
	})
	if err := bus.Ready(ctx); err != nil {
		b.Fatal(err)
	}
	return bus
}
