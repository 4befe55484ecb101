package drivertest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidings-go/tidings"
)

func drain(s *scene) {
	const lanes = 6
	l := newLedger()
	running := make(chan struct{}, lanes)
	release := make(chan struct{})
	var ended atomic.Int64
	declare := func(b *tidings.Bus) {
		subscribe(s, b, "draining", tidings.SubscribeOptions{}, stepTaken, l.handler(func(ctx context.Context, e tidings.Event[stepPayload]) error {
			if e.Payload().Number > 0 {
				return nil
			}
			running <- struct{}{}
			<-release
			if ctx.Err() != nil {
				ended.Add(1)
			}
			return ctx.Err()
		}))
	}
	p := s.start(settings{}, declare)
	var publishing sync.WaitGroup
	for n := range lanes {
		publishing.Go(func() { p.publish(l.steps(fmt.Sprint("lane-", n), 3)...) })
	}
	for range lanes {
		select {
		case <-running:
		case <-time.After(s.patience()):
			s.Fatalf("the handlers do not start: %v", l)
		}
	}
	p.cancel()
	// Run may not return, nor a context end, while handlers work.
	select {
	case <-p.ended:
		s.Error("Run returned while handlers ran")
	case <-time.After(s.scale(100 * time.Millisecond)):
	}
	close(release)
	publishing.Wait()
	p.stop()
	if n := ended.Load(); n > 0 {
		s.Errorf("the contexts of %d handlers ended when Run's did", n)
	}
	if n := p.seen.count(tidings.DeadLettered) + p.seen.count(tidings.Retried); n > 0 {
		s.Errorf("the end of Run made %d dead letters and retries", n)
	}
	if s.features.Durable {
		s.start(settings{}, declare) // what had not begun comes again
	} else if n := p.seen.count(tidings.Abandoned); n > 0 {
		s.Errorf("%d events were abandoned", n)
	}
	l.audit(s)
}

func drainEverything(s *scene) {
	l := newLedger()
	hold := make(chan struct{})
	var retries atomic.Int64
	p := s.start(settings{}, func(b *tidings.Bus) {
		subscribe(s, b, "all", tidings.SubscribeOptions{Backoff: s.steady(20 * time.Millisecond)}, stepTaken, l.handler(func(_ context.Context, e tidings.Event[stepPayload]) error {
			if e.Payload().Number == 0 {
				<-hold
			}
			if e.Payload().Number == 1 && retries.Add(1)%2 == 1 { // half of these are waiting for a retry
				return errNotYet
			}
			return nil
		}))
	})
	var publishing sync.WaitGroup
	for n := range 4 {
		publishing.Go(func() { p.publish(l.steps(fmt.Sprint("lane-", n), 100)...) })
	}
	s.eventually("every lane is at work", func() bool { return p.seen.count(tidings.Started) == 4 }, nil)
	if s.features.Broadcast {
		publishing.Wait() // what is published after the end is nobody's
	}
	p.cancel()
	close(hold)
	publishing.Wait()
	p.stop()
	if !l.done() || p.seen.count(tidings.Abandoned) > 0 {
		s.Errorf("Run has returned, and of the ledger is left: %v", l)
	}
	l.audit(s)
}

// restarting runs a process in which one aggregate is stuck and the others are
// handled, and returns when the broker knows of all that is finished.
func (s *scene) restarting(l *ledger, with settings, mended *atomic.Bool) *process {
	s.Helper()
	p := s.start(with, s.stubborn(l, mended))
	const others, each = 20, 5
	p.publish(l.steps("stuck", 3)...)
	for n := range others {
		p.publish(l.steps(fmt.Sprint("other-", n), each)...)
	}
	p.publish(l.steps("stuck", 2)...)
	s.eventually("all but the stuck aggregate is handled and settled", func() bool { return p.seen.count(tidings.Settled) == others*each }, l.String)
	return p
}

func (s *scene) stubborn(l *ledger, mended *atomic.Bool) func(*tidings.Bus) {
	return func(b *tidings.Bus) {
		subscribe(s, b, "stubborn", tidings.SubscribeOptions{RequireDurable: true, MaxAttempts: 1 << 30, Backoff: s.steady(10 * time.Millisecond)}, stepTaken,
			l.handler(func(_ context.Context, e tidings.Event[stepPayload]) error {
				if e.AggregateID() == "stuck" && e.Payload().Number == 0 && !mended.Load() {
					return errNotYet
				}
				return nil
			}))
	}
}

// onlyUnfinished starts the next process and looks at what it is given.
func (s *scene) onlyUnfinished(l *ledger, mended *atomic.Bool, unfinished int) {
	s.Helper()
	mended.Store(true)
	p := s.start(settings{}, s.stubborn(l, mended))
	fresh := 1
	p.publish(l.step("stuck"))
	for n := range 20 { // behind these, nothing that came again can hide
		p.publish(l.step(fmt.Sprint("other-", n)))
		fresh++
	}
	l.audit(s)
	if got := p.seen.count(tidings.Received) - fresh; got != unfinished {
		s.Errorf("the next process was given %d events again, %d were unfinished", got, unfinished)
	}
}

