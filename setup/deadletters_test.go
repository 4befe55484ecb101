package setup_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/deadletter"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/driver/sqs/sqstest"
	"github.com/tidings-go/tidings/setup"
	"github.com/tidings-go/tidings/store/sqlite"
)

type movedPayload struct {
	To string `json:"to"`
}

// From a broker to its dead letters, into the database, and through the handler
// again.
func TestDeadLettersAreRetried(t *testing.T) {
	unique := fmt.Sprint("dead", time.Now().UnixNano())
	for name, environment := range map[string]func(t *testing.T) map[string]string{
		"in-memory, database": func(*testing.T) map[string]string {
			return map[string]string{"EVENT_ENV": "test", "EVENT_DEAD_LETTERS": "database"}
		},
		"sqlite": func(*testing.T) map[string]string { return map[string]string{"EVENT_DRIVER": "sqlite"} },
		"sqs, collected": func(t *testing.T) map[string]string {
			return map[string]string{"EVENT_DRIVER": "sqs", "AWS_ENDPOINT_URL": sqstest.Start(t).URL(), "EVENT_DEAD_LETTERS": "collect"}
		},
		"elasticmq, collected": func(t *testing.T) map[string]string {
			return map[string]string{"EVENT_DRIVER": "sqs", "AWS_ENDPOINT_URL": drivertest.Server(t, "TIDINGS_ELASTICMQ_URL"), "EVENT_DEAD_LETTERS": "collect"}
		},
		"kafka, collected": func(t *testing.T) map[string]string {
			return map[string]string{"EVENT_DRIVER": "kafka", "KAFKA_BROKERS": drivertest.Server(t, "KAFKA_BROKERS"), "EVENT_DEAD_LETTERS": "collect"}
		},
		"kafka, database": func(t *testing.T) map[string]string {
			return map[string]string{"EVENT_DRIVER": "kafka", "KAFKA_BROKERS": drivertest.Server(t, "KAFKA_BROKERS"), "EVENT_DEAD_LETTERS": "database"}
		},
		"redis-streams, database": func(t *testing.T) map[string]string {
			return map[string]string{"EVENT_DRIVER": "redis-streams", "REDIS_URL": drivertest.Server(t, "REDIS_URL"), "EVENT_DEAD_LETTERS": "database"}
		},
		"postgres": func(t *testing.T) map[string]string {
			return map[string]string{"EVENT_DRIVER": "postgres", "DATABASE_URL": drivertest.Server(t, "TIDINGS_POSTGRES_URL")}
		},
	} {
		t.Run(name, func(t *testing.T) {
			variables := environment(t)
			variables["EVENT_NAMESPACE"] = unique
			var options setup.Options
			var store driver.DeadLetterStore
			if variables["EVENT_DRIVER"] != "postgres" {
				path := filepath.Join(t.TempDir(), "dead.db")
				variables["SQLITE_PATH"] = path
				beside, err := sqlite.Open(path, &sqlite.Options{Prefix: unique + "_tidings_"})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = beside.DB().Close() })
				store = beside.DeadLetters()
			} else {
				database, closer, err := setup.OpenDatabase(setup.Read(func(name string) string { return variables[name] }), nil)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = closer.Close() })
				store = database.DeadLetters()
			}
			bus, err := setup.New(t.Context(), setup.Read(func(name string) string { return variables[name] }), &options)
			if err != nil {
				t.Fatal(err)
			}
			retried(t, bus, store)
		})
	}
}

func retried(t *testing.T, bus *tidings.Bus, store driver.DeadLetterStore) {
	t.Helper()
	moved := tidings.Define[movedPayload]("address.customer.moved", 1, tidings.Repeatable)
	var mended atomic.Bool
	var handled atomic.Int64
	module := bus.Module("address")
	module.Subscribe("map", &tidings.SubscribeOptions{MaxAttempts: 1, StartAt: tidings.StartBeginning}, moved.On(func(_ context.Context, e tidings.Event[movedPayload]) error {
		if !mended.Load() {
			return errors.New("no such street")
		}
		handled.Add(1)
		return nil
	}))
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	running, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- bus.Run(running) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	if err := bus.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	if err := module.Publish(ctx, moved.New("c-1", movedPayload{"Rome"}), moved.New("c-2", movedPayload{"Oslo"})); err != nil {
		t.Fatal(err)
	}
	letters, err := deadletter.New(store, nil)
	if err != nil {
		t.Fatal(err)
	}
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	var chosen *deadletter.Selection
	for chosen == nil || chosen.Count() < 2 {
		select {
		case <-look.C:
		case <-ctx.Done():
			t.Fatalf("%d letters came to the store", chosen.Count())
		}
		if chosen, err = letters.Select(ctx, deadletter.Filter{Subscription: "address.map"}, 10); err != nil {
			t.Fatal(err)
		}
	}
	if l := chosen.Sample(1)[0]; l.Reason != "exhausted" || l.Err != "no such street" || l.Type != moved.Type() || l.AggregateID == "" || l.Times != 1 {
		t.Errorf("%+v", l)
	}
	mended.Store(true)
	result, err := chosen.Retry(ctx, "the street is there", &deadletter.ActOptions{Wait: true})
	if err != nil || result.Count(deadletter.Handled) != 2 || handled.Load() != 2 {
		t.Errorf("handled %d: %+v, %v", handled.Load(), result, err)
	}
}
