package faults

import (
	"context"
	"os"
	"sync"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/inbox"
	"github.com/tidings-go/tidings/outbox"
)

// Point is a place in the code of a process at which it is killed.
type Point string

// The named points.
const (
	BeforeCommit             Point = "before commit"
	AfterCommit              Point = "after commit"
	AfterSendBeforeMark      Point = "after send before mark"
	AfterMark                Point = "after mark"
	BeforeNumbering          Point = "before numbering"
	AfterNumbering           Point = "after numbering"
	AfterEffectBeforeCommit  Point = "after effect before commit"
	AfterCommitBeforeSettle  Point = "after commit before settle"
	AfterPublish             Point = "right after nil"
	BetweenEffectAndSettling Point = "between effect and settle"
)

// Trap ends its process with SIGKILL at one point, the n-th time that the process
// comes there. The zero value never does. It may be used from many goroutines.
type Trap struct {
	Point Point
	Count int

	halt func() // instead of the end; it does not return

	mu    sync.Mutex
	times int
}

// At is called where a point is.
func (t *Trap) At(point Point) {
	if t == nil || t.Point != point || t.Count == 0 {
		return
	}
	t.mu.Lock() // kept for good by the one that ends the process
	if t.times++; t.times < t.Count {
		t.mu.Unlock()
		return
	}
	if t.halt != nil {
		t.halt()
	}
	die()
}

// die ends the process as kill -9 does.
func die() {
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Kill()
	}
	if err != nil {
		panic(err) // nor does it go on
	}
	select {} // until the signal is there
}

// Queue wraps the outbox of a relay.
func (t *Trap) Queue(queue outbox.Queue) outbox.Queue { return &trappedQueue{queue, t} }

type trappedQueue struct {
	outbox.Queue
	trap *Trap
}

func (q *trappedQueue) Sent(ctx context.Context, group, holder string, leases []driver.Lease, rows []outbox.Row) (int, error) {
	q.trap.At(AfterSendBeforeMark)
	n, err := q.Queue.Sent(ctx, group, holder, leases, rows)
	if err == nil && n > 0 {
		q.trap.At(AfterMark)
	}
	return n, err
}

// Log wraps the log of a driver over a database. status tells what waits to be
// numbered: nothing does, most of the times that somebody looks.
func (t *Trap) Log(log outbox.Log, status func(context.Context) (outbox.Status, error)) outbox.Log {
	return &trappedLog{log, t, status}
}

type trappedLog struct {
	outbox.Log
	trap   *Trap
	status func(context.Context) (outbox.Status, error)
}

func (l *trappedLog) Number(ctx context.Context, limit int) (int, error) {
	if l.trap.Point == BeforeNumbering && l.trap.Count > 0 {
		if status, err := l.status(ctx); err == nil && status.Backlog > 0 {
			l.trap.At(BeforeNumbering)
		}
	}
	n, err := l.Log.Number(ctx, limit)
	if err == nil && n > 0 {
		l.trap.At(AfterNumbering)
	}
	return n, err
}

// TrapStore wraps the inbox's store: the handler has had its effect in the
// transaction, which is not committed.
func TrapStore[TX any](t *Trap, store inbox.Store[TX]) inbox.Store[TX] {
	return &trappedStore[TX]{store, t}
}

type trappedStore[TX any] struct {
	inbox.Store[TX]
	trap *Trap
}

// Check asks the store whether it answers, as the bus does.
func (s *trappedStore[TX]) Check(ctx context.Context) error {
	if store, ok := s.Store.(interface{ Check(context.Context) error }); ok {
		return store.Check(ctx)
	}
	return nil
}

func (s *trappedStore[TX]) Transact(ctx context.Context, fn func(context.Context, TX) error) error {
	return s.Store.Transact(ctx, func(ctx context.Context, tx TX) error {
		err := fn(ctx, tx)
		if err == nil {
			s.trap.At(AfterEffectBeforeCommit)
		}
		return err
	})
}
