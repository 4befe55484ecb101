package tidings_test

import (
	"context"
	"io"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
)

// deaf is a driver that obeys no context: nothing of it returns until ever is closed.
type deaf struct {
	ever chan struct{}
	sink driver.Sink
}

func (*deaf) Name() string { return "deaf" }
func (*deaf) Features() driver.Features {
	return driver.Features{Durable: true, Ordered: true, Groups: true}
}
func (*deaf) Publish(context.Context, []driver.Message) error        { return nil }
func (*deaf) PutDeadLetter(context.Context, driver.DeadLetter) error { return nil }
func (d *deaf) Subscribe(_ context.Context, _ driver.Subscription, sink driver.Sink) (driver.Consumer, error) {
	d.sink = sink
	return d, nil
}
func (d *deaf) Run(context.Context) error                       { d.sink.Joined(); <-d.ever; return nil }
func (*deaf) Settle(context.Context, []driver.Settlement) error { return nil }
func (d *deaf) Close(context.Context) error                     { <-d.ever; return nil }

type deafRunner struct{ *deaf }

func (r deafRunner) Run(context.Context) error { <-r.ever; return nil }

type deafPool struct{ *deaf }

func (p deafPool) Close() error { <-p.ever; return nil }

func TestRunEndsWithinTheDrainTimeoutWhateverHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const drain = 10 * time.Second
		d := &deaf{ever: make(chan struct{})}
		b := tidings.New(d, &tidings.Options{DrainTimeout: drain, Logger: slog.New(slog.DiscardHandler), Closers: []io.Closer{deafPool{d}}})
		b.Module("m").Subscribe("s", nil, silenceHappened.On(func(context.Context, tidings.Event[silencePayload]) error { return nil }))
		if err := b.Add(deafRunner{d}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- b.Run(ctx) }()
		if err := b.Ready(ctx); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		cancel()
		select {
		case err := <-done:
			if took := time.Since(began); err == nil || took > drain+5*time.Second {
				t.Errorf("Run ended after %v: %v", took, err)
			}
		case <-time.After(time.Hour):
			t.Error("Run did not end")
		}
		close(d.ever)
	})
}

type silencePayload struct {
	N int `json:"n"`
}

var silenceHappened = tidings.Define[silencePayload]("m.silence.happened", 1, tidings.Repeatable)
