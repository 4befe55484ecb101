package storetest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/outbox"
)

// Migrating is a store that makes its tables.
type Migrating[TX any] interface {
	SQL[TX]
	Migrate(ctx context.Context) error
	Check(ctx context.Context) error
	Schema() string
	SchemaSince(version int) string
}

// Empty is one database without tables.
type Empty[TX any] struct {
	// Open gives a store over it that has not migrated.
	Open func(t *testing.T) Migrating[TX]
	// Run runs statements, one after another; tables have their default names.
	Run func(t *testing.T, statements string)
	// Shape tells of each table, its columns and indexes, one line each.
	Shape func(t *testing.T) []string
	// NoLog says that the database is none that subscriptions can read.
	NoLog bool
	// Refused is what the error of a store wraps whose tables do not fit.
	Refused error
}

// tablesOfAll are in every database.
var tablesOfAll = []string{"outbox", "outbox_sent", "outbox_held", "leases", "members", "claims", "starts", "epochs", "dead_letters", "parked"}

// Migrations holds a store to what docs/stores.md says of its tables. open makes
// an empty database each time.
func Migrations[TX any](t *testing.T, open func(t *testing.T) Empty[TX]) {
	t.Helper()
	for name, test := range map[string]func(t *testing.T, open func(t *testing.T) Empty[TX]){
		"by many at once":             migratedByMany[TX],
		"as it is printed":            asPrinted[TX],
		"the library before":          theLibraryBefore[TX],
		"tables that do not fit":      doNotFit[TX],
		"nothing is made before that": nothingBefore[TX],
	} {
		t.Run(name, func(t *testing.T) { test(t, open) })
	}
}

func migratedByMany[TX any](t *testing.T, open func(t *testing.T) Empty[TX]) {
	const instances = 8
	d := open(t)
	stores := make([]Migrating[TX], instances)
	for n := range stores {
		stores[n] = d.Open(t)
	}
	var all sync.WaitGroup
	for _, s := range stores {
		all.Go(func() {
			if err := s.Migrate(t.Context()); err != nil {
				t.Errorf("Migrate: %v", err)
			}
			if err := s.Check(t.Context()); err != nil {
				t.Errorf("Check: %v", err)
			}
		})
	}
	all.Wait()
	works(t, d, stores[0])
}

// Whoever runs what Schema prints has what Migrate makes.
func asPrinted[TX any](t *testing.T, open func(t *testing.T) Empty[TX]) {
	made, printed := open(t), open(t)
	if err := made.Open(t).Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := printed.Open(t)
	printed.Run(t, s.Schema())
	if err := s.Check(t.Context()); err != nil {
		t.Errorf("after the printed statements: %v", err)
	}
	if want, got := made.Shape(t), printed.Shape(t); len(want) < len(tablesOfAll) || !slices.Equal(got, want) {
		t.Errorf("Migrate made\n%s\nthe printed statements made\n%s", strings.Join(want, "\n"), strings.Join(got, "\n"))
	}
	works(t, printed, s)
	if text := s.SchemaSince(1 << 20); text != "" {
		t.Errorf("beyond the newest version there is %q", text)
	}
}

// The next version of the tables may have more of everything, as long as it says
// that this library may work on it: no statement depends on what it does not
// name.
func theLibraryBefore[TX any](t *testing.T, open func(t *testing.T) Empty[TX]) {
	d := open(t)
	s := d.Open(t)
	if err := s.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	var next strings.Builder
	tables := slices.Clone(tablesOfAll)
	if !d.NoLog {
		tables = append(tables, "log", "log_slots", "positions", "declarations")
	}
	for _, table := range tables {
		fmt.Fprintf(&next, "ALTER TABLE tidings_%s ADD COLUMN of_the_next_version integer;\n", table)
	}
	next.WriteString("CREATE TABLE tidings_of_the_next_version (number integer);\n")
	next.WriteString("UPDATE tidings_schema SET version = version + 1;\n")
	d.Run(t, next.String())
	works(t, d, d.Open(t))
	works(t, d, s) // one that had looked before
	if err := d.Open(t).Migrate(t.Context()); err != nil {
		t.Errorf("Migrate of the library before: %v", err)
	}
}

