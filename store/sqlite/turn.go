package sqlite

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// turn lets the writing transactions of one pool come one after another, in the
// order in which they asked, and takes a place among those of other processes.
// SQLite by itself makes each of them sleep, up to a tenth of a second, and then
// try its luck: under load some never have it.
type turn struct {
	patience time.Duration
	between  *between

	mu      sync.Mutex
	taken   bool
	waiting []chan struct{} // the next is told by closing
}

// errTurn is what SQLite says with SQLITE_BUSY.
var errTurn = errors.New("another transaction that writes holds the file")

// take waits for the turn. release gives it on.
func (t *turn) take(ctx context.Context) (release func(), err error) {
	if err := t.wait(ctx); err != nil {
		return nil, err
	}
	leave, err := t.between.enter(ctx, t.patience)
	if err != nil {
		t.next()
		return nil, err
	}
	return sync.OnceFunc(func() { leave(); t.next() }), nil
}

// wait waits for those of this pool.
func (t *turn) wait(ctx context.Context) error {
	t.mu.Lock()
	if !t.taken {
		t.taken = true
		t.mu.Unlock()
		return nil
	}
	mine := make(chan struct{})
	t.waiting = append(t.waiting, mine)
	t.mu.Unlock()
	patience := time.NewTimer(t.patience)
	defer patience.Stop()
	var err error
	select {
	case <-mine:
		return nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-patience.C:
		err = fmt.Errorf("sqlite: begin: after %v %w: one of this process", t.patience, errTurn)
	}
	t.mu.Lock()
	n := slices.Index(t.waiting, mine)
	if n >= 0 {
		t.waiting = slices.Delete(t.waiting, n, n+1)
	}
	t.mu.Unlock()
	if n < 0 { // it came meanwhile
		t.next()
	}
	return err
}

func (t *turn) next() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting) == 0 {
		t.taken = false
		return
	}
	close(t.waiting[0])
	t.waiting = t.waiting[1:]
}

// between is the turn between processes: two locks on files beside the database.
// Whoever writes has the second. Whoever waits for it has the first, so that the
// one that wrote last, which needs the first again, cannot come before it. Both
// end with their process. They make waiting short and just, no more: what keeps
// writers apart is SQLite's own lock, and whoever does not know of these files
// waits for that one.
type between struct {
	queue, writer *fileLock
	bypass        time.Time // until then the first is left out; only whoever has the turn of the pool reads it
}

const (
	// lookAgain is the pause between two looks at a lock.
	lookAgain = 300 * time.Microsecond
	// queuePatience is how long the first lock is waited for. A process that was
	// stopped with it would hold all others back.
	queuePatience = time.Second
	bypassTime    = 10 * time.Second
)

func (b *between) enter(ctx context.Context, patience time.Duration) (leave func(), err error) {
	if time.Now().After(b.bypass) {
		switch had, err := b.queue.lock(ctx, queuePatience); {
		case err != nil:
			return nil, err
		case had:
			defer b.queue.unlock()
		default:
			b.bypass = time.Now().Add(bypassTime)
		}
	}
	had, err := b.writer.lock(ctx, patience)
	if err != nil {
		return nil, err
	}
	if !had {
		return nil, fmt.Errorf("sqlite: begin: after %v %w: one of another process", patience, errTurn)
	}
	return b.writer.unlock, nil
}

// lock looks until it has the lock, or until patience or ctx end. Where files
// cannot be locked it is had at once.
func (l *fileLock) lock(ctx context.Context, patience time.Duration) (had bool, err error) {
	var began time.Time
	var again *time.Timer
	for {
		had, err := l.try()
		if had || err != nil {
			return had, err
		}
		if again == nil {
			began, again = time.Now(), time.NewTimer(lookAgain)
			defer again.Stop()
		} else {
			again.Reset(lookAgain)
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-again.C:
		}
		if time.Since(began) > patience {
			return false, nil
		}
	}
}
