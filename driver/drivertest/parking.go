package drivertest

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
)

func park(s *scene) {
	l := newLedger()
	var mended atomic.Bool
	options := tidings.Options{}
	if s.features.Durable {
		options.Lanes = &shelf{durable: true}
	}
	declare := func(b *tidings.Bus) {
		subscribe(s, b, "parking", tidings.SubscribeOptions{MaxAttempts: 2, RequireOrder: true, Backoff: s.steady(time.Millisecond), ParkBackoff: s.steady(3 * time.Millisecond)}, stepTaken,
			l.handler(func(_ context.Context, e tidings.Event[stepPayload]) error {
				if e.AggregateID() == "a" && e.Payload().Number == 1 && !mended.Load() {
					return errNotYet
				}
				return nil
			}))
	}
	p := s.start(settings{options: options}, declare)
	p.publish(slices.Concat(l.steps("a", 4), l.steps("b", 4))...)
	s.eventually("the head and what is behind it are parked", func() bool { return p.seen.count(tidings.Parked) >= 3 }, l.String)
	s.eventually("the other lane flows", func() bool { return l.finishedOf("b") == 4 }, l.String)
	if s.features.Durable {
		// The broker's position has passed what is parked; the store has it.
		s.eventually("everything is settled", func() bool { return p.seen.count(tidings.Settled) == 8 }, nil)
		p.stop()
		p = s.start(settings{options: options}, declare)
	}
	p.publish(l.steps("a", 2)...)
	s.eventually("what comes later is parked too", func() bool { return p.seen.count(tidings.Retried) > 0 || p.seen.count(tidings.Parked) > 3 }, nil)
	if n := l.finishedOf("a"); n != 1 {
		s.Errorf("%d events of the parked lane are finished, want the one before", n)
	}
	mended.Store(true)
	l.audit(s)
	if n := p.seen.count(tidings.DeadLettered); n > 0 {
		s.Errorf("%d dead letters", n)
	}
}

// laneOf is the lane of a step's aggregate.
func laneOf(aggregate string) driver.Lane {
	return driver.Lane{Channel: stepTaken.Type(), Key: aggregate}
}

func parkedEventsMove(s *scene) {
	l := newLedger()
	store := &shelf{durable: true}
	var mended atomic.Bool
	start := func(crowd bool) *process {
		return s.start(settings{options: tidings.Options{Lanes: store}, crowd: crowd}, func(b *tidings.Bus) {
			subscribe(s, b, "parking", tidings.SubscribeOptions{MaxAttempts: 1, OnExhausted: tidings.Park, Backoff: s.steady(time.Millisecond), ParkBackoff: s.steady(20 * time.Millisecond)}, stepTaken,
				l.handler(func(_ context.Context, e tidings.Event[stepPayload]) error {
					if e.Payload().Number == 1 && !mended.Load() {
						return errNotYet
					}
					return nil
				}))
		})
	}
	const lanes, each = 8, 3
	first := start(false)
	for n := range lanes {
		first.publish(l.steps(fmt.Sprint("a-", n), each)...)
	}
	parked := func() (n int) {
		for lane := range lanes {
			n += store.holds(module+".parking", laneOf(fmt.Sprint("a-", lane)))
		}
		return n
	}
	s.eventually("the failed events and those behind them are parked", func() bool { return parked() == lanes*(each-1) }, func() string { return fmt.Sprint(parked(), " are parked; ", l) })
	// A second instance takes some of the sources while the heads are tried.
	second := start(true)
	second.ready()
	s.eventually("the second instance tries heads of its own", func() bool { return second.seen.count(tidings.Retried) > 0 }, l.String)
	first.stop()
	mended.Store(true) // and nothing new is published
	l.audit(s)
	s.eventually("nothing is parked any more", func() bool { return parked() == 0 }, nil)
}

func operatorsAndParkedEvents(s *scene) {
	l := newLedger()
	store := &shelf{durable: true}
	var mended atomic.Bool
	p := s.start(settings{options: tidings.Options{Lanes: store}}, func(b *tidings.Bus) {
		subscribe(s, b, "parking", tidings.SubscribeOptions{MaxAttempts: 1, OnExhausted: tidings.Park, Backoff: s.steady(time.Millisecond), ParkBackoff: tidings.Backoff{Initial: time.Hour, Max: time.Hour}}, stepTaken,
			l.handler(func(_ context.Context, e tidings.Event[stepPayload]) error {
				if e.Payload().Number == 0 && (!mended.Load() || e.AggregateID() != "retried") {
					return errNotYet
				}
				return nil
			}))
	})
	p.seen.tell(l.observe)
	const each = 3
	for _, aggregate := range []string{"retried", "head", "lane"} {
		p.publish(l.steps(aggregate, each)...)
	}
	held := func(aggregate string) int { return store.holds(module+".parking", laneOf(aggregate)) }
	s.eventually("all three lanes are parked", func() bool { return held("retried")+held("head")+held("lane") == 3*each }, l.String)
	mended.Store(true)
	for aggregate, verb := range map[string]driver.LaneVerb{"retried": driver.RetryHead, "head": driver.SkipHead, "lane": driver.SkipLane} {
		store.order(module+".parking", driver.LaneOrder{Lane: laneOf(aggregate), Verb: verb, Reason: "the customer called"})
	}
	l.audit(s)
	letters := s.letters(p, 1+each)
	for _, letter := range letters {
		if letter.Reason != "skipped" || letter.AggregateID == "retried" {
			s.Errorf("dead letter %+v", letter)
		}
	}
	if n := p.seen.count(tidings.Handled); n != each+each-1 {
		s.Errorf("%d events were handled, want all of the lane that was retried and those behind the skipped head", n)
	}
}
