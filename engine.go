package tidings

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// subscription is the engine of one subscription: it takes what its consumer
// delivers, keeps each lane in order, calls handlers and settles.
//
// There is one lock, mu. It is never held while a handler, a store, an
// observer or the driver is called. A driver may call Deliver with a lock of
// its own held; so its Settle is called without mu.
type subscription struct {
	bus       *Bus
	name      string
	place     string
	options   SubscribeOptions
	former    []string // whole names that it had before
	channels  []string
	types     []string
	reactions map[string]*Reaction
	only      *Reaction // where there is just one

	consumer driver.Consumer
	claims   driver.Claims // nil: no dedup
	epochs   driver.ClaimEpochs
	store    driver.Lanes // nil: nothing can be parked
	dead     driver.DeadLetters
	joined   chan struct{}
	joinOnce sync.Once
	failed   chan struct{} // closed when the consumer has stopped for good
	failure  error         // set before failed is closed

	workers sync.WaitGroup

	mu       sync.Mutex
	lanes    map[driver.Lane]*lane
	ready    laneQueue
	busy     int    // slots in use
	waiting  int    // lanes that wait
	spare    *lane  // the last one that ended, for the next that begins
	unowned  source // of a driver without ownership
	sources  map[string]*source
	running  *item // the list of items that are processed now
	watch    Timer
	ordering Timer // looks for what operators want
	stopping bool  // start nothing that the broker would give again
	halted   bool  // start nothing at all
	idle     chan struct{}
	quiet    chan struct{} // a suspect waits until nothing runs
	settler  settler
	vitals   vitals
	declared declarations
	retries  retries
	guard    guard
	failing  atomic.Bool    // the guard has failures to remember
	nextTurn time.Time      // when MaxRate lets the next attempt begin
	attempts map[string]int // of events that were given back to the broker
}

// source is one ownership of a partition or shard. Guarded by the
// subscription's lock.
type source struct {
	name     string
	epoch    int64
	given    bool // revoked or lost: start nothing more of it
	lost     bool // settle nothing more of it
	running  int
	unsettle int // finished, and not yet settled
	idle     chan struct{}

	// parking is the ownership of its parked events; until owned says that it is
	// known which lanes those are, nothing of the source is started.
	parking driver.Ownership
	owning  bool
	owned   bool

	since   time.Time  // when this process was given it
	fencing sync.Mutex // guards fences and claims, while a store is asked
	fences  map[any]int64
	claims  int64 // the epoch of claims; 0: not known yet
}

