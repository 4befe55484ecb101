package setup_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/setup"
)

type step struct {
	N int `json:"n"`
}

var taken = tidings.Define[step]("journey.step.taken", 1, tidings.Repeatable)

// walker is an application with one subscription, of a name that changes.
type walker struct {
	t    *testing.T
	stop func() error
	bus  *tidings.Bus

	mu      sync.Mutex
	handled []int
	broken  bool // step 5 fails
}

var errBroken = errors.New("the bridge is broken")

// walk starts the application; it is stopped by its function stop.
func walk(t *testing.T, environment map[string]string, name string, former ...string) (*walker, error) {
	t.Helper()
	w := &walker{t: t, broken: true}
	config := setup.Read(func(variable string) string { return environment[variable] })
	options := setup.Options{Bus: tidings.Options{Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), DrainTimeout: 5 * time.Second}}
	var closers []io.Closer
	if database, closer, err := setup.OpenDatabase(config, nil); err == nil {
		options.Database, closers = database, append(closers, closer)
	}
	options.Bus.Closers = closers
	bus, err := setup.New(t.Context(), config, &options)
	if err != nil {
		t.Fatal(err)
	}
	w.bus = bus
	bus.Module("journey").Subscribe(name, &tidings.SubscribeOptions{
		FormerNames: former, StartAt: tidings.StartBeginning, OnExhausted: tidings.Park, MaxAttempts: 1, WithoutGuard: true,
		ParkBackoff: tidings.Backoff{Initial: 50 * time.Millisecond, Max: 100 * time.Millisecond},
	}, taken.On(func(_ context.Context, e tidings.Event[step]) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.broken && e.Payload().N == 5 {
			return errBroken
		}
		w.handled = append(w.handled, e.Payload().N)
		return nil
	}))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- bus.Run(ctx) }()
	w.stop = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() { _ = w.stop() })
	if err := bus.Ready(t.Context()); err != nil {
		return w, err
	}
	return w, nil
}

func (w *walker) seen() []int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.handled)
}

func (w *walker) publish(aggregate string, from, to int) {
	w.t.Helper()
	for n := from; n < to; n++ {
		if err := w.bus.Module("journey").Publish(w.t.Context(), taken.New(aggregate, step{n})); err != nil {
			w.t.Fatal(err)
		}
	}
}

// schemaURL is a database of the test's own.
func schemaURL(t *testing.T) string {
	address := drivertest.Server(t, "TIDINGS_POSTGRES_URL")
	pool, err := pgxpool.New(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("setup_%d", time.Now().UnixNano())
	if _, err := pool.Exec(t.Context(), "CREATE SCHEMA "+name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = pool.Exec(context.Background(), "DROP SCHEMA "+name+" CASCADE")
		pool.Close()
	})
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	query := u.Query()
	query.Set("search_path", name)
	u.RawQuery = query.Encode()
	return u.String()
}

// A subscription is renamed while an aggregate of it is parked and events wait:
// everything is handled once, in order, under the new name, and nothing twice. As
// long as the former name is alive it is refused.
func TestRenamedSubscriptionKeepsItsPlace(t *testing.T) {
	for name, environment := range map[string]func(t *testing.T) map[string]string{
		"postgres": func(t *testing.T) map[string]string {
			return map[string]string{"EVENT_DRIVER": "postgres", "DATABASE_URL": schemaURL(t)}
		},
		"sqlite": func(t *testing.T) map[string]string {
			return map[string]string{"EVENT_DRIVER": "sqlite", "SQLITE_PATH": filepath.Join(t.TempDir(), "app.db")}
		},
		"kafka": func(t *testing.T) map[string]string {
			return map[string]string{"EVENT_DRIVER": "kafka", "KAFKA_BROKERS": drivertest.Server(t, "KAFKA_BROKERS"), "EVENT_CLAIMS": "database", "EVENT_DEAD_LETTERS": "database", "DATABASE_URL": schemaURL(t)}
		},
		"redis-streams": func(t *testing.T) map[string]string {
			return map[string]string{"EVENT_DRIVER": "redis-streams", "REDIS_URL": drivertest.Server(t, "REDIS_URL"), "EVENT_CLAIMS": "database", "DATABASE_URL": schemaURL(t)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := environment(t)
			e["EVENT_NAMESPACE"] = fmt.Sprintf("r%d", time.Now().UnixNano())
			before, err := walk(t, e, "old")
			if err != nil {
				t.Fatal(err)
			}
			before.publish("ada", 0, 10) // 5 fails, and 6 to 9 wait behind it
			before.publish("grace", 100, 110)
			wantBefore := append(numbers(0, 5), numbers(100, 110)...)
			drivertest.Eventually(t, "what can be handled", func() bool { return len(before.seen()) == len(wantBefore) })
			drivertest.Eventually(t, "what is parked", func() bool { return before.bus.Health().Subscriptions[0].Parked == 1 })
			if _, err := walk(t, e, "new", "old"); !errors.Is(err, tidings.ErrInUse) {
				t.Fatalf("while the former name is alive: %v", err)
			}
			if err := before.stop(); err != nil {
				t.Fatal(err)
			}
			after, err := walk(t, e, "new", "old")
			if err != nil {
				t.Fatal(err)
			}
			after.publish("grace", 110, 112)
			drivertest.Eventually(t, "new events", func() bool { return slices.Contains(after.seen(), 111) })
			after.mu.Lock()
			after.broken = false
			after.mu.Unlock()
			want := append(numbers(5, 10), 110, 111)
			drivertest.Eventually(t, "what was parked", func() bool { return len(after.seen()) >= len(want) })
			got := after.seen()
			if ada := slices.DeleteFunc(slices.Clone(got), func(n int) bool { return n >= 100 }); !slices.Equal(ada, numbers(5, 10)) {
				t.Errorf("of the parked aggregate: %v", ada)
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("handled %v, want %v", got, want)
			}
			if err := after.stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

func numbers(from, to int) (all []int) {
	for n := from; n < to; n++ {
		all = append(all, n)
	}
	return all
}

// Names of which nobody is the owner are told at start.
func TestOrphansAreToldAtStart(t *testing.T) {
	e := map[string]string{"EVENT_DRIVER": "sqlite", "SQLITE_PATH": filepath.Join(t.TempDir(), "app.db")}
	before, err := walk(t, e, "old")
	if err != nil {
		t.Fatal(err)
	}
	if err := before.stop(); err != nil {
		t.Fatal(err)
	}
	log := &logged{}
	config := setup.Read(func(variable string) string { return e[variable] })
	bus, err := setup.New(t.Context(), config, &setup.Options{Bus: tidings.Options{Logger: slog.New(slog.NewTextHandler(log, nil))}})
	if err != nil {
		t.Fatal(err)
	}
	bus.Module("journey").Subscribe("new", &tidings.SubscribeOptions{StartAt: tidings.StartNow}, taken.On(func(context.Context, tidings.Event[step]) error { return nil }))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- bus.Run(ctx) }()
	if err := bus.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if text := log.String(); !containsAll(text, "level=WARN", "journey.old", "FormerNames", "tidings subscription delete") {
		t.Errorf("%s", text)
	}
}

// logged may be written by several goroutines.
type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func containsAll(text string, parts ...string) bool {
	return !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(text, part) })
}
