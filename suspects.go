package tidings

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// What was in hand when a process died is a suspect: one of them may have ended it,
// and the others only stood by. So suspects are started one at a time in the whole
// process, whatever their subscriptions, those with the fewest deaths first; one
// that was in hand at two deaths or more is started alone: when nothing else runs,
// and nothing else is started until it has returned. Only deaths while it ran alone
// count against it in the end. A suspect whose handler returns, with or without an
// error, is none any more.
//
// Starts are counted in a store that outlives the process: by the claim that is made
// for each event, or for a reaction with a claim of its own by [Starts].

const (
	// besideOthers is how many deaths an event may have been in hand at and still
	// runs beside what is no suspect.
	besideOthers = 1
	// aloneAtMost bounds how long all other handlers wait: for what runs to return
	// before a suspect is started alone, and for one without a timeout to return.
	aloneAtMost = time.Minute
	// turnUnused is after how long a turn goes to the next one when its lane did not
	// begin: it may have to wait for something else.
	turnUnused = 10 * time.Second
	// standingBack is how long a lane waits that is woken by a turn.
	standingBack = time.Hour
	// suspectNow is the wait of a lane whose head has just been found to be a
	// suspect.
	suspectNow = time.Millisecond
)

// suspicion is what an item has besides that was started before and never finished.
// It belongs to whoever runs the lane.
type suspicion struct {
	crashes int
	// counting is how a start counts, while it is the item's turn.
	counting driver.Counting
}

// suspects gives those of a bus their turns. Its lock comes after those of
// subscriptions.
type suspects struct {
	// alone is what runs, or is about to, while nothing else does.
	alone atomic.Pointer[item]

	mu      sync.Mutex
	waiting []*turn
	current *turn
	turning bool // somebody gives turns
	giving  sync.WaitGroup
}

// turn is one start of a suspect.
type turn struct {
	item     *item
	crashes  int
	counting driver.Counting
	given    bool
	begun    chan struct{}
	over     chan struct{}
}

// standBack lets the head of a lane start, or returns how long the lane waits: a
// suspect for its turn, another while a suspect runs alone. The caller holds the
// subscription's lock; i is nil where the head is not known yet.
func (s *subscription) standBack(l *lane, i *item) (wait time.Duration) {
	u := &s.bus.suspects
	if i != nil && i.stage != stageHandle {
		return 0
	}
	if i != nil && i.suspicion != nil {
		if u.begin(i) {
			return 0
		}
		if u.enqueue(i) {
			u.giving.Go(s.bus.giveTurns)
		}
		return standingBack
	}
	if u.alone.Load() == nil {
		return 0
	}
	l.standsBack = true
	return standingBack
}

// begin reports whether it is the item's turn, which has begun then.
func (u *suspects) begin(i *item) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	t := u.current
	if t == nil || t.item != i || !t.given {
		return false
	}
	select {
	case <-t.begun:
	default:
		close(t.begun)
	}
	i.suspicion.counting = t.counting
	return true
}

// enqueue makes a suspect wait for its turn. It reports whether somebody has to
// begin to give turns.
func (u *suspects) enqueue(i *item) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.current != nil && u.current.item == i || slices.ContainsFunc(u.waiting, func(t *turn) bool { return t.item == i }) {
		return false
	}
	u.waiting = append(u.waiting, &turn{item: i, crashes: i.suspicion.crashes, begun: make(chan struct{}), over: make(chan struct{})})
	begins := !u.turning
	u.turning = true
	return begins
}

// end says that an item does not run any more, or is gone.
func (u *suspects) end(i *item) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if t := u.current; t != nil && t.item == i {
		u.current = nil
		close(t.over)
		return
	}
	u.waiting = slices.DeleteFunc(u.waiting, func(t *turn) bool { return t.item == i })
}

// next takes the suspect with the fewest deaths, or returns nil when none waits.
func (u *suspects) next() *turn {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.waiting) == 0 {
		u.turning = false
		return nil
	}
	t := slices.MinFunc(u.waiting, func(a, b *turn) int { return cmp.Compare(a.crashes, b.crashes) })
	u.waiting = slices.DeleteFunc(u.waiting, func(other *turn) bool { return other == t })
	u.current = t
	return t
}

// give lets the turn begin.
func (u *suspects) give(t *turn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	t.given = true
}

// withdraw ends a turn that was not used in time.
func (u *suspects) withdraw(t *turn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.current == t {
		u.current = nil
	}
}

