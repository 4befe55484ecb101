package sqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// A handler's transaction keeps every renewal out. What this process had when it
// began is still its own afterwards, whether the handler failed or not, and no
// other process had it meanwhile.
func TestALongTransactionKeepsTheLeases(t *testing.T) {
	failed := errors.New("the handler failed")
	for name, result := range map[string]error{"committed": nil, "rolled back": failed} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "shop.db")
			one, two := file(t, path, nil), file(t, path, nil)
			const ttl = 400 * time.Millisecond
			had, err := one.Acquire(t.Context(), "group", "one", []string{"0", "1"}, 2, ttl)
			if err != nil || len(had) != 2 {
				t.Fatalf("acquired %v: %v", had, err)
			}
			other := make(chan []driver.Lease, 1)
			err = one.Transact(t.Context(), func(ctx context.Context, tx *sql.Tx) error {
				began := time.Now()
				if since := one.KeptSince(); since.IsZero() || since.After(began) || !two.KeptSince().IsZero() {
					t.Errorf("one keeps them since %v, two since %v, now is %v", since, two.KeptSince(), began)
				}
				if _, err := tx.ExecContext(ctx, "CREATE TABLE effects (name text)"); err != nil {
					return err
				}
				go func() { // it waits for this transaction, and the leases have ended by then
					taken, err := two.Acquire(context.WithoutCancel(ctx), "group", "two", []string{"0", "1"}, 2, time.Minute)
					if err != nil {
						t.Error(err)
					}
					other <- taken
				}()
				<-time.After(2 * ttl)
				return result
			})
			if !errors.Is(err, result) {
				t.Fatalf("Transact: %v", err)
			}
			if taken := <-other; len(taken) != 0 {
				t.Errorf("another was given %v", taken)
			}
			kept, err := one.Renew(t.Context(), "group", "one", time.Minute)
			if err != nil || fmt.Sprint(kept) != fmt.Sprint(had) {
				t.Errorf("had %v, has %v: %v", had, kept, err)
			}
			var tables int
			if err := one.DB().QueryRowContext(t.Context(), "SELECT count(*) FROM sqlite_schema WHERE name = 'effects'").Scan(&tables); err != nil || (tables == 1) != (result == nil) {
				t.Errorf("%d tables of a handler that returned %v: %v", tables, result, err)
			}
		})
	}
}

// A lease that had ended before the transaction began is not brought back.
func TestALongTransactionBringsNoLeaseBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "shop.db")
	one := file(t, path, nil)
	if had, err := one.Acquire(t.Context(), "group", "one", []string{"0"}, 1, 50*time.Millisecond); err != nil || len(had) != 1 {
		t.Fatalf("acquired %v: %v", had, err)
	}
	<-time.After(100 * time.Millisecond) // by the clock of the file
	err := one.Transact(t.Context(), func(context.Context, *sql.Tx) error {
		<-time.After(50 * time.Millisecond)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if kept, err := one.Renew(t.Context(), "group", "one", time.Minute); err != nil || len(kept) != 0 {
		t.Errorf("it has %v again: %v", kept, err)
	}
}

// Handlers that wait for each other may all be slow: from one to the next no lease
// is over, and nobody thinks so.
func TestLongTransactionsInTurnKeepTheLeases(t *testing.T) {
	path := filepath.Join(t.TempDir(), "shop.db")
	one := file(t, path, nil)
	const ttl = 400 * time.Millisecond
	had, err := one.Acquire(t.Context(), "group", "one", []string{"0", "1"}, 2, ttl)
	if err != nil || len(had) != 2 {
		t.Fatalf("acquired %v: %v", had, err)
	}
	var first time.Time
	for n := range 4 {
		err := one.Transact(t.Context(), func(context.Context, *sql.Tx) error {
			since := one.KeptSince()
			if n == 0 {
				first = since
			}
			if since.IsZero() || !since.Equal(first) {
				t.Errorf("transaction %d keeps the leases since %v, the first since %v", n, since, first)
			}
			if n < 3 { // a short one keeps them as well
				<-time.After(ttl * 3 / 2)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if since := one.KeptSince(); !since.Equal(first) {
			t.Errorf("after transaction %d the leases are kept since %v, the first was %v", n, since, first)
		}
	}
	if kept, err := one.Renew(t.Context(), "group", "one", ttl); err != nil || fmt.Sprint(kept) != fmt.Sprint(had) {
		t.Errorf("had %v, has %v: %v", had, kept, err)
	}
	<-time.After(ttl)
	if since := one.KeptSince(); !since.IsZero() {
		t.Errorf("without a transaction the leases are kept since %v", since)
	}
}
