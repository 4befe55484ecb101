package sqlstore

import (
	"context"
	"maps"
	"sync"
	"time"
)

// soleWriter is what a handler's transaction does for the leases of its process
// where writers wait for each other: as long as it is open they can neither be
// renewed nor go to another, so it renews them when it ends. Else a handler that
// takes longer than a lease would be discarded each time, and come again for ever.
type soleWriter struct {
	mu      sync.Mutex
	held    map[leaseHolder]time.Duration // lease times, of those who have had leases through this store
	writing bool
	began   time.Time // the transaction that writes, or wrote last
	since   time.Time // and the first of those in turn whose leases were kept
	kept    time.Time // the last of them that renewed the leases did it then
}

type leaseHolder struct{ group, holder string }

// KeptSince implements [driver.Leases].
func (b *base) KeptSince() time.Time {
	w := &b.sole
	w.mu.Lock()
	defer w.mu.Unlock()
	// After the end the leases are good for as long as it takes to renew them.
	if w.writing || time.Since(w.kept) < w.shortest()/2 {
		return w.since
	}
	return time.Time{}
}

// shortest is the shortest lease time. The caller holds the lock.
func (w *soleWriter) shortest() (shortest time.Duration) {
	for _, ttl := range w.held {
		if shortest == 0 || ttl < shortest {
			shortest = ttl
		}
	}
	return shortest
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

// begin says that a transaction keeps the others out from now on. It returns what
// end has to be told.
func (w *soleWriter) begin() (began time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writing, w.began = true, time.Now()
	if time.Since(w.kept) >= w.shortest()*3/4 { // else what was renewed has not ended since
		w.since = w.began
	}
	return w.began
}

// due returns whose leases a transaction has to renew: nobody's after a short one.
func (w *soleWriter) due(wrote time.Duration) map[leaseHolder]time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if wrote <= w.shortest()/8 {
		return nil
	}
	return maps.Clone(w.held)
}

// renewed is told before the commit, because the next transaction may begin before
// this one is told that it has ended.
func (w *soleWriter) renewed(at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kept = at
}

// end says that a transaction has ended, and whether it was committed.
func (w *soleWriter) end(began time.Time, committed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.began.Equal(began) {
		w.writing = false
	}
	if !committed {
		w.kept = time.Time{}
	}
}

// prolong renews, in a transaction that ends, what had not ended when it began. It
// reports whether there was a need and it could.
func (b *base) prolong(ctx context.Context, run Statements, began time.Time) bool {
	if began.IsZero() {
		return false
	}
	now := time.Now()
	wrote := now.Sub(began)
	due := b.sole.due(wrote)
	for of, ttl := range due {
		for _, table := range []string{"leases", "members"} {
			_, err := run.Exec(ctx, "UPDATE {"+table+"} SET until_at = {now} + "+b.integer("$3")+" WHERE group_name = $1 AND holder = $2 AND until_at > {now} - "+b.integer("$4"),
				of.group, of.holder, microseconds(ttl), microseconds(wrote))
			if err != nil {
				return false // the leases end
			}
		}
	}
	if len(due) == 0 {
		return false
	}
	b.sole.renewed(now)
	return true
}