// Deliver implements [driver.Sink].
func (s *subscription) Deliver(ctx context.Context, deliveries []driver.Delivery) {
	t := treeFrom(ctx)
	if len(deliveries) == 1 { // the usual case in memory
		i := s.newItem(&deliveries[0])
		s.observeReceived(i, &deliveries[0].Source)
		s.mu.Lock()
		s.enqueue(i, &deliveries[0].Source, t)
		s.dispatch()
		s.mu.Unlock()
		return
	}
	items := make([]*item, len(deliveries))
	for n := range deliveries {
		items[n] = s.newItem(&deliveries[n])
		s.observeReceived(items[n], &deliveries[n].Source)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for n, i := range items {
		s.enqueue(i, &deliveries[n].Source, t)
	}
	s.dispatch()
}

func (s *subscription) observeReceived(i *item, from *driver.Source) {
	ignored := i.stage == stageIgnored
	if !s.bus.observers.wants(Received) && !ignored {
		return
	}
	i.source = &source{name: from.Name} // for the observation: the real one needs the lock
	i.observe(s.bus.values, Received, nil)
	if ignored {
		i.observe(s.bus.values, Ignored, nil)
	}
}

// enqueue puts an item at the end of its lane. The caller holds the lock.
func (s *subscription) enqueue(i *item, from *driver.Source, t *tree) {
	i.source = s.sourceFor(from)
	if i.source == nil {
		return // not ours any more: it comes again
	}
	if i.stage == stageIgnored {
		s.settleLater(i, nil)
		return
	}
	if s.stopping && s.bus.features.Durable { // not to be started: it comes again
		s.returnDropped([]*item{i})
		return
	}
	s.recallAttempts(i)
	s.assign(i.source)
	if i.stage == stageUnknown {
		s.readRecord() // before its turn comes
		t = nil        // and no publisher waits for that
	}
	s.bus.enqueued.Add(1)
	key := i.laneKey()
	l := s.lanes[key]
	if l == nil {
		l = s.newLane(key)
	}
	l.push(i)
	if t.add(i) {
		i.tree = t
	}
	switch {
	case l.state == laneIdle && i.tree != nil:
		s.setState(l, laneReserved)
	case l.state == laneIdle:
		s.makeReady(l)
	case l.state == laneWaiting && l.parked:
		s.makeReady(l) // to be parked behind the others at once
	}
}

// sourceFor returns the current ownership of a source, or nil when the delivery
// belongs to one that was given up.
func (s *subscription) sourceFor(from *driver.Source) *source {
	if from.Name == "" {
		return &s.unowned
	}
	current := s.sources[from.Name]
	if current == nil || current.epoch < from.Epoch {
		current = &source{name: from.Name, epoch: from.Epoch, since: s.bus.clock.Now()}
		s.sources[from.Name] = current
	}
	if current.given || current.epoch > from.Epoch {
		return nil
	}
	return current
}

func (s *subscription) setState(l *lane, state laneState) {
	active := func(state laneState) bool {
		return state == laneReserved || state == laneReady || state == laneRunning
	}
	if before, after := active(l.state), active(state); before != after {
		if after {
			s.bus.tally.LaneActive(1)
		} else {
			s.bus.tally.LaneActive(-1)
		}
	}
	if l.state == laneWaiting && state != laneWaiting {
		s.waiting--
		if l.counted {
			s.bus.tally.LaneWaiting(-1)
		}
		l.generation++
		if l.timer != nil {
			l.timer.Stop()
			l.timer = nil
		}
	}
	l.state = state
}

func (s *subscription) makeReady(l *lane) {
	s.setState(l, laneReady)
	s.ready.push(l)
}

// makeWait parks the lane on a timer. counted says that the wait ends in work.
func (s *subscription) makeWait(l *lane, wait time.Duration, counted bool) {
	l.counted = counted
	if counted {
		s.bus.tally.LaneWaiting(1)
	}
	s.waiting++
	generation := l.generation
	l.timer = s.bus.clock.AfterFunc(wait, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if l.state == laneWaiting && l.generation == generation {
			l.timer = nil
			s.makeReady(l)
			s.dispatch()
		}
	})
	// The clock is told that the lane rests when it knows until when, not before.
	s.setState(l, laneWaiting)
}

// dispatch starts workers for ready lanes while slots are free. The caller
// holds the lock.
func (s *subscription) dispatch() {
	for s.busy < s.options.Concurrency && !s.halted {
		l := s.ready.pop()
		if l == nil {
			return
		}
		s.setState(l, laneRunning)
		s.busy++
		s.workers.Go(func() { s.work(l) })
	}
}

// laneBudget is how many items of one lane a worker takes before it lets other
// lanes have the slot.
const laneBudget = 64

// work runs lanes until none is ready. It holds one slot, and gives it up even
// when a handler ends the goroutine.
func (s *subscription) work(l *lane) {
	orderly := false
	defer func() {
		if !orderly { // runtime.Goexit in a handler: the lane is in order, the slot is not
			s.mu.Lock()
			s.freeSlot()
			s.mu.Unlock()
		}
	}()
	for l != nil {
		for n := 1; s.runHead(l, nil, nil, n < laneBudget); n++ {
		}
		s.mu.Lock()
		if l = nil; !s.halted {
			l = s.ready.pop()
		}
		if l != nil {
			s.setState(l, laneRunning)
		} else {
			s.freeSlot()
		}
		s.mu.Unlock()
	}
	orderly = true
}

