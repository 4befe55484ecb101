package sqldb_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/driver/sqldb"
	"github.com/tidings-go/tidings/internal/testtime"
	"github.com/tidings-go/tidings/outbox"
	"github.com/tidings-go/tidings/store/postgres"
)

type paid struct {
	Number int `json:"number"`
}

var invoicePaid = tidings.Define[paid]("billing.invoice.paid", 1, tidings.Repeatable)

// openFor is how long the transactions stay open: 5 seconds, or
// TIDINGS_OPEN_TRANSACTION (make open-transaction has 30).
func openFor(t *testing.T) time.Duration {
	text := os.Getenv("TIDINGS_OPEN_TRANSACTION")
	if text == "" {
		return 5 * time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

const (
	publishers = 8
	perSecond  = 500
)

// arrivals takes the time from the begin of each publish to its handler.
type arrivals struct {
	mu    sync.Mutex
	began map[string]time.Time // by aggregate and number
	took  []time.Duration
	held  int // events of the transaction that was open
}

func (a *arrivals) publish(key string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.began[key] = time.Now()
}

func (a *arrivals) arrive(key string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if began, ok := a.began[key]; ok {
		a.took = append(a.took, time.Since(began))
	} else {
		a.held++
	}
}

func (a *arrivals) counts() (published, arrived, held int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.began), len(a.took), a.held
}

func (a *arrivals) quantile(q float64) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.took) == 0 {
		return 0
	}
	slices.Sort(a.took)
	return a.took[int(q*float64(len(a.took)-1))].Round(100 * time.Microsecond)
}

// TestRealOpenTransaction holds driver postgres, and the relay of an outbox, to
// the promise that a transaction which is open elsewhere delays its own events
// and nobody else's.
func TestRealOpenTransaction(t *testing.T) {
	address := drivertest.Server(t, "TIDINGS_POSTGRES_URL")
	for name, test := range map[string]func(t *testing.T, store *postgres.Store[pgx.Tx], a *arrivals) (publish func(ctx context.Context, aggregate string, number int) error){
		"driver": throughDriver,
		"relay":  throughRelay,
	} {
		t.Run(name, func(t *testing.T) {
			pool, err := pgxpool.New(t.Context(), address)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(pool.Close)
			schema := fmt.Sprintf("open_%x", time.Now().UnixNano())
			t.Cleanup(func() { run(t, pool, "DROP SCHEMA IF EXISTS "+schema+" CASCADE") })
			store, err := postgres.New(pool, &postgres.Options{Schema: schema})
			if err != nil {
				t.Fatal(err)
			}
			if err := store.Migrate(t.Context()); err != nil {
				t.Fatal(err)
			}
			run(t, pool, "CREATE TABLE "+schema+".application (number integer)")
			a := &arrivals{began: make(map[string]time.Time)}
			publish := test(t, store, a)
			mine := open(t, pool, store, schema)
			elsewhere := openElsewhere(t, pool, address)
			held(t, a, publish)
			commit(t, mine)
			commit(t, elsewhere)
			eventually(t, "the event of the transaction comes when it is committed", func() bool { _, _, held := a.counts(); return held == 1 })
			t.Logf("%d events a second from %d publishers for %v beside open transactions: p50 %v, p99 %v, longest %v",
				perSecond, publishers, openFor(t), a.quantile(0.5), a.quantile(0.99), a.quantile(1))
		})
	}
}

// held publishes while the transactions are open, and wants everything handled
// before they end.
func held(t *testing.T, a *arrivals, publish func(ctx context.Context, aggregate string, number int) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), openFor(t))
	defer cancel()
	var all sync.WaitGroup
	for p := range publishers {
		all.Go(func() {
			tick := time.NewTicker(time.Second * publishers / perSecond)
			defer tick.Stop()
			for n := 0; ; n++ {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				aggregate := fmt.Sprint("invoice-", p, "-", n%25)
				a.publish(fmt.Sprint(aggregate, "/", n))
				if err := publish(context.WithoutCancel(ctx), aggregate, n); err != nil {
					t.Errorf("publish: %v", err)
					return
				}
			}
		})
	}
	all.Wait()
	eventually(t, "everything arrives while the transactions are open", func() bool { published, arrived, _ := a.counts(); return arrived == published })
	published, _, held := a.counts()
	if published < perSecond/10 {
		t.Errorf("%d events were published", published)
	}
	if held > 0 {
		t.Errorf("%d events arrived of a transaction that was not committed", held)
	}
	// Waiting for the transactions would show as seconds. What a busy machine adds is no part of the promise.
	if p99 := a.quantile(0.99); p99 > openFor(t)/2 {
		t.Errorf("one event of a hundred took longer than %v", p99)
	}
}

