package sqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/outbox"
	"github.com/tidings-go/tidings/store/sqlite"
)

func event(aggregate string, n int) outbox.Row {
	return outbox.Row{
		Slot: outbox.SlotOf("a.b", aggregate), ID: fmt.Sprint(aggregate, "-", n), Channel: "a.b", AggregateID: aggregate, Type: "a.b.done", Payload: []byte(`{}`),
	}
}

// entries are the ids in the log, by slot and position.
func entries(t *testing.T, log outbox.Log) map[string]bool {
	t.Helper()
	var from []outbox.Place
	for _, part := range outbox.Parts("a.b") {
		from = append(from, outbox.Place{Part: part})
	}
	all, _, err := log.Read(t.Context(), from, 10_000, 1_000_000)
	if err != nil {
		t.Fatal(err)
	}
	ids := make(map[string]bool)
	for _, e := range all {
		ids[e.Row.ID] = true
	}
	return ids
}

// Writers of several processes and transactions of the application all have
// their turn: none waits until the busy time is over, as it happens where each
// sleeps and tries its luck.
func TestEveryWriterHasItsTurn(t *testing.T) {
	const processes, writers, each = 3, 4, 15
	path := filepath.Join(t.TempDir(), "shop.db")
	var mu sync.Mutex
	var longest time.Duration
	var all sync.WaitGroup
	var first *sqlite.Store
	for p := range processes {
		s := file(t, path, nil)
		if first == nil {
			first = s
		}
		log := s.Log()
		for w := range writers {
			all.Go(func() {
				for n := range each {
					began := time.Now()
					var err error
					if w == 0 { // the application itself
						err = s.Transact(t.Context(), func(ctx context.Context, tx *sql.Tx) error {
							return s.Add(ctx, tx, []outbox.Row{event(fmt.Sprint("p", p, "w", w), n)})
						})
					} else {
						err = log.Append(t.Context(), []outbox.Row{event(fmt.Sprint("p", p, "w", w), n)})
					}
					if err != nil {
						t.Errorf("process %d, writer %d: %v", p, w, err)
						return
					}
					mu.Lock()
					longest = max(longest, time.Since(began))
					mu.Unlock()
				}
			})
		}
	}
	all.Wait()
	log := first.Log()
	for {
		n, err := log.Number(t.Context(), 1000)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
	}
	if got := len(entries(t, log)); got != processes*writers*each {
		t.Errorf("%d events are stored, want %d", got, processes*writers*each)
	}
	t.Logf("the longest write took %v", longest)
	if longest > 5*time.Second {
		t.Errorf("a writer waited %v for its turn", longest)
	}
}

// What shares a transaction shares the commit, and no failure.
func TestAFailedWriteUndoesNoOther(t *testing.T) {
	s := file(t, filepath.Join(t.TempDir(), "shop.db"), nil)
	log := s.Log()
	release := holdFile(t, s) // so that all wait for one transaction
	var all sync.WaitGroup
	for n := range 20 {
		all.Go(func() {
			r := event("good", n)
			if n%4 == 0 {
				r = event("bad", n)
				r.Payload = []byte("\x00")
			}
			if err := log.Append(t.Context(), []outbox.Row{r}); (err != nil) != (n%4 == 0) {
				t.Errorf("event %d: %v", n, err)
			}
			letter := driver.DeadLetter{ID: fmt.Sprint(n), Channel: "a.b", Subscription: "x.y", Reason: "permanent", FailedAt: time.Now()}
			if err := s.DeadLetters().PutDeadLetter(t.Context(), letter); err != nil {
				t.Errorf("dead letter %d: %v", n, err)
			}
		})
	}
	release()
	all.Wait()
	got := entries(t, log)
	if len(got) != 15 {
		t.Errorf("%d events are stored, want 15: %v", len(got), got)
	}
	for id := range got {
		if !strings.HasPrefix(id, "good-") {
			t.Errorf("stored: %s", id)
		}
	}
}

// While it waits for its turn a write ends with its context, and leaves nothing.
func TestAWriteThatWaitsEndsWithItsContext(t *testing.T) {
	s := file(t, filepath.Join(t.TempDir(), "shop.db"), nil)
	log := s.Log()
	if err := log.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	release := holdFile(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var all sync.WaitGroup
	for n := range 3 { // one leads, the others wait for it
		all.Go(func() {
			if err := log.Append(ctx, []outbox.Row{event("late", n)}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("event %d: %v", n, err)
			}
		})
	}
	all.Wait()
	release()
	if err := log.Append(t.Context(), []outbox.Row{event("next", 1)}); err != nil {
		t.Errorf("the next write: %v", err)
	}
	if got := entries(t, log); len(got) != 1 || !got["next-1"] {
		t.Errorf("stored: %v", got)
	}
}

// The end of one writer's context is no business of those that write with it.
func TestContextsThatEndUndoNoOther(t *testing.T) {
	s := file(t, filepath.Join(t.TempDir(), "shop.db"), nil)
	log := s.Log()
	var all sync.WaitGroup
	var mu sync.Mutex
	stored := 0
	for w := range 4 {
		all.Go(func() {
			for n := range 100 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(n%7)*100*time.Microsecond)
				err := log.Append(ctx, []outbox.Row{event(fmt.Sprint("hasty-", w), n)})
				cancel()
				if err != nil && !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("a hasty write: %v", err)
				}
				if err == nil {
					mu.Lock()
					stored++
					mu.Unlock()
				}
			}
		})
		all.Go(func() {
			for n := range 50 {
				if err := log.Append(t.Context(), []outbox.Row{event(fmt.Sprint("patient-", w), n)}); err != nil {
					t.Errorf("a patient write: %v", err)
				}
			}
		})
	}
	all.Wait()
	if got := len(entries(t, log)); got != stored+4*50 {
		t.Errorf("%d events are stored, want %d hasty and 200 patient ones", got, stored)
	}
}

// holdFile holds all writers back until release is called.
func holdFile(t *testing.T, s *sqlite.Store) (release func()) {
	t.Helper()
	tx, err := s.DB().BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := tx.Rollback(); err != nil {
			t.Error(err)
		}
	}
}

// A pool of one connection, which many applications take for SQLite, works too.
func TestOneConnection(t *testing.T) {
	path := filepath.Join(t.TempDir(), "shop.db")
	file(t, path, nil)
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	db.SetMaxOpenConns(1)
	s, err := sqlite.New(db, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if s.Wake(ctx) != nil {
		t.Error("somebody keeps the only connection to watch the file")
	}
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			if err := s.Log().Append(ctx, []outbox.Row{event(fmt.Sprint("a", n), 1)}); err != nil {
				t.Error(err)
			}
			if err := s.Transact(ctx, func(ctx context.Context, tx *sql.Tx) error {
				return s.Add(ctx, tx, []outbox.Row{event(fmt.Sprint("a", n), 2)})
			}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}
