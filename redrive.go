package tidings

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// A retry of a dead letter is a mark in a store. The engine of its subscription
// looks for marks, takes what it may run, and puts each letter at the end of its
// lane, as an item among the others: so it is never beside another event of its
// aggregate. On a driver with sources only the instance that owns the aggregate's
// source takes it. Until it is handled the store has it as marked and leased.

const (
	// redriveInterval is how often the store is asked for marks while there are
	// none, changed by chance by up to a quarter.
	redriveInterval = 2 * time.Second
	// redriveLonger is the interval at most while the store does not answer.
	redriveLonger = time.Minute
	// redriveInHand bounds the letters that one subscription has in hand.
	redriveInHand = 128
	// redriveLease is how long a letter is ours unless that is renewed: how long
	// one waits whose process has died.
	redriveLease = time.Minute
	// redriveAnswer bounds how long the store may take to answer.
	redriveAnswer = 30 * time.Second
)

// redriven is what an item has besides that was a dead letter.
type redriven struct {
	driver.StoredDeadLetter
	announced bool // that it failed again
	settled   bool // it is resolved, dead again, or to be looked at later
}

// retries is a subscription's state of the letters that are tried again. Guarded by
// the subscription's lock.
type retries struct {
	inHand   map[string]*item     // by key
	later    map[string]time.Time // letters that this release cannot read: when to look again
	back     []string             // keys whose leases are to be ended
	handing  bool                 // somebody ends them
	full     bool                 // the last take brought as many as it asked for
	extended time.Time            // when the leases were last renewed
}

// marks is the store where letters are marked, or nil.
func (b *Bus) marks() driver.DeadLetterStore {
	if b.options.CollectedDeadLetters != nil {
		return b.options.CollectedDeadLetters
	}
	if store, ok := b.options.DeadLetters.(driver.DeadLetterStore); ok {
		return store
	}
	if b.options.DeadLetters != nil {
		return nil
	}
	if keeper, ok := b.driver.(driver.DeadLetterKeeper); ok {
		return keeper.DeadLetterStore()
	}
	return nil
}

// redrive looks for marks until ctx ends.
func (b *Bus) redrive(ctx context.Context) {
	failures := 0
	for {
		wait := redriveInterval
		if failures > 0 {
			wait = min(redriveInterval<<min(failures, 10), redriveLonger)
		}
		wait += time.Duration((rand.Float64() - 0.5) / 2 * float64(wait))
		b.rest(ctx, wait)
		if ctx.Err() != nil {
			return
		}
		if err := b.redriveOnce(ctx); err == nil {
			failures = 0
		} else if ctx.Err() == nil {
			failures++
			b.observers.observe(b.values, Observation{Kind: StoreFailed, Wait: wait, Err: fmt.Errorf("dead letters to retry: %w", err)})
		}
	}
}

// rest waits, or until a subscription has room for more letters, or until ctx ends.
func (b *Bus) rest(ctx context.Context, d time.Duration) {
	waking, wake := context.WithCancel(ctx)
	timer := b.clock.AfterFunc(d, wake)
	defer timer.Stop()
	defer wake()
	select {
	case <-b.redriveMore:
	case <-waking.Done():
	}
}

func (b *Bus) redriveOnce(ctx context.Context) error {
	asking, cancel := context.WithTimeout(ctx, redriveAnswer)
	defer cancel()
	for _, s := range b.subscriptions {
		if err := s.renewLetters(asking); err != nil {
			return err
		}
	}
	marked, err := b.letters.MarkedDeadLetters(asking)
	if err != nil {
		return err
	}
	for _, s := range b.subscriptions {
		if slices.Contains(marked, s.name) {
			if err := s.takeLetters(asking); err != nil {
				return err
			}
		}
	}
	return nil
}

// renewLetters keeps the leases of what is in hand.
func (s *subscription) renewLetters(ctx context.Context) error {
	s.mu.Lock()
	now := s.bus.clock.Now()
	if len(s.retries.inHand) == 0 || now.Sub(s.retries.extended) < redriveLease/3 {
		s.mu.Unlock()
		return nil
	}
	s.retries.extended = now
	keys := make([]string, 0, len(s.retries.inHand))
	for key := range s.retries.inHand {
		keys = append(keys, key)
	}
	s.mu.Unlock()
	return s.bus.letters.LeaseDeadLetters(ctx, s.name, keys, redriveLease)
}

