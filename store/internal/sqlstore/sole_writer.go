package sqlstore

import (
	"context"
	"sync"
	"time"
)

// soleWriter is what a handler's transaction does for the leases of its process
// where writers wait for each other: as long as it is open they can neither be
// renewed nor go to another, so it renews them when it ends. Else a handler that
// takes longer than a lease would be discarded each time, and come again for ever.
type soleWriter struct {
	mu    sync.Mutex
	since time.Time                     // the transaction began to write; zero when there is none
	held  map[leaseHolder]time.Duration // lease times, of those who have had leases through this store
}

type leaseHolder struct{ group, holder string }

// WritingSince implements [driver.Leases].
func (b *base) WritingSince() time.Time {
	b.sole.mu.Lock()
	defer b.sole.mu.Unlock()
	return b.sole.since
}

// remember notes who has leases.
func (w *soleWriter) remember(group, holder string, ttl time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held == nil {
		w.held = make(map[leaseHolder]time.Duration)
	}
	w.held[leaseHolder{group, holder}] = ttl
}

func (w *soleWriter) forget(group, holder string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.held, leaseHolder{group, holder})
}

func (w *soleWriter) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.since = time.Now()
}

// end says that the transaction is about to end. It returns how long it has
// written, and whose leases may have ended meanwhile.
func (w *soleWriter) end() (wrote time.Duration, held map[leaseHolder]time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.since.IsZero() {
		return 0, nil
	}
	wrote, w.since = time.Since(w.since), time.Time{}
	for of, ttl := range w.held {
		if wrote > ttl/8 {
			if held == nil {
				held = make(map[leaseHolder]time.Duration)
			}
			held[of] = ttl
		}
	}
	return wrote, held
}

// prolong renews, in the transaction that ends, what had not ended when it began.
func (b *base) prolong(ctx context.Context, run Statements, wrote time.Duration, held map[leaseHolder]time.Duration) error {
	for of, ttl := range held {
		for _, table := range []string{"leases", "members"} {
			_, err := run.Exec(ctx, "UPDATE {"+table+"} SET until_at = {now} + "+b.integer("$3")+" WHERE group_name = $1 AND holder = $2 AND until_at > {now} - "+b.integer("$4"),
				of.group, of.holder, microseconds(ttl), microseconds(wrote))
			if err != nil {
				return err
			}
		}
	}
	return nil
}
