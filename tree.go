package tidings

import (
	"context"
	"sync"

	"github.com/tidings-go/tidings/driver"
)

// tree is one Publish from outside any handler on a driver that runs handlers
// in the publisher's goroutine, and everything that its handlers publish with
// their contexts. It is first in, first out: nesting is one level deep,
// whatever the chain. The tree is the context of the driver's Publish.
type tree struct {
	context.Context

	bus    *Bus
	mu     sync.Mutex
	queue  []*item
	first  int
	closed bool
	inline [4]*item // the queue of most trees

	// only the draining goroutine uses these
	done       []settlement // handled, to be settled
	inlineDone [1]settlement
	one        [1]driver.Settlement
}

type treeKey struct{}

// newTree returns a tree, which may have served an earlier Publish. A context
// that still knows that one finds it closed, or adds to this one: either way
// somebody comes for its events.
func (b *Bus) newTree(ctx context.Context) *tree {
	t := b.trees.Get().(*tree)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.Context, t.bus, t.closed = ctx, b, false
	t.queue, t.first, t.done = t.inline[:0], 0, t.inlineDone[:0]
	return t
}

func (b *Bus) drainTree(t *tree) {
	t.drain()
	t.mu.Lock()
	t.Context, t.queue = context.Background(), nil
	t.mu.Unlock()
	b.trees.Put(t)
}

// Value implements [context.Context].
func (t *tree) Value(key any) any {
	if _, ok := key.(treeKey); ok {
		return t
	}
	if key == driver.WaitKey() {
		return t.waiting
	}
	return t.Context.Value(key)
}

func treeFrom(ctx context.Context) *tree {
	t, _ := ctx.Value(treeKey{}).(*tree)
	return t
}

// open reports whether the tree is still being drained.
func (t *tree) open() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.closed
}

// add puts an item at the end; false when nobody will come for it. The caller
// holds the subscription's lock, which comes first.
func (t *tree) add(i *item) bool {
	if t == nil {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	if t.first == len(t.queue) {
		t.queue, t.first = t.queue[:0], 0
	}
	t.queue = append(t.queue, i)
	return true
}

func (t *tree) pop() *item {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.first == len(t.queue) {
		t.closed = true
		return nil
	}
	i := t.queue[t.first]
	t.queue[t.first] = nil
	t.first++
	return i
}

// drain runs what it can of the tree, in order, and returns when nothing of it
// is left that this goroutine may run.
func (t *tree) drain() {
	orderly := false
	defer func() {
		if orderly {
			return
		}
		// A handler ended this goroutine: workers take the rest.
		for i := t.pop(); i != nil; i = t.pop() {
			i.subscription.handOver(i)
		}
	}()
	for i := t.pop(); i != nil; i = t.pop() {
		i.subscription.runReserved(i, t)
	}
	orderly = true
}

// waiting is called when the driver is about to wait for room: that may be taken
// by events which this goroutine, or one that waits for it, was to run.
func (t *tree) waiting() { t.bus.handOverReserved() }

// handOverReserved leaves every lane that a Publish has reserved to workers.
func (b *Bus) handOverReserved() {
	for _, s := range b.subscriptions {
		s.mu.Lock()
		for _, l := range s.lanes {
			if l.state == laneReserved {
				s.makeReady(l)
			}
		}
		s.dispatch()
		s.mu.Unlock()
	}
}

// runReserved processes an item in the publisher's goroutine when it is the head of its
// lane and a slot is free; otherwise workers do.
func (s *subscription) runReserved(i *item, t *tree) {
	defer t.flush(s)
	s.runHead(i.lane, i, t, false)
}

// handOver gives a reserved lane to the workers.
func (s *subscription) handOver(i *item) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !i.finished && i.lane.state == laneReserved && i.lane.head == i {
		s.makeReady(i.lane)
		s.dispatch()
	}
}

// settle keeps a settlement until the lock is free.
func (t *tree) settle(done settlement) { t.done = append(t.done, done) }

// flush settles what this goroutine has handled, at once, so that the room in
// memory is free for the rest of the tree.
func (t *tree) flush(s *subscription) {
	for _, done := range t.done {
		t.one[0] = done.Settlement
		if err := s.consumer.Settle(s.bus.settling, t.one[:]); err != nil {
			s.mu.Lock()
			done.source.unsettle++
			s.settler.pending = append(s.settler.pending, done)
			s.turnSettler()
			s.mu.Unlock()
		}
	}
	clear(t.done)
	t.done = t.done[:0]
}