// open begins a transaction that has written to the application's table and to
// the outbox.
func open(t *testing.T, pool *pgxpool.Pool, store *postgres.Store[pgx.Tx], schema string) pgx.Tx {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	if _, err := tx.Exec(t.Context(), "INSERT INTO "+schema+".application VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	bus := tidings.New(nil, nil)
	messages, err := bus.Encode(t.Context(), invoicePaid.New("held", paid{}))
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Add(t.Context(), tx, rows(messages)); err != nil {
		t.Fatal(err)
	}
	return tx
}

// openElsewhere begins one in another database of the same server.
func openElsewhere(t *testing.T, pool *pgxpool.Pool, address string) pgx.Tx {
	t.Helper()
	name := fmt.Sprintf("open_%x", time.Now().UnixNano())
	run(t, pool, "CREATE DATABASE "+name)
	t.Cleanup(func() { run(t, pool, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)") })
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	other, err := pgx.Connect(t.Context(), u.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close(context.Background()) })
	tx, err := other.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{"CREATE TABLE application (number integer)", "INSERT INTO application VALUES (1)"} {
		if _, err := tx.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	return tx
}

func commit(t *testing.T, tx pgx.Tx) {
	t.Helper()
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, pool *pgxpool.Pool, statement string) {
	t.Helper()
	if _, err := pool.Exec(context.Background(), statement); err != nil {
		t.Errorf("%s: %v", statement, err)
	}
}

func rows(messages []driver.Message) []outbox.Row {
	all := make([]outbox.Row, len(messages))
	for n, m := range messages {
		all[n] = outbox.Row{Slot: outbox.SlotOf(m.Channel, m.Key), ID: m.ID, Channel: m.Channel, AggregateID: m.Key, Type: m.Type, Headers: m.Headers, Payload: m.Body}
	}
	return all
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// throughDriver publishes and handles on a bus over driver postgres.
func throughDriver(t *testing.T, store *postgres.Store[pgx.Tx], a *arrivals) func(ctx context.Context, aggregate string, number int) error {
	t.Helper()
	d, err := sqldb.New(sqldb.Options{Name: "postgres", Log: store.Log()})
	if err != nil {
		t.Fatal(err)
	}
	bus := tidings.New(d, &tidings.Options{Logger: quiet(), Claims: store.Claims(), RedeliveryHorizon: time.Hour})
	bus.Module("mail").Subscribe("receipts", &tidings.SubscribeOptions{StartAt: tidings.StartBeginning}, invoicePaid.On(func(_ context.Context, e tidings.Event[paid]) error {
		a.arrive(fmt.Sprint(e.AggregateID(), "/", e.Payload().Number))
		return nil
	}))
	stopAfter(t, bus.Run)
	if err := bus.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	return func(ctx context.Context, aggregate string, number int) error {
		return bus.Publish(ctx, invoicePaid.New(aggregate, paid{number}))
	}
}

// throughRelay writes to an outbox, each event in a transaction of its own, and
// sends to a broker that takes everything.
func throughRelay(t *testing.T, store *postgres.Store[pgx.Tx], a *arrivals) func(ctx context.Context, aggregate string, number int) error {
	t.Helper()
	relay, err := outbox.NewRelay(store, func(_ context.Context, messages []driver.Message) error {
		for _, m := range messages {
			_, number, _ := strings.Cut(string(m.Body), `"number":`)
			number, _, _ = strings.Cut(number, "}")
			a.arrive(m.Key + "/" + number)
		}
		return nil
	}, &outbox.Options{Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	stopAfter(t, relay.Run)
	encoder := tidings.New(nil, nil)
	return func(ctx context.Context, aggregate string, number int) error {
		messages, err := encoder.Encode(ctx, invoicePaid.New(aggregate, paid{number}))
		if err != nil {
			return err
		}
		return store.Transact(ctx, func(ctx context.Context, tx pgx.Tx) error { return store.Add(ctx, tx, rows(messages)) })
	}
}

func stopAfter(t *testing.T, loop func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- loop(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	patience := testtime.Patience(time.Minute)
	deadline := time.After(patience)
	look := time.NewTicker(2 * time.Millisecond)
	defer look.Stop()
	for !condition() {
		select {
		case <-look.C:
		case <-deadline:
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}