// of is how many suspects of a subscription wait or have their turn.
func (u *suspects) of(s *subscription) (n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.current != nil && u.current.item.subscription == s {
		n++
	}
	for _, t := range u.waiting {
		if t.item.subscription == s {
			n++
		}
	}
	return n
}

// giveTurns gives turns until no suspect waits.
func (b *Bus) giveTurns() {
	for t := b.suspects.next(); t != nil; t = b.suspects.next() {
		b.giveTurn(t)
		b.suspects.withdraw(t)
		if b.suspects.alone.CompareAndSwap(t.item, nil) {
			b.goOn()
		}
	}
}

// giveTurn lets one suspect run and returns when it has returned.
func (b *Bus) giveTurn(t *turn) {
	s := t.item.subscription
	t.counting = driver.CountBeside
	if t.crashes > besideOthers {
		b.suspects.alone.Store(t.item)
		if b.awaitQuiet(t) {
			t.counting = driver.CountAlone
		} else if b.suspects.alone.CompareAndSwap(t.item, nil) {
			b.goOn()
		}
	}
	b.suspects.give(t)
	s.mu.Lock()
	if l := t.item.lane; l != nil && l.state == laneWaiting {
		s.makeReady(l)
		s.dispatch()
	}
	s.mu.Unlock()
	if !b.comes(t.begun, t, turnUnused) {
		return
	}
	most := aloneAtMost
	if s.options.Timeout > 0 {
		most = s.options.Timeout + overdueGrace
	}
	b.comes(t.over, t, most)
}

