package sqldb

import (
	"slices"
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/outbox"
)

func TestConformance(t *testing.T) {
	drivertest.Run(t, drivertest.Harness{NewBroker: func(testing.TB) drivertest.Broker {
		log := newMemoryLog()
		return drivertest.Broker{
			Open: func(t testing.TB) driver.Driver {
				d, err := New(Options{Name: "postgres", Log: log, LeaseTime: 2 * time.Second, PollInterval: 50 * time.Millisecond})
				if err != nil {
					t.Fatal(err)
				}
				return d
			},
			PutRaw: func(t testing.TB, m driver.Message) {
				if err := log.Append(t.Context(), []outbox.Row{{Slot: outbox.SlotOf(m.Channel, m.Key), ID: m.ID, Channel: m.Channel, AggregateID: m.Key, Type: m.Type, Headers: m.Headers, Payload: m.Body}}); err != nil {
					t.Fatal(err)
				}
			},
			DeadLetters: func(testing.TB) []driver.DeadLetter {
				log.mu.Lock()
				defer log.mu.Unlock()
				return slices.Clone(log.letters)
			},
			Interrupt: func(testing.TB) (restore func()) {
				log.setDown(true)
				return func() { log.setDown(false) }
			},
		}
	}})
}