func (s *subscription) freeSlot() {
	s.busy--
	s.dispatch()
	s.checkIdle()
}

// verdict is what becomes of a lane's head after it was processed.
type verdict struct {
	done    bool          // the item leaves the lane
	settle  bool          // and the broker is told
	wait    time.Duration // else: the head is tried again then
	endless bool          // the wait ends only by a person or a new release
}

// runHead processes the head of a lane: one that a worker has made running, or the one
// that a Publish has reserved and runs in its own goroutine. It reports whether the
// lane is still running, with another head: so only with more.
func (s *subscription) runHead(l *lane, reserved *item, t *tree, more bool) (again bool) {
	s.mu.Lock()
	if reserved != nil && !s.enterLocked(l, reserved) {
		s.mu.Unlock()
		return false
	}
	if l.parked {
		s.mu.Unlock()
		return s.runParked(l)
	}
	i := s.admitLocked(l)
	if i == nil {
		s.leaveSlotLocked(reserved)
		s.mu.Unlock()
		return false
	}
	s.begin(i)
	s.mu.Unlock()

	var v verdict
	returned := false
	defer func() {
		if !returned { // the handler ended the goroutine: nobody else will go on
			v = s.outcome(i, take(errGoexit))
		}
		s.mu.Lock()
		s.end(i)
		again = s.next(l, i, v, t, more && returned)
		s.leaveSlotLocked(reserved)
		finished := i.finished
		s.mu.Unlock()
		if finished {
			s.letGo(i)
		}
	}()
	v = s.process(i, t)
	returned = true
	return
}

// enterLocked takes a slot for a Publish that comes for what it has reserved, when that
// is still the head of its lane. Where no slot is free, workers run the lane.
func (s *subscription) enterLocked(l *lane, reserved *item) bool {
	if reserved.finished || l.state != laneReserved || l.head != reserved {
		return false
	}
	if s.busy >= s.options.Concurrency || s.halted || l.parked || s.bus.suspects.alone.Load() != nil {
		s.makeReady(l)
		s.dispatch()
		return false
	}
	s.setState(l, laneRunning)
	s.busy++
	return true
}

// leaveSlotLocked gives back the slot of a Publish; a worker goes on with its own.
func (s *subscription) leaveSlotLocked(reserved *item) {
	if reserved != nil {
		s.freeSlot()
	}
}

// admitLocked returns the head of a running lane if it may start now, or nil: then the
// lane waits, or has ended.
func (s *subscription) admitLocked(l *lane) *item {
	if l.head != nil && l.head.source.given { // given up between two items
		dropped := l.remove(func(i *item) bool { return i.source.given })
		s.endLetters(dropped)
		s.workers.Go(func() { s.releaseDropped(dropped) })
	}
	i := l.head
	if i == nil || i.source.given || s.halted { // revoked meanwhile, or the bus has stopped
		if i != nil && !s.halted {
			s.makeReady(l)
		} else {
			s.leave(l)
		}
		return nil
	}
	if i.source.owning {
		l.blocked = true
		s.makeWait(l, time.Hour, true) // until its parked events are known
		return nil
	}
	if i.lacking() && !s.judge(i) {
		s.awaitRecord(l)
		return nil
	}
	wait := s.hold(l, i)
	if wait == 0 {
		wait = s.standBack(l, i)
	}
	if wait == 0 && i.stage != stageIgnored {
		wait = s.throttle(l)
	}
	if wait > 0 {
		s.unprobe(i)
		s.makeWait(l, wait, true)
		return nil
	}
	return i
}

var errGoexit = errors.New("the handler ended its goroutine (runtime.Goexit, as t.FailNow does)")