// awaitQuiet waits until nothing runs, which is not started while a suspect is to
// run alone. It reports whether that is so.
func (b *Bus) awaitQuiet(t *turn) bool {
	ctx, cancel := context.WithCancel(b.storing)
	defer cancel()
	timer := b.clock.AfterFunc(aloneAtMost, cancel)
	defer timer.Stop()
	for _, s := range b.subscriptions {
		s.mu.Lock()
		if s.running != nil && s.quiet == nil {
			s.quiet = make(chan struct{})
		}
		quiet := s.quiet
		s.mu.Unlock()
		if quiet == nil {
			continue
		}
		select {
		case <-quiet:
		case <-t.over:
			return false
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// comes waits for an event of a turn, or its end, at most for a time. It reports
// whether one came.
func (b *Bus) comes(event <-chan struct{}, t *turn, most time.Duration) bool {
	ctx, cancel := context.WithCancel(b.storing)
	defer cancel()
	timer := b.clock.AfterFunc(most, cancel)
	defer timer.Stop()
	select {
	case <-event:
	case <-t.over:
	case <-ctx.Done():
		return false
	}
	return true
}

// goOn wakes the lanes that stood back for a suspect that ran alone.
func (b *Bus) goOn() {
	for _, s := range b.subscriptions {
		s.mu.Lock()
		for _, l := range s.lanes {
			if l.standsBack && l.state == laneWaiting {
				s.makeReady(l)
			}
			l.standsBack = false
		}
		s.dispatch()
		s.mu.Unlock()
	}
}

// checkQuiet tells a suspect that waits to run alone when nothing runs here any
// more. The caller holds the lock.
func (s *subscription) checkQuiet() {
	if s.quiet != nil && s.running == nil {
		close(s.quiet)
		s.quiet = nil
	}
}

// endTurn ends the turn of an item that does not run any more.
func (s *subscription) endTurn(i *item) {
	if i.suspected {
		s.bus.suspects.end(i)
	}
}

// counting is what the start of an item counts as.
func (i *item) counting() driver.Counting {
	if i.suspicion == nil {
		return driver.CountFirst
	}
	return i.suspicion.counting
}

// count counts the start of a reaction that claims for itself, when the event may
// have been started before; false means that the verdict stands. It comes right
// before the handler is called.
func (s *subscription) count(i *item) (verdict, bool) {
	starts := i.reaction.starts
	if starts == nil {
		return verdict{}, true
	}
	if i.anew {
		if v, forgotten := s.forgetStarts(i); !forgotten {
			return v, false
		}
		i.anew = false
	}
	if !i.convicted && i.suspicion == nil && !i.redelivered() {
		return verdict{}, true
	}
	var crashes, alone int
	err := s.bus.stores.ask(s.bus.storing, "starts", func(ctx context.Context) (err error) {
		crashes, alone, err = starts.Start(ctx, s.name, i.dedupKey(), i.counting())
		return err
	})
	if err != nil {
		return s.storeFailed(i, fmt.Errorf("count the start: %w", err)), false
	}
	i.counted = crashes == 0 || i.counting() != driver.CountFirst
	return s.weigh(i, crashes, alone)
}

// weigh decides whether an event is started of which it is known how often it was
// before and never finished; false means that the verdict stands.
func (s *subscription) weigh(i *item, crashes, alone int) (verdict, bool) {
	if i.counting() != driver.CountFirst || crashes == 0 && !i.convicted {
		i.anew = false
		return verdict{}, true // this start is counted
	}
	if i.anew { // an operator wants it to be tried
		if v, forgotten := s.forgetStarts(i); !forgotten {
			return v, false
		}
		i.anew = false
		return verdict{wait: suspectNow}, false
	}
	most := s.options.MaxCrashes
	if i.convicted {
		most = 1
	}
	// Who blocks goes on trying, after a wait.
	if alone >= most && (s.options.OnExhausted != Block || i.attempts == 0) {
		return s.condemn(i, crashes, alone), false
	}
	if i.counted { // a parked one that was given up before: it is to run alone from the first time
		if v, forgotten := s.forgetStarts(i); !forgotten {
			return v, false
		}
	}
	if !i.suspected {
		i.observe(s.bus.values, Suspected, func(o *Observation) { o.Count = crashes })
	}
	i.suspected, i.suspicion = true, &suspicion{crashes: crashes}
	if i.convicted {
		i.suspicion.crashes = max(crashes, besideOthers+1)
	}
	s.releaseClaim(i)
	return verdict{wait: suspectNow}, false
}

// condemn gives an event up that ends the process: the policy decides what becomes
// of it. What is counted stays until the broker knows, so that it comes to the same
// end if it is delivered again; when it is parked it begins anew.
func (s *subscription) condemn(i *item, crashes, alone int) verdict {
	failed := take(fmt.Errorf("%w: it was started %d times and never finished, %d of them while the process handled nothing else", ErrCrashed, crashes, alone))
	i.suspected, i.suspicion = true, &suspicion{crashes: crashes}
	o := s.decide(i, endCrashed, failed)
	if o.act == actRetry && i.standing() == parkedHead {
		if v, forgotten := s.forgetStarts(i); !forgotten {
			return v
		}
		i.suspicion, i.convicted = nil, true
	}
	v := s.carryOut(i, o, failed, i.attempts+1, 0)
	if v.done && i.stage == stagePark {
		_, _ = s.forgetStarts(i) // else the parked event is given up once more, and then begins anew
	}
	return v
}

// reasonToStay is why a parked event stays parked after an attempt, "" for the reason
// that it had.
func (i *item) reasonToStay(had string) string {
	failed, _ := i.failure.(*failure) //nolint:errorlint // what it wraps is the application's
	switch {
	case failed != nil && failed.has(ErrCrashed):
		return reasonCrashed
	case i.failure != nil && had == reasonCrashed:
		return reasonExhausted // it returned
	}
	return ""
}

// forgetStarts makes what is counted against an event begin anew; false means that
// the verdict stands.
func (s *subscription) forgetStarts(i *item) (verdict, bool) {
	var err error
	if starts := i.reaction.starts; starts != nil {
		err = s.bus.stores.ask(s.bus.storing, "starts", func(ctx context.Context) error { return starts.End(ctx, s.name, i.dedupKey()) })
	} else if s.claims != nil && !i.reaction.ownClaim {
		err = s.claims.Release(s.bus.storing, i.claimRequest())
	}
	if err != nil {
		return s.storeFailed(i, fmt.Errorf("begin to count its starts anew: %w", err)), false
	}
	i.claimed, i.counted = false, false
	return verdict{}, true
}

// survivedTime bounds how long a store may take to hear that a handler has returned.
const survivedTime = 10 * time.Second

// run calls the handler. That it returned, in whatever way, says that the event does
// not end the process.
func (s *subscription) run(i *item, t *tree) *failure {
	defer func() {
		i.suspicion = nil
		if !i.counted {
			return
		}
		i.counted = false
		ctx, cancel := context.WithTimeout(s.bus.values, survivedTime)
		defer cancel()
		_ = i.reaction.starts.End(ctx, s.name, i.dedupKey()) // else it counts once too often
	}()
	return s.call(i, t)
}
