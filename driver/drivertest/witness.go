package drivertest

import (
	"context"
	"sync"

	"github.com/tidings-go/tidings"
)

// witness is an observer that remembers what it was told.
type witness struct {
	mu     sync.Mutex
	counts map[tidings.Kind]int // Settled and Abandoned count events
	kept   map[tidings.Kind][]tidings.Observation
	told   []func(tidings.Observation)
}

var _ tidings.Observer = (*witness)(nil)

func newWitness() *witness {
	return &witness{counts: make(map[tidings.Kind]int), kept: make(map[tidings.Kind][]tidings.Observation)}
}

// Observe implements [tidings.Observer].
func (w *witness) Observe(_ context.Context, o tidings.Observation) {
	w.mu.Lock()
	switch o.Kind {
	case tidings.Settled, tidings.Abandoned:
		w.counts[o.Kind] += o.Count
	default:
		w.counts[o.Kind]++
		w.kept[o.Kind] = append(w.kept[o.Kind], o)
	}
	told := w.told
	w.mu.Unlock()
	for _, tell := range told {
		tell(o)
	}
}

// tell calls f with every later observation.
func (w *witness) tell(f func(tidings.Observation)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = append(w.told, f)
}

func (w *witness) count(k tidings.Kind) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.counts[k]
}

// of returns the observations of a kind.
func (w *witness) of(k tidings.Kind) []tidings.Observation {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]tidings.Observation(nil), w.kept[k]...)
}
