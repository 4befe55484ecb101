package sqldb_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/driver/sqldb"
	"github.com/tidings-go/tidings/outbox"
	"github.com/tidings-go/tidings/store/postgres"
	"github.com/tidings-go/tidings/store/sqlite"
)

// Releases of one program differ in the channels that a subscription of theirs has.
// Whatever runs beside or after what, every event is handled by a release that has
// its channel, and in order.

var (
	orderPlaced  = tidings.Define[step]("shop.order.placed", 1, tidings.Repeatable)
	orderShipped = tidings.Define[step]("shop.order.shipped", 1, tidings.Repeatable)
)

type step struct {
	Number int `json:"number"`
}

const ofReleases = "report.orders" // the subscription

// books is what all releases have handled.
type books struct {
	t *testing.T

	mu      sync.Mutex
	handled map[string]map[int]bool // by event type: the numbers
	last    map[string]int          // by event type and aggregate
}

// on is a reaction that is entered into the books.
func (b *books) on(contract tidings.Contract[step]) tidings.Reaction {
	return contract.On(func(_ context.Context, e tidings.Event[step]) error {
		b.mu.Lock()
		defer b.mu.Unlock()
		number, lane := e.Payload().Number, e.Type()+" "+e.AggregateID()
		if b.handled[e.Type()] == nil {
			b.handled[e.Type()] = make(map[int]bool)
		}
		if last, seen := b.last[lane]; seen && number < last && !b.handled[e.Type()][number] {
			b.t.Errorf("%s: %d came behind %d", lane, number, last)
		}
		b.handled[e.Type()][number] = true
		b.last[lane] = max(b.last[lane], number)
		return nil
	})
}

// want waits until the numbers from, …, to-1 of a contract are handled, and no
// others are.
func (b *books) want(contract tidings.Contract[step], from, to int) {
	b.t.Helper()
	all := func() (n, others int) {
		b.mu.Lock()
		defer b.mu.Unlock()
		for number := range b.handled[contract.Type()] {
			if number >= from && number < to {
				n++
			} else {
				others++
			}
		}
		return n, others
	}
	defer func() {
		if n, others := all(); n != to-from || others > 0 {
			b.t.Errorf("%s: %d of %d are handled, and %d others", contract.Type(), n, to-from, others)
		}
	}()
	eventually(b.t, fmt.Sprintf("%s: %d to %d are handled", contract.Type(), from, to-1), func() bool { n, _ := all(); return n == to-from })
}

