package tidings_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
)

func TestHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := newRandomBroker()
		b := tidings.New(&randomDriver{broker}, &tidings.Options{Logger: discard(), DrainTimeout: time.Second})
		hang := make(chan struct{})
		subscribe(t, b, "reader", &tidings.SubscribeOptions{Concurrency: 1, Timeout: time.Second, MaxAttempts: 2}, numberChosen, func(_ context.Context, e tidings.Event[numberPayload]) error {
			if e.Payload().Number == 7 {
				<-hang
			}
			return nil
		})
		if h := b.Health(); !h.Live || h.Ready {
			t.Errorf("before Run: %+v", h)
		}
		stop := start(t, b)
		consumer := tidings.ConsumerOf(b).(*randomConsumer)
		broker.move(broker.partitions[0], consumer, true)
		if h := b.Health(); !h.Live || !h.Ready || len(h.Subscriptions) != 1 || h.Subscriptions[0].Name != "numbers.reader" || !h.Subscriptions[0].Joined {
			t.Errorf("while it runs: %+v", h)
		}

		consumer.sink.Report(driver.Report{Kind: driver.ReportOutage, Err: errors.New("refused")})
		consumer.sink.Report(driver.Report{Kind: driver.ReportPaused, Source: driver.Source{Name: "p"}})
		pass(time.Minute)
		if h := b.Health(); !h.Live || h.Ready || h.Subscriptions[0].Outage != time.Minute || h.Subscriptions[0].Paused != 1 {
			t.Errorf("in an outage: %+v", h)
		}
		consumer.sink.Report(driver.Report{Kind: driver.ReportRecovered})
		consumer.sink.Report(driver.Report{Kind: driver.ReportResumed, Source: driver.Source{Name: "p"}})
		if h := b.Health(); !h.Ready || h.Subscriptions[0].Paused != 0 {
			t.Errorf("after it: %+v", h)
		}

		broker.mu.Lock()
		broker.failSettle = 100
		broker.mu.Unlock()
		_ = b.Publish(t.Context(), numberChosen.New("a", numberPayload{1}))
		pass(10 * time.Second)
		if h := b.Health(); !h.Live || h.Ready || h.Subscriptions[0].Unsettled < 5*time.Second {
			t.Errorf("while nothing is settled: %+v", h)
		}
		broker.mu.Lock()
		broker.failSettle = 0
		broker.mu.Unlock()
		pass(10 * time.Second)
		if h := b.Health(); !h.Ready {
			t.Errorf("when it is settled: %+v", h)
		}

		_ = b.Publish(t.Context(), numberChosen.New("a", numberPayload{7}))
		pass(time.Minute)
		if h := b.Health(); h.Live || h.Ready || h.Subscriptions[0].Overdue != 1 || h.Subscriptions[0].Running != 1 {
			t.Errorf("with every slot taken by handlers that do not end: %+v", h)
		}
		close(hang)
		pass(time.Minute)
		if h := b.Health(); !h.Live || !h.Ready {
			t.Errorf("when they have ended: %+v", h)
		}
		stop()
		if h := b.Health(); h.Live || h.Ready {
			t.Errorf("after Run: %+v", h)
		}
	})
}