// takeLetters takes marked letters, as many as there is room for.
func (s *subscription) takeLetters(ctx context.Context) error {
	select {
	case <-s.joined:
	default:
		return nil
	}
	s.mu.Lock()
	now := s.bus.clock.Now()
	room := redriveInHand - len(s.retries.inHand)
	if s.stopping || s.halted {
		room = 0
	}
	if len(s.retries.inHand) == 0 {
		s.retries.extended = now
	}
	for key, at := range s.retries.later {
		if !at.After(now) {
			delete(s.retries.later, key)
		}
	}
	s.mu.Unlock()
	if room == 0 {
		return nil
	}
	letters, err := s.bus.letters.TakeDeadLetters(ctx, s.name, s.ownsLetter, room, redriveLease)
	if err != nil && len(letters) == 0 {
		return err
	}
	items := make([]*item, len(letters))
	for n := range letters {
		items[n] = s.retryItem(&letters[n])
		items[n].source = &s.unowned // for the observation
		items[n].observe(s.bus.values, Redriven, func(o *Observation) { o.Reason = letters[n].Reason })
	}
	places := make([]*source, len(letters))
	for n := range letters {
		places[n], _ = s.placeOf(&letters[n])
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retries.full = len(letters) == room
	for n, i := range items {
		s.enqueueLetter(i, places[n])
	}
	s.dispatch()
	return err
}

// ownsLetter reports whether this process may run a letter now. A store calls it.
func (s *subscription) ownsLetter(l *driver.StoredDeadLetter) bool {
	_, ours := s.placeOf(l)
	if !ours {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.retries.inHand[l.Key] != nil || !s.retries.later[l.Key].IsZero() {
		return false
	}
	// Behind parked events it would only be parked; it waits in its own store.
	lane := s.lanes[driver.Lane{Channel: l.Channel, Key: l.AggregateID}]
	return lane == nil || !lane.parked
}

// placeOf returns the source that a letter belongs to, and whether that is this
// process's. The lock is not held: the consumer may need one of its own.
func (s *subscription) placeOf(l *driver.StoredDeadLetter) (o *source, ours bool) {
	name := ""
	if locator, ok := s.consumer.(driver.Locator); ok && s.bus.features.Sources {
		name = locator.SourceOf(l.Channel, l.AggregateID, l.Position)
	}
	if name == "" {
		return &s.unowned, true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	o = s.sources[name]
	if o == nil || o.given || o.lost || s.store != nil && !o.owned {
		return nil, false
	}
	return o, true
}

// retryItem makes an item of a letter.
func (s *subscription) retryItem(l *driver.StoredDeadLetter) *item {
	d := driver.Delivery{
		Message: driver.Message{Channel: l.Channel, Type: l.Type, Key: l.AggregateID, ID: l.ID, Headers: l.Headers, Body: l.Body, Size: len(l.Body)},
		Ref:     storedRef(l.Position),
	}
	if e, ok := l.Value.(DomainEvent); ok {
		d.Value = e.record()
	}
	i := s.newItem(&d)
	if i.wire != nil && i.stage != stageDead && l.ID != "" && l.Reason != "undecodable" {
		i.id = l.ID // an event without an id of its own was given one, which it keeps
	}
	i.stored, i.letter, i.anew = true, &redriven{StoredDeadLetter: *l}, !l.Interrupted
	return i
}

// enqueueLetter puts a letter at the end of its lane. The caller holds the lock.
func (s *subscription) enqueueLetter(i *item, place *source) {
	if s.retries.inHand == nil {
		s.retries.inHand = make(map[string]*item)
	}
	s.retries.inHand[i.letter.Key] = i
	i.source = place
	key := i.laneKey()
	l := s.lanes[key]
	if place == nil || place.given || s.stopping || s.halted || l != nil && l.parked {
		s.endLetter(i)
		return
	}
	s.bus.enqueued.Add(1)
	if l == nil {
		l = s.newLane(key)
	}
	l.push(i)
	if l.state == laneIdle {
		s.makeReady(l)
	}
}

// endLetter lets a letter go that has left its lane. One with which nothing was
// decided is given back to the store, marked as it was. The caller holds the lock.
func (s *subscription) endLetter(i *item) {
	r := &s.retries
	if r.inHand[i.letter.Key] != i {
		return
	}
	s.endTurn(i)
	delete(r.inHand, i.letter.Key)
	if r.full && len(r.inHand) <= redriveInHand/2 {
		r.full = false
		select {
		case s.bus.redriveMore <- struct{}{}:
		default:
		}
	}
	if i.letter.settled {
		return
	}
	r.back = append(r.back, i.letter.Key)
	if !r.handing {
		r.handing = true
		s.workers.Go(s.handLettersBack)
	}
}

// endLetters is endLetter for what was taken out of a lane.
func (s *subscription) endLetters(items []*item) {
	for _, i := range items {
		if i.letter != nil {
			s.endLetter(i)
		}
	}
}

// handLettersBack ends leases. Where that fails they end by themselves.
func (s *subscription) handLettersBack() {
	for {
		s.mu.Lock()
		keys := s.retries.back
		s.retries.back = nil
		if len(keys) == 0 {
			s.retries.handing = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		if err := s.bus.letters.LeaseDeadLetters(s.bus.storing, s.name, keys, 0); err != nil {
			s.observe(Observation{Kind: StoreFailed, Count: len(keys), Err: fmt.Errorf("give dead letters back: %w", err)})
		}
	}
}

// processLetter is process for a letter that is tried again.
func (s *subscription) processLetter(i *item) verdict {
	switch i.stage {
	case stageIgnored:
		i.reason, i.failure = "unhandled", errors.New("tidings: the subscription has no reaction to this type")
		return s.buryAgain(i)
	case stageDead, stageAnnounce:
		return s.buryAgain(i)
	case stageHeld:
		return s.shelveLetter(i)
	case stageResolve:
		return s.resolveLetter(i)
	}
	v := s.processEvent(i, nil)
	if v.done && !i.letter.settled {
		return s.resolveLetter(i)
	}
	return v
}

// resolveLetter says in the store that the letter is handled, which comes only
// after it was; while that fails the lane holds.
func (s *subscription) resolveLetter(i *item) verdict {
	i.stage = stageResolve
	err := s.bus.letters.ResolveDeadLetter(s.bus.storing, s.name, i.letter.Key)
	if err != nil && !errors.Is(err, driver.ErrNoDeadLetter) {
		return s.storeFailed(i, fmt.Errorf("resolve the dead letter: %w", err))
	}
	i.letter.settled = true
	i.observe(s.bus.values, Resolved, nil)
	return verdict{done: true}
}

// buryAgain puts a letter back that failed again. It is announced first: whatever
// happens in between, the mark is there and the same comes of it again.
func (s *subscription) buryAgain(i *item) verdict {
	if !i.letter.announced {
		if v := s.announce(i); !v.done {
			return v
		}
		i.letter.announced = true
	}
	i.stage = stageDead
	now := s.bus.clock.Now()
	if !now.After(i.letter.FailedAt) { // by another instance's clock
		now = i.letter.FailedAt.Add(time.Millisecond)
	}
	letter := i.deadLetter(now)
	letter.Type, letter.ID, letter.AggregateID = i.letter.Type, i.letter.ID, i.letter.AggregateID // it stays the same letter
	if err := s.bus.letters.PutDeadLetter(s.bus.storing, letter); err != nil {
		return s.storeFailed(i, fmt.Errorf("dead letter: %w", err))
	}
	i.letter.settled = true
	i.observe(s.bus.values, DeadLettered, func(o *Observation) {
		o.Attempt, o.Reason, o.Err = i.attempts, i.reason, i.failure
	})
	s.releaseClaim(i)
	return verdict{done: true}
}

// shelveLetter leaves a letter in the store, marked, that this release cannot read:
// an instance with a newer one takes it.
func (s *subscription) shelveLetter(i *item) verdict {
	i.failure = i.whyHeld()
	i.observe(s.bus.values, Held, func(o *Observation) { o.Reason, o.Err, o.Wait = i.reason, i.failure, heldAlarm })
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.retries.later == nil {
		s.retries.later = make(map[string]time.Time)
	}
	s.retries.later[i.letter.Key] = s.bus.clock.Now().Add(heldAlarm)
	return verdict{done: true}
}
