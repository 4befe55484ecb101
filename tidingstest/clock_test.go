package tidingstest

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
)

// watchful is a clock that looks, each time that nothing is active, whether the
// lanes that wait have their timers: Settle looks at any such moment.
type watchful struct {
	*clock
	missing atomic.Int64
}

func (w *watchful) LaneActive(delta int) {
	w.clock.LaneActive(delta)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.active == 0 && w.waiting > len(w.timers) {
		w.missing.Add(1)
	}
}

type tick struct {
	N int `json:"n"`
}

var ticked = tidings.Define[tick]("watch.hand.ticked", 1, tidings.Repeatable)

func TestALaneHasItsTimerBeforeItRests(t *testing.T) {
	w := &watchful{clock: newClock()}
	d := &steps{}
	bus := tidings.New(d, &tidings.Options{Clock: w, Logger: slog.New(slog.DiscardHandler), DrainTimeout: time.Millisecond})
	tried := make(chan struct{})
	options := &tidings.SubscribeOptions{Timeout: -1} // no other timer
	bus.Module("watch").Subscribe("look", options, ticked.On(func(context.Context, tidings.Event[tick]) error {
		close(tried)
		return errors.New("again")
	}))
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- bus.Run(ctx) }()
	if err := bus.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	d.begin()
	if err := bus.Publish(ctx, ticked.New("hand", tick{1})); err != nil {
		t.Fatal(err)
	}
	d.deliver(newRandom(1))
	<-tried
	if !w.awaitQuiet(patience) {
		t.Fatal("the handler does not return")
	}
	if n := w.missing.Load(); n > 0 {
		t.Errorf("%d times a lane rested without a timer", n)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
