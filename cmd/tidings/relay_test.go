package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/setup"
)

type placed struct {
	N int `json:"n"`
}

var orderPlaced = tidings.Define[placed]("shop.order.placed", 1, tidings.Repeatable)

// reader is an application that reads what a relay has sent.
type reader struct {
	mu   sync.Mutex
	seen map[string][]int
}

func startReader(t testing.TB, e environment) *reader {
	t.Helper()
	r := &reader{seen: make(map[string][]int)}
	ctx, cancel := context.WithCancel(context.Background())
	bus, err := setup.New(t.Context(), setup.Read(func(name string) string { return e[name] }), nil)
	if err != nil {
		t.Fatal(err)
	}
	bus.Module("mail").Subscribe("confirm", &tidings.SubscribeOptions{StartAt: tidings.StartBeginning}, orderPlaced.On(func(_ context.Context, event tidings.Event[placed]) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if seen := r.seen[event.AggregateID()]; !slices.Contains(seen, event.Payload().N) {
			r.seen[event.AggregateID()] = append(seen, event.Payload().N)
		}
		return nil
	}))
	ended := make(chan error, 1)
	go func() { ended <- bus.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	if err := bus.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *reader) count() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, seen := range r.seen {
		n += len(seen)
	}
	return n
}

// brokers are where a relay may send to, each a real one.
func brokersOf(t testing.TB) map[string]environment {
	t.Helper()
	return map[string]environment{
		"kafka":         {"EVENT_DRIVER": "kafka", "KAFKA_BROKERS": os.Getenv("KAFKA_BROKERS")},
		"redis-streams": {"EVENT_DRIVER": "redis-streams", "REDIS_URL": os.Getenv("REDIS_URL")},
	}
}

// Each database relays to Kafka and to Redis Streams; every aggregate keeps its
// order, and nothing is left.
func TestRelay(t *testing.T) {
	drivertest.Server(t, "KAFKA_BROKERS")
	drivertest.Server(t, "REDIS_URL")
	databases(t, func(t *testing.T, app application) {
		for name, broker := range brokersOf(t) {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				relayTo(t, newApplicationLike(t, app), broker.with(environment{"EVENT_NAMESPACE": unique(t)}))
			})
		}
	})
}

// newApplicationLike is another application on the same kind of database.
func newApplicationLike(t testing.TB, app application) application {
	switch address := app.environment["DATABASE_URL"]; {
	case strings.HasPrefix(address, "mysql"):
		return newApplication(t, onMySQL(t))
	case address != "":
		return newApplication(t, onPostgres(t))
	}
	return newApplication(t, onSQLite(t))
}

func relayTo(t *testing.T, app application, broker environment) {
	e := app.environment.with(broker)
	app = newApplication(t, e) // its tables are named by the namespace
	const aggregates, each = 5, 20
	for n := range each {
		for a := range aggregates {
			app.add(t, row(fmt.Sprint("order-", a), n))
		}
	}
	reader := startReader(t, broker)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out, errs safeBuffer
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, streams{strings.NewReader(""), &out, &errs}, func(name string) string { return e[name] }, []string{"relay", "--workers", "2", "--batch", "7", "--report", "50ms"})
	}()
	eventually(t, "not everything arrived: "+errs.String(), func() bool { return reader.count() == aggregates*each })
	eventually(t, "no report", func() bool { return strings.Contains(errs.String(), "sentPerSecond") })
	cancel()
	if got := <-code; got != exitOK {
		t.Errorf("exit status %d: %s", got, errs.String())
	}
	for aggregate, seen := range reader.seen {
		if !slices.IsSorted(seen) {
			t.Errorf("%s: %v", aggregate, seen)
		}
	}
	tool(t, e, "outbox", "status", "--every", "1ms").want(t, exitOK, "backlog 0")
	if !strings.Contains(errs.String(), "relaying") || !strings.Contains(errs.String(), "ended") {
		t.Error(errs.String())
	}
}

func TestRelayNeedsABroker(t *testing.T) {
	app := newApplication(t, onSQLite(t))
	tool(t, app.environment.with(environment{"EVENT_DRIVER": "sqlite"}), "relay").want(t, exitUsage, "needs no relay")
	tool(t, app.environment.with(environment{"EVENT_DRIVER": "in-memory"}), "relay").want(t, exitUsage, "needs no relay")
	tool(t, app.environment.with(environment{"EVENT_DRIVER": "rabbit"}), "relay").want(t, exitUsage, `EVENT_DRIVER is "rabbit"`)
	tool(t, app.environment.with(environment{"EVENT_DRIVER": "kafka", "KAFKA_BROKERS": "127.0.0.1:1"}), "relay").want(t, exitFailure, "KAFKA_BROKERS=127.0.0.1:1")
	broker := environment{"EVENT_DRIVER": "redis-streams", "REDIS_URL": drivertest.Server(t, "REDIS_URL")}
	tool(t, app.environment.with(broker), "relay", "--workers", "1000").want(t, exitUsage, "Options.Workers is 1000")
}

// The process itself ends on SIGTERM, with status 0.
func TestRelayEndsOnSignal(t *testing.T) {
	app := newApplication(t, onSQLite(t))
	command := exec.CommandContext(t.Context(), os.Args[0], "relay", "--json")
	command.Env = []string{actAsTidings + "=1", "SQLITE_PATH=" + app.environment["SQLITE_PATH"], "EVENT_DRIVER=redis-streams",
		"REDIS_URL=" + drivertest.Server(t, "REDIS_URL"), "EVENT_NAMESPACE=" + unique(t)}
	var errs safeBuffer
	command.Stderr = &errs
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it does not relay", func() bool { return strings.Contains(errs.String(), `"msg":"relaying"`) })
	if err := command.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	select {
	case err := <-ended:
		if exit, ok := errors.AsType[*exec.ExitError](err); ok || err != nil {
			t.Errorf("%v %v: %s", err, exit, errs.String())
		}
	case <-time.After(40 * time.Second):
		_ = command.Process.Kill()
		t.Fatal("it does not end")
	}
}