// process is a bus that publishes.
func process(t *testing.T, log outbox.Log) *tidings.Bus {
	t.Helper()
	d, err := sqldb.New(sqldb.Options{Name: "postgres", Log: log, LeaseTime: 5 * time.Second, PollInterval: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return tidings.New(d, &tidings.Options{Logger: quiet()})
}

// release runs one instance until it is stopped, with a database connection of its
// own.
func release(t *testing.T, log outbox.Log, start tidings.StartAt, reactions ...tidings.Reaction) (bus *tidings.Bus, stop func()) {
	t.Helper()
	bus = process(t, log)
	bus.Module("report").Subscribe("orders", &tidings.SubscribeOptions{StartAt: start, UnorderedAcrossTypes: true}, reactions...)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- bus.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	if err := bus.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	return bus, stop
}

// tell publishes the numbers from, …, to-1, of a few aggregates.
func tell(t *testing.T, bus *tidings.Bus, contract tidings.Contract[step], from, to int) {
	t.Helper()
	for n := from; n < to; n++ {
		if err := bus.Publish(t.Context(), contract.New(fmt.Sprint("order-", n%7), step{n})); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReleasesOnSQLite(t *testing.T) {
	releases(t, func(t *testing.T) func() outbox.Log {
		path := filepath.Join(t.TempDir(), "app.db")
		return func() outbox.Log {
			store, err := sqlite.Open(path, nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = store.DB().Close() })
			if err := store.Migrate(t.Context()); err != nil {
				t.Fatal(err)
			}
			return store.Log()
		}
	})
}

func TestRealReleases(t *testing.T) {
	address := drivertest.Server(t, "TIDINGS_POSTGRES_URL")
	releases(t, func(t *testing.T) func() outbox.Log {
		schema := fmt.Sprintf("releases_%x", time.Now().UnixNano())
		admin, err := pgxpool.New(t.Context(), address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(admin.Close)
		t.Cleanup(func() { run(t, admin, "DROP SCHEMA IF EXISTS "+schema+" CASCADE") })
		return func() outbox.Log {
			pool, err := pgxpool.New(t.Context(), address)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(pool.Close)
			store, err := postgres.New(pool, &postgres.Options{Schema: schema})
			if err != nil {
				t.Fatal(err)
			}
			if err := store.Migrate(t.Context()); err != nil {
				t.Fatal(err)
			}
			return store.Log()
		}
	})
}

// releases holds the driver to the promise. database makes an empty one, of which
// every process opens its own.
func releases(t *testing.T, database func(t *testing.T) (open func() outbox.Log)) {
	for name, test := range map[string]func(t *testing.T, open func() outbox.Log, b *books){
		"rolled back and deployed again": rolledBack,
		"beside the release before":      beside,
		"after the release before":       afterwards,
		"a channel that begins now":      beginsNow,
		"a channel is gone for good":     goneForGood,
	} {
		t.Run(name, func(t *testing.T) {
			test(t, database(t), &books{t: t, handled: make(map[string]map[int]bool), last: make(map[string]int)})
		})
	}
}

func rolledBack(t *testing.T, open func() outbox.Log, b *books) {
	newer, stop := release(t, open(), tidings.StartBeginning, b.on(orderPlaced), b.on(orderShipped))
	tell(t, newer, orderShipped, 0, 50)
	b.want(orderShipped, 0, 50)
	stop()
	older, stop := release(t, open(), tidings.StartBeginning, b.on(orderPlaced))
	tell(t, older, orderShipped, 50, 100)
	tell(t, older, orderPlaced, 0, 50) // behind them: what it passes has a position
	b.want(orderPlaced, 0, 50)
	stop()
	newer, _ = release(t, open(), tidings.StartBeginning, b.on(orderPlaced), b.on(orderShipped))
	tell(t, newer, orderShipped, 100, 150)
	b.want(orderShipped, 0, 150)
	b.want(orderPlaced, 0, 50)
}

// A canary runs for long: everything is handled while both run.
func beside(t *testing.T, open func() outbox.Log, b *books) {
	older, _ := release(t, open(), tidings.StartBeginning, b.on(orderPlaced))
	tell(t, older, orderPlaced, 0, 30)
	newer, stop := release(t, open(), tidings.StartBeginning, b.on(orderPlaced), b.on(orderShipped))
	tell(t, newer, orderShipped, 0, 100)
	tell(t, older, orderPlaced, 30, 130)
	tell(t, newer, orderPlaced, 130, 200)
	tell(t, older, orderShipped, 100, 200)
	b.want(orderPlaced, 0, 200)
	b.want(orderShipped, 0, 200)
	if lacks := older.Health().Subscriptions[0].Lacks; len(lacks) != 1 || lacks[0].Type != orderShipped.Type() {
		// It is watched: the older release learns of the newer one.
		eventually(t, "the older release knows what it lacks", func() bool { return len(older.Health().Subscriptions[0].Lacks) == 1 })
	}
	stop() // it was withdrawn: what it had alone waits
	tell(t, older, orderShipped, 200, 210)
	tell(t, older, orderPlaced, 200, 210)
	b.want(orderPlaced, 0, 210)
	release(t, open(), tidings.StartBeginning, b.on(orderPlaced), b.on(orderShipped))
	b.want(orderShipped, 0, 210)
}

func afterwards(t *testing.T, open func() outbox.Log, b *books) {
	older, stop := release(t, open(), tidings.StartBeginning, b.on(orderPlaced))
	tell(t, older, orderShipped, 0, 50)
	tell(t, older, orderPlaced, 0, 50)
	b.want(orderPlaced, 0, 50)
	stop()
	newer, _ := release(t, open(), tidings.StartBeginning, b.on(orderPlaced), b.on(orderShipped))
	tell(t, newer, orderShipped, 50, 100)
	b.want(orderShipped, 0, 100)
	b.want(orderPlaced, 0, 50)
}

// A channel that is new to a subscription which is not begins at StartAt too, and
// the others go on where they were.
func beginsNow(t *testing.T, open func() outbox.Log, b *books) {
	older, stop := release(t, open(), tidings.StartNow, b.on(orderPlaced))
	tell(t, older, orderShipped, 0, 50)
	tell(t, older, orderPlaced, 0, 50)
	b.want(orderPlaced, 0, 50)
	stop()
	publisher := process(t, open())
	tell(t, publisher, orderPlaced, 50, 100) // while nobody runs
	tell(t, publisher, orderShipped, 50, 60)
	newer, _ := release(t, open(), tidings.StartNow, b.on(orderPlaced), b.on(orderShipped))
	tell(t, newer, orderShipped, 60, 100)
	b.want(orderShipped, 60, 100)
	b.want(orderPlaced, 0, 100)
}

// Until the last type of a channel is forgotten, the log keeps what nobody handles
// any more.
func goneForGood(t *testing.T, open func() outbox.Log, b *books) {
	log := open()
	newer, stop := release(t, open(), tidings.StartBeginning, b.on(orderPlaced), b.on(orderShipped))
	tell(t, newer, orderShipped, 0, 20)
	b.want(orderShipped, 0, 20)
	if _, err := log.ForgetType(t.Context(), ofReleases, orderShipped.Type()); !errors.Is(err, driver.ErrInUse) {
		t.Errorf("while a release handles it: %v", err)
	}
	stop()
	last, _ := release(t, open(), tidings.StartBeginning, b.on(orderPlaced))
	tell(t, last, orderShipped, 20, 40)
	tell(t, last, orderPlaced, 0, 20)
	b.want(orderPlaced, 0, 20)
	left := func() (n int) {
		t.Helper()
		for deleted := 1; deleted > 0; {
			var err error
			if deleted, err = log.Trim(t.Context(), -time.Hour, 1000); err != nil {
				t.Fatal(err)
			}
		}
		var from []outbox.Place
		for _, part := range outbox.Parts(orderShipped.Channel()) {
			from = append(from, outbox.Place{Part: part})
		}
		entries, _, err := log.Read(t.Context(), from, 1000, 1000)
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	if n := left(); n != 20 {
		t.Errorf("%d events are left for a release that handles them, want 20", n)
	}
	lag := func() int64 {
		t.Helper()
		stored, err := log.(driver.Keeper).StoredSubscriptions(t.Context(), driver.StoredOptions{})
		if err != nil || len(stored) != 1 {
			t.Fatalf("stored: %+v, %v", stored, err)
		}
		return stored[0].Lag
	}
	eventually(t, "the lag is what nobody handles", func() bool { return lag() == 20 })
	if known, err := log.ForgetType(t.Context(), ofReleases, orderShipped.Type()); err != nil || !known {
		t.Errorf("ForgetType: %v, %v", known, err)
	}
	if declared, err := log.Declared(t.Context(), ofReleases); err != nil || len(declared) != 1 || declared[0].Type != orderPlaced.Type() {
		t.Errorf("declared: %v, %v", declared, err)
	}
	if n, behind := left(), lag(); n != 0 || behind != 0 {
		t.Errorf("%d events are left, the lag is %d", n, behind)
	}
	tell(t, last, orderPlaced, 20, 40)
	b.want(orderPlaced, 0, 40)
}