// throttle gives a lane its turn under MaxRate, and returns how long until then.
// What was late does not make up for it. The caller holds the lock.
func (s *subscription) throttle(l *lane) (wait time.Duration) {
	if s.options.MaxRate == 0 {
		return 0
	}
	if l.admitted { // this is its turn
		l.admitted = false
		return 0
	}
	now := s.bus.clock.Now()
	turn := s.nextTurn
	if turn.Before(now) {
		turn = now
	}
	s.nextTurn = turn.Add(time.Duration(float64(time.Second) / s.options.MaxRate))
	wait = turn.Sub(now)
	l.admitted = wait > 0
	return wait
}

// begin and end keep the list of what is processed now.
func (s *subscription) begin(i *item) {
	i.running = true
	i.source.running++
	i.runNext = s.running
	if s.running != nil {
		s.running.runPrev = i
	}
	s.running = i
	s.watchHandlers()
}

func (s *subscription) end(i *item) {
	i.running = false
	s.unprobe(i)
	i.source.running--
	if i.runPrev != nil {
		i.runPrev.runNext = i.runNext
	} else {
		s.running = i.runNext
	}
	if i.runNext != nil {
		i.runNext.runPrev = i.runPrev
	}
	i.runPrev, i.runNext = nil, nil
	s.endTurn(i)
	s.checkQuiet()
}

// next carries out a verdict and moves the lane on. The caller holds the lock.
func (s *subscription) next(l *lane, i *item, v verdict, t *tree, more bool) (again bool) {
	if i.source.given && !v.done || i.source.lost {
		v = verdict{done: true} // it comes again, to whoever owns the source
	}
	switch {
	case s.returns(i, v):
		s.giveBack(l, i, v.wait)
		v = verdict{}
	case s.stopping && (s.bus.features.Durable || i.letter != nil) && !v.done:
		l.pop()
		i.finished = true
		if s.delays() {
			s.settleAs(i, driver.Released, min(v.wait, s.bus.features.MaxDelay))
		}
		v = verdict{}
	case v.done:
		l.pop()
		i.finished = true
		if v.settle {
			s.settleLater(i, t)
		}
	}
	if i.finished && i.letter != nil {
		s.endLetter(i)
	}
	s.checkSource(i.source)
	switch {
	case !i.finished:
		s.makeWait(l, v.wait, !v.endless)
	case l.parked:
		s.makeReady(l) // it was parked just now: what is behind follows
		s.dispatch()
	case l.head == nil:
		s.leave(l)
	case t != nil && l.head.tree == t:
		s.setState(l, laneReserved)
	case t == nil && more && !l.parked:
		return true
	default:
		s.makeReady(l)
		if t == nil {
			break // the worker that runs this takes the next lane itself
		}
		s.dispatch()
	}
	return false
}

// repeats reports whether any reaction is to a repeatable event.
func (s *subscription) repeats() bool {
	for _, r := range s.reactions {
		if !r.ignored && r.definition.occurrence == Repeatable {
			return true
		}
	}
	return false
}

// reactionTo returns the reaction to an event type, or nil.
func (s *subscription) reactionTo(eventType string) *Reaction {
	if s.only != nil {
		if s.only.definition.eventType == eventType {
			return s.only
		}
		return nil
	}
	return s.reactions[eventType]
}

func (s *subscription) newLane(key driver.Lane) *lane {
	l := s.spare
	if l == nil || l.queued {
		l = &lane{}
	}
	s.spare = nil
	l.key, l.due, l.parkedHead, l.owner, l.order, l.admitted = key, time.Time{}, nil, nil, driver.LaneOrder{}, false
	l.guarded, l.lacking, l.standsBack, l.anew = false, false, false, false
	s.lanes[key] = l
	return l
}

// keptLanes is how many lanes with nothing in them are kept for their
// aggregate's next event.
const keptLanes = 512

// leave ends a lane that has nothing left.
func (s *subscription) leave(l *lane) {
	s.setState(l, laneIdle)
	if l.head == nil && !l.parked && len(s.lanes) > keptLanes {
		delete(s.lanes, l.key)
		s.spare = l
	}
	s.checkIdle()
}
