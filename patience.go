package tidings

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/internal/outage"
)

// A store may be behind a connection that died without a word. What the engine asks
// of one that is not in this process ends after Options.StoreTimeout, which counts
// as a failure: the lane holds and the store is asked again.

// storeOutageAfter is how long a store fails until the subscriptions count as not
// ready, and storeForgotten how long after its last failure it still does when
// nobody has asked it since.
const (
	storeOutageAfter = time.Second
	storeForgotten   = time.Minute
)

// storeWatch is what a bus knows of its stores' answers. It is the sink of an
// outage: what is told there is told to the observers, once for each change.
type storeWatch struct {
	driver.Sink // nil: an outage only reports
	bus         *Bus
	timeout     time.Duration
	outage      *outage.Outage
	down        atomic.Pointer[time.Time] // since when
	failed      atomic.Int64              // when a call failed last, in nanoseconds
	inbox       atomic.Bool               // transactions of handlers fail
	probed      []probed                  // set before anything runs
}

func newStoreWatch(b *Bus) *storeWatch {
	w := &storeWatch{bus: b, timeout: b.options.StoreTimeout}
	w.outage = outage.New(w, storeOutageAfter, "a store does not answer: what needs it waits")
	w.outage.Patience(max(storeOutageAfter, w.timeout/2))
	return w
}

// Report implements [driver.Sink].
func (w *storeWatch) Report(r driver.Report) {
	if r.Kind == driver.ReportOutage {
		since := time.Now().Add(-w.outage.Told()) // the first question that had no answer
		w.down.Store(&since)
	} else {
		w.down.Store(nil)
	}
	w.bus.observers.observe(w.bus.values, Observation{Kind: Reported, Report: r, Err: r.Err})
}

// since is for how long the stores have not answered, or 0.
func (w *storeWatch) since() time.Duration {
	down := w.down.Load()
	if down == nil {
		return 0
	}
	if len(w.probed) == 0 && w.outage.UnderWay() == 0 && time.Since(time.Unix(0, w.failed.Load())) > storeForgotten {
		return 0
	}
	return max(time.Since(*down), 1)
}

