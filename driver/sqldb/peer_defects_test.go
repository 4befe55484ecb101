package sqldb

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/outbox"
	"github.com/tidings-go/tidings/store/postgres"
)

// These are about defects that were measured elsewhere, docs/peer-defects.md. All of
// them need the real PostgreSQL.

type jobPayload struct {
	N int `json:"n"`
}

var jobDone = tidings.Define[jobPayload]("peers.job.done", 1, tidings.Repeatable)

// watching runs one instance of a subscription to jobDone until the test ends.
func watching(t *testing.T, log outbox.Log, options Options, subscribe tidings.SubscribeOptions, handle func(context.Context, tidings.Event[jobPayload]) error) *tidings.Bus {
	t.Helper()
	options.Name, options.Log = "postgres", log
	d, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	b := tidings.New(d, &tidings.Options{Logger: slog.New(slog.DiscardHandler)})
	subscribe.StartAt = tidings.StartBeginning
	b.Module("peers").Subscribe("watch", &subscribe, jobDone.On(handle))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	if err := b.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	return b
}

// openTransaction is a transaction with an id of its own, which stays open until the
// test ends.
func openTransaction(t *testing.T, address string) pgx.Tx {
	t.Helper()
	connection, err := pgx.Connect(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close(context.Background()) })
	tx, err := connection.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	var id string
	if err := tx.QueryRow(t.Context(), "SELECT pg_current_xact_id()::text").Scan(&id); err != nil {
		t.Fatal(err)
	}
	return tx
}

// A transaction that stays open delays its own events and nobody else's, wherever
// it is: in another database of the server, in this one, or in the outbox itself.
func TestPeerDefect15AnOpenTransactionDelaysNobody(t *testing.T) {
	address := drivertest.Server(t, "TIDINGS_POSTGRES_URL")
	admin, err := pgxpool.New(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(admin.Close)
	other := fmt.Sprintf("other_%x", time.Now().UnixNano())
	if _, err := admin.Exec(t.Context(), "CREATE DATABASE "+other); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := admin.Exec(context.Background(), "DROP DATABASE "+other+" WITH (FORCE)"); err != nil {
			t.Log(err)
		}
	})
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + other
	openTransaction(t, u.String())
	openTransaction(t, address)

	schema := newSchema(t, address)
	log := postgresLog(t, address, schema, nil)
	store, err := postgres.New(admin, &postgres.Options{Schema: schema})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var handled []string
	b := watching(t, log, Options{}, tidings.SubscribeOptions{}, func(_ context.Context, e tidings.Event[jobPayload]) error {
		mu.Lock()
		defer mu.Unlock()
		handled = append(handled, e.AggregateID())
		return nil
	})
	box, err := outbox.New(b, store, &outbox.Options{WithoutRelay: true})
	if err != nil {
		t.Fatal(err)
	}
	within := openTransaction(t, address)
	if err := b.Module("peers").Through(box.In(within)).Publish(t.Context(), jobDone.New("within", jobPayload{1})); err != nil {
		t.Fatal(err)
	}
	has := func(want string) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return fmt.Sprint(handled) == want
		}
	}
	if err := b.Publish(t.Context(), jobDone.New("outside", jobPayload{2})); err != nil {
		t.Fatal(err)
	}
	drivertest.Eventually(t, "the event of a transaction that has ended", has("[outside]"))
	if err := within.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	drivertest.Eventually(t, "the other one", has("[outside within]"))
}

// Workers do not wait for each other: as many handlers run at once as the instances
// of a subscription have lanes, and each of the instances has its share.
func TestPeerDefect17WorkersWorkAtOnce(t *testing.T) {
	address := drivertest.Server(t, "TIDINGS_POSTGRES_URL")
	schema := newSchema(t, address)
	var running, most atomic.Int64
	gate, full := make(chan struct{}), make(chan struct{})
	var instances [2]atomic.Int64
	handler := func(instance int) func(context.Context, tidings.Event[jobPayload]) error {
		return func(context.Context, tidings.Event[jobPayload]) error {
			instances[instance].Add(1)
			if n := running.Add(1); n > most.Load() {
				if most.Store(n); n == 8 {
					close(full)
				}
			}
			<-gate
			running.Add(-1)
			return nil
		}
	}
	var b *tidings.Bus
	for instance := range 2 {
		b = watching(t, postgresLog(t, address, schema, nil), Options{LeaseTime: time.Second}, tidings.SubscribeOptions{Concurrency: 4}, handler(instance))
	}
	t.Cleanup(sync.OnceFunc(func() { close(gate) })) // before the instances end
	for n := range 400 {
		if err := b.Publish(t.Context(), jobDone.New(fmt.Sprint("a", n), jobPayload{n})); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-full:
	case <-time.After(30 * time.Second):
		t.Errorf("%d handlers ran at once, want 8", most.Load())
	}
	if instances[0].Load() != 4 || instances[1].Load() != 4 {
		t.Errorf("one instance runs %d, the other %d", instances[0].Load(), instances[1].Load())
	}
}

// An event of an idle system is handled when it is committed, not when the next poll
// is due.
func TestPeerDefect18NobodyWaitsForThePoll(t *testing.T) {
	address := drivertest.Server(t, "TIDINGS_POSTGRES_URL")
	schema := newSchema(t, address)
	options := Options{PollInterval: 5 * time.Minute}
	handled := make(chan time.Time, 10)
	watching(t, postgresLog(t, address, schema, nil), options, tidings.SubscribeOptions{}, func(context.Context, tidings.Event[jobPayload]) error {
		handled <- time.Now()
		return nil
	})
	// Another process, with connections of its own.
	options.Name, options.Log = "postgres", postgresLog(t, address, schema, nil)
	d, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	publishing := tidings.New(d, &tidings.Options{Logger: slog.New(slog.DiscardHandler)})
	for n := range 5 {
		began := time.Now()
		if err := publishing.Publish(t.Context(), jobDone.New("a", jobPayload{n})); err != nil {
			t.Fatal(err)
		}
		select {
		case at := <-handled:
			t.Logf("handled %v after Publish was called", at.Sub(began).Round(time.Microsecond))
		case <-time.After(30 * time.Second):
			t.Fatal("not handled in a tenth of the poll interval")
		}
	}
	if err := publishing.Close(context.Background()); err != nil {
		t.Error(err)
	}
}
