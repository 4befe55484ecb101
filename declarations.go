package tidings

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// Releases of a subscription differ while one is deployed or rolled back. The driver
// keeps a record of what they handle (driver.Declarations): an event of a type that
// the record has and this release lacks is not passed; it waits for an instance that
// handles it, and what is behind it in its lane waits too. An event of a type that
// the record has not is finished unseen. The record may have grown since it was last
// read, so that is decided by a read which began after the event was delivered. One
// read answers for all that came before it began.

const (
	// recordWatch is how often the record is read while nobody asks, changed by
	// chance by up to a quarter.
	recordWatch = 5 * time.Second
	// recordPace is the time between two reads at least.
	recordPace = 20 * time.Millisecond
	// recordAnswer bounds how long one read may take, and recordStart how long it may
	// take to declare.
	recordAnswer = 10 * time.Second
	recordStart  = 30 * time.Second
	// recordPoll is when a parked head looks again that nobody woke.
	recordPoll = time.Second
)

// recordBackoff is the time between two reads that fail.
var recordBackoff = Backoff{Initial: 200 * time.Millisecond, Max: 5 * time.Second, Multiplier: 2, Jitter: 0.2}

// reasonLacking is why an event is held that another release handles.
const reasonLacking = "lacking"

// declarations is what a subscription knows of the record.
type declarations struct {
	keeper driver.Declarations // nil: there is no record. Set before anything is delivered.
	begun  atomic.Int64        // how many reads have begun

	// guarded by the subscription's lock
	read    int64 // the newest read that was answered
	known   map[driver.Declaration]bool
	lacks   map[driver.Declaration]int // what this release lacks, with how many events of it were held
	reading bool
	again   bool    // somebody wants another read
	asking  []*lane // their heads wait for an answer
	life    context.Context
	end     context.CancelFunc
}

// Lacked is an event type that another release of a subscription handles and this
// one lacks.
type Lacked struct {
	Channel string
	Type    string
	// Held is how many events of it came to this process since it was started and are
	// left for an instance that handles it.
	Held int
}

// Ignored makes a reaction that says that the event type is left out for good: its
// events are finished unseen and counted, also while another release of the
// subscription handles them. The type stays in the record of what the subscription
// handles until `tidings subscription forget-type` takes it out. It stands for every
// version of the type. A subscription needs another reaction besides.
func (c Contract[P]) Ignored() Reaction {
	return Reaction{definition: c.definition, ignored: true, place: callerPlace(2)}
}

// declare adds what this release handles to the record.
func (s *subscription) declare(ctx context.Context) error {
	keeper, ok := s.bus.driver.(driver.Declarations)
	if !ok || !s.bus.features.Durable {
		return nil
	}
	var handled []driver.Declaration
	for _, eventType := range s.typesThat(false) {
		handled = append(handled, driver.Declaration{Channel: s.reactions[eventType].definition.channel, Type: eventType})
	}
	asking, cancel := context.WithTimeout(ctx, recordStart)
	defer cancel()
	all, err := keeper.Declare(asking, s.name, handled)
	if err != nil {
		return fmt.Errorf("tidings: subscription %s: what it handles cannot be recorded: %w", s.name, err)
	}
	d := &s.declared
	d.keeper, d.lacks = keeper, make(map[driver.Declaration]int)
	d.life, d.end = context.WithCancel(s.bus.storing)
	s.mu.Lock()
	news := s.learnRecord(all, 0)
	s.mu.Unlock()
	s.tellLacked(news)
	return nil
}

// endRecord reads no more. The caller holds the lock.
func (s *subscription) endRecord() {
	if s.declared.end != nil {
		s.declared.end()
	}
}

// lacking reports whether the record decides what becomes of an item.
func (i *item) lacking() bool {
	return i.stage == stageUnknown || i.stage == stageHeld && i.reason == reasonLacking
}

// judge decides what becomes of an item without a reaction here. It reports false
// while the record has not been read since the item came. The caller holds the lock.
func (s *subscription) judge(i *item) bool {
	d := &s.declared
	if d.read < i.needs {
		return false
	}
	declaration := driver.Declaration{Channel: i.channel, Type: i.eventType()}
	if !d.known[declaration] {
		i.stage, i.reason, i.failure = stageIgnored, "", nil
		return true
	}
	if i.stage == stageUnknown {
		i.stage, i.reason = stageHeld, reasonLacking
		i.failure = fmt.Errorf("tidings: another release of subscription %s handles %s, and this one has no reaction to it", s.name, i.eventType())
		if !i.stored { // else it was counted when it came
			d.lacks[declaration]++
		}
	}
	i.lane.lacking = true
	return true
}

// awaitRecord makes a lane wait until the record is read. The caller holds the lock.
func (s *subscription) awaitRecord(l *lane) {
	s.declared.asking = append(s.declared.asking, l)
	s.makeWait(l, time.Hour, true)
	s.readRecord()
}