func doNotFit[TX any](t *testing.T, open func(t *testing.T) Empty[TX]) {
	for name, change := range map[string]string{
		"too old": "UPDATE tidings_schema SET version = 0;\n",
		"too new": "UPDATE tidings_schema SET version = version + 2, minimum = version + 1;\n",
		"empty":   "DELETE FROM tidings_schema;\n",
	} {
		d := open(t)
		if err := d.Open(t).Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		if name == "too new" { // MySQL assigns from left to right
			d.Run(t, "UPDATE tidings_schema SET minimum = version + 1;\n")
			change = "UPDATE tidings_schema SET version = version + 2;\n"
		}
		d.Run(t, change)
		refused(t, d, name)
	}
}

func nothingBefore[TX any](t *testing.T, open func(t *testing.T) Empty[TX]) {
	refused(t, open(t), "without tables")
}

func refused[TX any](t *testing.T, d Empty[TX], what string) {
	t.Helper()
	s := d.Open(t)
	err := s.Check(t.Context())
	if err == nil || !strings.Contains(err.Error(), d.Refused.Error()) {
		t.Errorf("%s: Check says %v", what, err)
	}
	if _, err := s.Pending(t.Context(), outbox.Look{Slots: everySlot(), Each: 1, Limit: 1}); err == nil {
		t.Errorf("%s: the store works", what)
	}
}

// works goes once through what a store does.
func works[TX any](t *testing.T, d Empty[TX], s SQL[TX]) {
	t.Helper()
	r := row("a.b", fmt.Sprint("key-", time.Now().UnixNano()), 1)
	add(t, s, r)
	held := hold(t, s, "holder", time.Minute, everySlot()...)
	waiting := pending(t, s, everySlot(), 10)
	if len(waiting) != 1 || waiting[0].ID != r.ID {
		t.Errorf("pending %v", ids(waiting))
	}
	if n, err := s.Sent(t.Context(), "relay", "holder", held, waiting); err != nil || n != 1 {
		t.Errorf("Sent: %d %v", n, err)
	}
	if err := s.Leave(t.Context(), "relay", "holder"); err != nil {
		t.Errorf("Leave: %v", err)
	}
	claim := driver.ClaimRequest{Subscription: "x.y", Key: r.ID, Owner: "owner", Lease: time.Minute, Digest: 1}
	err := s.Transact(t.Context(), func(ctx context.Context, tx TX) error {
		if answer, err := s.Claim(ctx, tx, claim); err != nil || answer.State != driver.ClaimFresh {
			t.Errorf("Claim: %+v %v", answer, err)
		}
		return nil
	})
	if err != nil {
		t.Errorf("Transact: %v", err)
	}
	logged, ok := s.(interface{ Log() outbox.Log })
	if !ok || d.NoLog {
		return
	}
	l := logged.Log()
	name := "x." + r.AggregateID
	from := begin(t, l, name, driver.StartAt{Mode: driver.StartNow}, "a.b")
	if err := l.Append(t.Context(), []outbox.Row{r}); err != nil {
		t.Errorf("Append: %v", err)
	}
	number(t, l)
	if got := read(t, l, 10, from...); len(got) != 1 || got[0].Row.ID != r.ID {
		t.Errorf("read %v", entryIDs(got))
	}
	passes(t, l, name, outbox.Place{Part: from[r.Slot].Part, Position: from[r.Slot].Position + 1})
	if all, err := l.Declare(t.Context(), name, []driver.Declaration{{Channel: "a.b", Type: r.Type}}); err != nil || len(all) != 1 {
		t.Errorf("Declare: %v %v", all, err)
	}
}