// ask calls a store, with an end.
func (w *storeWatch) ask(ctx context.Context, concern string, call func(ctx context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	end := w.outage.Ask(concern)
	err := call(limited)
	switch {
	case ctx.Err() != nil:
		end(context.Canceled)
	case err != nil && (limited.Err() != nil || unreached(err)):
		w.failed.Store(time.Now().UnixNano())
		end(err)
	default:
		end(nil) // an answer, be it no
	}
	return err
}

// unreached reports that an error is of a connection that was not made or has broken,
// and so no answer of a store.
func unreached(err error) bool {
	_, network := errors.AsType[net.Error](err)
	return network || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// handler is told what a handler with a transaction of its own met.
func (w *storeWatch) handler(unavailable error) {
	switch {
	case unavailable != nil:
		w.failed.Store(time.Now().UnixNano())
		w.inbox.Store(true)
		w.outage.FailedAt("inbox", unavailable)
	case w.inbox.Swap(false):
		w.outage.AnsweredAt("inbox")
	}
}

type watchedClaims struct {
	driver.Claims
	watch *storeWatch
}

func (c watchedClaims) Claim(ctx context.Context, r driver.ClaimRequest) (answer driver.ClaimAnswer, err error) {
	err = c.watch.ask(ctx, "claims", func(ctx context.Context) error {
		answer, err = c.Claims.Claim(ctx, r)
		return err
	})
	return answer, err
}

func (c watchedClaims) Finish(ctx context.Context, r driver.ClaimRequest) error {
	return c.watch.ask(ctx, "claims", func(ctx context.Context) error { return c.Claims.Finish(ctx, r) })
}

func (c watchedClaims) Release(ctx context.Context, r driver.ClaimRequest) error {
	return c.watch.ask(ctx, "claims", func(ctx context.Context) error { return c.Claims.Release(ctx, r) })
}

type watchedEpochs struct {
	driver.ClaimEpochs
	watch *storeWatch
}

func (e watchedEpochs) AdvanceClaims(ctx context.Context, subscription, source string) (epoch int64, err error) {
	err = e.watch.ask(ctx, "claims", func(ctx context.Context) error {
		epoch, err = e.ClaimEpochs.AdvanceClaims(ctx, subscription, source)
		return err
	})
	return epoch, err
}

type watchedLanes struct {
	driver.Lanes
	watch *storeWatch
}

func (l watchedLanes) Own(ctx context.Context, subscription, source string) (o driver.Ownership, lanes []driver.Lane, err error) {
	err = l.watch.ask(ctx, "lanes", func(ctx context.Context) error {
		o, lanes, err = l.Lanes.Own(ctx, subscription, source)
		return err
	})
	return o, lanes, err
}

func (l watchedLanes) Park(ctx context.Context, owner driver.Ownership, events []driver.Parked) error {
	return l.watch.ask(ctx, "lanes", func(ctx context.Context) error { return l.Lanes.Park(ctx, owner, events) })
}

func (l watchedLanes) Head(ctx context.Context, owner driver.Ownership, lane driver.Lane) (head driver.Parked, found bool, err error) {
	err = l.watch.ask(ctx, "lanes", func(ctx context.Context) error {
		head, found, err = l.Lanes.Head(ctx, owner, lane)
		return err
	})
	return head, found, err
}

func (l watchedLanes) Record(ctx context.Context, owner driver.Ownership, lane driver.Lane, id string, attempts int, reason, failure string) error {
	return l.watch.ask(ctx, "lanes", func(ctx context.Context) error {
		return l.Lanes.Record(ctx, owner, lane, id, attempts, reason, failure)
	})
}

func (l watchedLanes) Remove(ctx context.Context, owner driver.Ownership, lane driver.Lane, id string) (more bool, err error) {
	err = l.watch.ask(ctx, "lanes", func(ctx context.Context) error {
		more, err = l.Lanes.Remove(ctx, owner, lane, id)
		return err
	})
	return more, err
}

func (l watchedLanes) Orders(ctx context.Context, owner driver.Ownership) (orders []driver.LaneOrder, err error) {
	err = l.watch.ask(ctx, "lanes", func(ctx context.Context) error {
		orders, err = l.Lanes.Orders(ctx, owner)
		return err
	})
	return orders, err
}

type watchedDead struct {
	driver.DeadLetters
	watch *storeWatch
}

func (d watchedDead) PutDeadLetter(ctx context.Context, letter driver.DeadLetter) error {
	return d.watch.ask(ctx, "dead letters", func(ctx context.Context) error { return d.DeadLetters.PutDeadLetter(ctx, letter) })
}

type watchedLetters struct {
	driver.DeadLetterStore
	watch *storeWatch
}

func (l watchedLetters) PutDeadLetter(ctx context.Context, letter driver.DeadLetter) error {
	return l.watch.ask(ctx, "dead letters", func(ctx context.Context) error { return l.DeadLetterStore.PutDeadLetter(ctx, letter) })
}

func (l watchedLetters) MarkedDeadLetters(ctx context.Context) (subscriptions []string, err error) {
	err = l.watch.ask(ctx, "dead letters", func(ctx context.Context) error {
		subscriptions, err = l.DeadLetterStore.MarkedDeadLetters(ctx)
		return err
	})
	return subscriptions, err
}

func (l watchedLetters) TakeDeadLetters(ctx context.Context, subscription string, owns func(*driver.StoredDeadLetter) bool, limit int, lease time.Duration) (letters []driver.StoredDeadLetter, err error) {
	err = l.watch.ask(ctx, "dead letters", func(ctx context.Context) error {
		letters, err = l.DeadLetterStore.TakeDeadLetters(ctx, subscription, owns, limit, lease)
		return err
	})
	return letters, err
}

func (l watchedLetters) LeaseDeadLetters(ctx context.Context, subscription string, keys []string, lease time.Duration) error {
	return l.watch.ask(ctx, "dead letters", func(ctx context.Context) error {
		return l.DeadLetterStore.LeaseDeadLetters(ctx, subscription, keys, lease)
	})
}

func (l watchedLetters) ResolveDeadLetter(ctx context.Context, subscription, key string) error {
	return l.watch.ask(ctx, "dead letters", func(ctx context.Context) error { return l.DeadLetterStore.ResolveDeadLetter(ctx, subscription, key) })
}

// Each of these leaves a store of this process as it is: there is nothing to wait
// for, and nothing to be paid.

func (w *storeWatch) claims(c driver.Claims) driver.Claims {
	if c == nil || !c.Durable() {
		return c
	}
	return watchedClaims{c, w}
}

func (w *storeWatch) epochs(c driver.Claims) driver.ClaimEpochs {
	if e, ok := c.(driver.ClaimEpochs); ok {
		return watchedEpochs{e, w}
	}
	return nil
}

func (w *storeWatch) lanes(l driver.Lanes) driver.Lanes {
	if l == nil || !l.Durable() {
		return l
	}
	return watchedLanes{l, w}
}

func (w *storeWatch) dead(d driver.DeadLetters) driver.DeadLetters {
	if store, ok := d.(interface{ Durable() bool }); d == nil || ok && !store.Durable() || !ok && !w.bus.features.Durable {
		return d
	}
	return watchedDead{d, w}
}

func (w *storeWatch) letters(l driver.DeadLetterStore) driver.DeadLetterStore {
	if l == nil || !l.Durable() {
		return l
	}
	return watchedLetters{l, w}
}
