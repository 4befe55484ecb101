package tidings

import (
	"context"
	"slices"
	"time"

	"github.com/tidings-go/tidings/internal/calls"
)

// While a store does not answer, whatever needs it waits, and sooner or later nobody
// asks it any more: the sources of an instance that reaches no store go to others. So
// the stores themselves are asked, when the bus starts and for as long as they do not
// answer.

const (
	// probeFirst bounds the first question, for which a start waits.
	probeFirst = time.Second
	// probePause is between two questions to stores that do not answer.
	probePause = time.Second
)

// probed is a store that can be asked whether it answers.
type probed interface {
	Check(ctx context.Context) error
}

// findProbed finds the stores that the subscriptions need.
func (b *Bus) findProbed() {
	for _, s := range b.subscriptions {
		for _, h := range s.holders() {
			store, ok := h.value.(probed)
			if ok && !same(h.value, b.driver) && !slices.ContainsFunc(b.stores.probed, func(other probed) bool { return same(other, store) }) {
				b.stores.probed = append(b.stores.probed, store)
			}
		}
	}
}

// unable returns what tells the driver for how long nothing can be handled, or nil.
func (s *subscription) unable() func() time.Duration {
	for _, h := range s.holders() {
		if h.what == "claims" || h.what == "inbox" {
			return s.bus.stores.since
		}
	}
	return nil
}

// probe asks all stores. It reports whether they answered.
func (w *storeWatch) probe(ctx context.Context, most time.Duration) bool {
	for _, store := range w.probed {
		if err := calls.DoWithin(ctx, most, store.Check); err != nil {
			return false
		}
	}
	return true
}

// begin asks the stores for the first time: until they answer the bus is not ready.
func (w *storeWatch) begin(ctx context.Context) {
	if len(w.probed) == 0 || w.probe(ctx, probeFirst) {
		return
	}
	now := time.Now()
	w.down.Store(&now)
}

// keepProbing asks the stores that do not answer, until ctx ends.
func (w *storeWatch) keepProbing(ctx context.Context) {
	look := time.NewTicker(probePause)
	defer look.Stop()
	for {
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
		if w.down.Load() == nil || !w.probe(ctx, w.timeout/2) {
			continue
		}
		w.inbox.Store(false)
		w.outage.AnsweredAll()
		if w.outage.Told() == 0 {
			w.down.Store(nil) // of the start
		}
	}
}