// judgeParked is judge for the head of a parked lane; false means that the lane
// looks again after recordPoll, or when the record was read. The lock is not held.
func (s *subscription) judgeParked(i *item) bool {
	if !i.lacking() {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.judge(i) {
		return true
	}
	s.declared.asking = append(s.declared.asking, i.lane)
	s.readRecord()
	return false
}

// readRecord has the record read once more, by one goroutine. The caller holds the
// lock.
func (s *subscription) readRecord() {
	d := &s.declared
	if d.reading || d.keeper == nil || s.stopping || s.halted {
		d.again = true
		return
	}
	d.reading = true
	s.workers.Go(s.readRecords)
}

// readRecords reads until nobody asks any more.
func (s *subscription) readRecords() {
	d := &s.declared
	for failures := 0; ; {
		s.mu.Lock()
		d.again = false
		number := d.begun.Add(1)
		s.mu.Unlock()
		asking, cancel := context.WithTimeout(d.life, recordAnswer)
		all, err := d.keeper.Declared(asking, s.name)
		cancel()
		wait := recordPace
		if err == nil {
			failures = 0
		} else if d.life.Err() == nil {
			failures++
			wait = recordBackoff.wait(failures)
			s.observe(Observation{Kind: StoreFailed, Wait: wait, Err: fmt.Errorf("what releases of the subscription handle: %w", err)})
		}
		var news []driver.Declaration
		s.mu.Lock()
		if err == nil {
			news = s.learnRecord(all, number)
		}
		s.mu.Unlock()
		s.tellLacked(news)
		s.bus.sleep(d.life, wait)
		s.mu.Lock()
		if s.stopping || s.halted || d.life.Err() != nil || !d.again && len(d.asking) == 0 {
			d.reading = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
	}
}

// learnRecord takes what a read has answered, lets the lanes go on that waited for
// it, and returns what this release lacks that was not known before. The caller holds
// the lock.
func (s *subscription) learnRecord(all []driver.Declaration, number int64) (news []driver.Declaration) {
	d := &s.declared
	before, known := d.known, make(map[driver.Declaration]bool, len(all))
	d.known, d.read = known, number
	for _, one := range all {
		known[one] = true
		if r := s.reactionTo(one.Type); r != nil && r.definition.channel == one.Channel {
			continue
		}
		if _, told := d.lacks[one]; !told {
			d.lacks[one] = 0
			news = append(news, one)
		}
	}
	forgotten := false
	for one := range before {
		if !known[one] {
			forgotten = true
			delete(d.lacks, one)
		}
	}
	asking := d.asking
	d.asking = nil
	for _, l := range asking {
		if l.state == laneWaiting && (l.parked || l.head != nil && l.head.stage == stageUnknown) {
			l.due = time.Time{}
			s.makeReady(l)
		}
	}
	if forgotten {
		for _, l := range s.lanes {
			if l.lacking && l.state == laneWaiting {
				l.lacking, l.due = false, time.Time{}
				s.makeReady(l)
			}
		}
	}
	s.dispatch()
	return news
}

// tellLacked says what this release lacks, and what to do. The lock is not held.
func (s *subscription) tellLacked(news []driver.Declaration) {
	for _, one := range news {
		s.observe(Observation{Kind: Reported, Report: driver.Report{Kind: driver.ReportWarning, Text: fmt.Sprintf(
			"another release of it handles %s on channel %s, and this one has no reaction to it: such events are left for an instance that has one. Deploy the release that handles it everywhere. To leave it out for good, say Ignored() of its contract beside the reactions, or, when no release handles it any more, run: tidings subscription forget-type %s %s",
			one.Type, one.Channel, s.name, one.Type)}})
	}
}

// lacked is what the health of the subscription says. The caller holds the lock.
func (s *subscription) lacked() (all []Lacked) {
	for one, held := range s.declared.lacks {
		all = append(all, Lacked{Channel: one.Channel, Type: one.Type, Held: held})
	}
	slices.SortFunc(all, func(a, b Lacked) int {
		return cmp.Or(cmp.Compare(a.Channel, b.Channel), cmp.Compare(a.Type, b.Type))
	})
	return all
}

// watchRecords reads the records now and then until ctx ends, so that what another
// release has declared or an operator has forgotten is known.
func (b *Bus) watchRecords(ctx context.Context) {
	for {
		wait := recordWatch + time.Duration((rand.Float64()-0.5)/2*float64(recordWatch))
		b.sleep(ctx, wait)
		if ctx.Err() != nil {
			return
		}
		for _, s := range b.subscriptions {
			s.mu.Lock()
			s.readRecord()
			s.mu.Unlock()
		}
	}
}

// keepsRecords reports whether there is anything to watch.
func (b *Bus) keepsRecords() bool {
	return slices.ContainsFunc(b.subscriptions, func(s *subscription) bool { return s.declared.keeper != nil })
}