func restart(s *scene) {
	l := newLedger()
	var mended atomic.Bool
	p := s.restarting(l, settings{}, &mended)
	p.stop()
	if n := p.seen.count(tidings.DeadLettered); n > 0 {
		s.Errorf("the stop made %d dead letters", n)
	}
	s.onlyUnfinished(l, &mended, 5)
}

func crash(s *scene) {
	l := newLedger()
	var mended atomic.Bool
	p := s.restarting(l, settings{crashable: true}, &mended)
	p.crash()
	s.onlyUnfinished(l, &mended, 5)
}

func crashBeforeSettling(s *scene) {
	const lanes, each = 5, 4
	l := newLedger()
	publisher := s.start(settings{}, nil)
	var handled atomic.Int64
	var dying *process
	dying = s.declare(settings{crashable: true}, func(b *tidings.Bus) {
		subscribe(s, b, "dying", tidings.SubscribeOptions{}, stepTaken, func(context.Context, tidings.Event[stepPayload]) error {
			dying.severe.cut.Store(true) // the broker hears of nothing that is handled from here on
			handled.Add(1)
			return nil
		})
	})
	dying.run()
	dying.ready()
	for n := range lanes {
		publisher.publish(l.steps(fmt.Sprint("lane-", n), each)...)
	}
	s.eventually("events are handled", func() bool { return handled.Load() > 0 }, nil)
	dying.crash()
	next := s.start(settings{}, func(b *tidings.Bus) {
		subscribe(s, b, "dying", tidings.SubscribeOptions{}, stepTaken, l.handler(nil))
	})
	l.audit(s)
	if got := next.seen.count(tidings.Handled); got != lanes*each {
		s.Errorf("the next process handled %d events, want all %d", got, lanes*each)
	}
	s.Logf("%d events were handled before the crash and came again", handled.Load())
}

func durabilityIsRefused(s *scene) {
	p := s.declare(settings{}, func(b *tidings.Bus) {
		subscribe(s, b, "precious", tidings.SubscribeOptions{RequireDurable: true}, stepTaken, newLedger().handler(nil))
	})
	s.refused(p, module+".precious", "RequireDurable", s.name)
	if _, ok := errors.AsType[*tidings.ConfigurationError](p.Ready(context.Background())); !ok {
		s.Error("Ready does not return the complaints")
	}
	if err := p.tryPublish(stepTaken.New("a", stepPayload{})); !strings.Contains(fmt.Sprint(err), "closed") {
		s.Errorf("a bus that was refused publishes: %v", err)
	}
}

// bigLedger is everything at once: publishers, instances that come and go, and
// handlers that fail.
func bigLedger(s *scene) {
	const publishers, instances, lanes = 8, 3, 64
	total := cmp.Or(s.harness.Events, 10_000)
	l := newLedger()
	random := s.chance()
	var handling atomic.Int64
	declare := func(b *tidings.Bus) {
		subscribe(s, b, "crowd", tidings.SubscribeOptions{MaxAttempts: 1 << 30, Backoff: s.steady(time.Millisecond)}, stepTaken,
			l.handler(func(context.Context, tidings.Event[stepPayload]) error {
				handling.Add(1)
				if random.below(100) == 0 {
					return errNotYet
				}
				return nil
			}))
	}
	began := time.Now()
	var crowd []*process
	join := func() {
		p := s.start(settings{crowd: true}, declare)
		crowd = append(crowd, p)
	}
	join()
	for s.features.Groups && len(crowd) < instances {
		join()
	}
	for _, p := range crowd {
		p.ready()
	}
	publisher := crowd[0]
	if s.features.Groups {
		publisher = s.start(settings{}, nil)
	}
	var published atomic.Int64
	var publishing sync.WaitGroup
	for n := range publishers {
		publishing.Go(func() {
			for at := 0; at < total/publishers; {
				size := min(1+random.below(20), total/publishers-at)
				var events []tidings.DomainEvent
				for range size {
					// Each aggregate has one publisher.
					events = append(events, l.step(fmt.Sprint("lane-", random.below(lanes/publishers)*publishers+n)))
				}
				if err := publisher.tryPublish(events...); err != nil {
					s.Errorf("Publish: %v", err)
					return
				}
				at += size
				published.Add(int64(size))
			}
		})
	}
	if s.features.Groups {
		s.comeAndGo(l, &crowd, join, total)
	}
	publishing.Wait()
	l.audit(s)
	s.Logf("%d events from %d publishers to %d instances in %v: %v", published.Load(), publishers, len(crowd), time.Since(began).Round(time.Millisecond), l)
}

// comeAndGo closes one instance after the other at parts of the work, and lets
// another take its place.
func (s *scene) comeAndGo(l *ledger, crowd *[]*process, join func(), total int) {
	s.Helper()
	finished := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.handled + l.dead
	}
	for n := range 3 {
		s.eventually("the work goes on", func() bool { return finished() >= total*(n+1)/5 }, l.String)
		(*crowd)[n].stop()
		join()
	}
}
