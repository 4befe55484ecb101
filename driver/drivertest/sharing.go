package drivertest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
)

func fanOutToModules(s *scene) {
	ledgers := map[string]*ledger{"billing": newLedger(), "mail": newLedger(), "audit": newLedger()}
	p := s.start(settings{}, func(b *tidings.Bus) {
		for name, l := range ledgers {
			b.Module(name).Subscribe("listen", s.options(tidings.SubscribeOptions{}), stepTaken.On(l.handler(nil)))
		}
	})
	for n := range 60 {
		aggregate := fmt.Sprint("a-", n%6)
		e := ledgers["billing"].step(aggregate)
		for _, name := range []string{"mail", "audit"} {
			ledgers[name].step(aggregate, tidings.WithID(e.ID()))
		}
		p.publish(e)
	}
	for _, l := range ledgers {
		l.audit(s)
	}
}

func fanOutIsRefused(s *scene) {
	p := s.declare(settings{}, func(b *tidings.Bus) {
		l := newLedger()
		subscribe(s, b, "first", tidings.SubscribeOptions{}, stepTaken, l.handler(nil))
		subscribe(s, b, "second", tidings.SubscribeOptions{}, stepTaken, l.handler(nil))
	})
	if text := s.complaints(p); !strings.Contains(text, "second") && !strings.Contains(text, "first") {
		s.Errorf("the complaint names no subscription: %s", text)
	}
}

func competingInstances(s *scene) {
	l := newLedger()
	var handled [2]atomic.Int64
	var instances [2]*process
	for n := range instances {
		instances[n] = s.start(settings{crowd: true}, func(b *tidings.Bus) {
			subscribe(s, b, "shared", tidings.SubscribeOptions{}, stepTaken, l.handler(func(context.Context, tidings.Event[stepPayload]) error {
				handled[n].Add(1)
				return nil
			}))
		})
	}
	for _, p := range instances {
		p.ready()
	}
	// Joining moves shares; events are published until both have had some.
	s.eventually("both instances take part", func() bool {
		for n := range 40 {
			instances[n%2].publish(l.step(fmt.Sprint("a-", n)))
		}
		return handled[0].Load() > 0 && handled[1].Load() > 0
	}, l.String)
	l.audit(s)
}

func handOver(s *scene) {
	const lanes, each = 24, 3
	l := newLedger()
	release := make(chan struct{})
	free := sync.OnceFunc(func() { close(release) })
	s.Cleanup(free) // else the first instance would not end
	var first, second atomic.Int64
	instance := func(handle func(number int)) func(*tidings.Bus) {
		return func(b *tidings.Bus) {
			subscribe(s, b, "handed", tidings.SubscribeOptions{Concurrency: lanes}, stepTaken, l.handler(func(_ context.Context, e tidings.Event[stepPayload]) error {
				handle(e.Payload().Number)
				return nil
			}))
		}
	}
	p := s.start(settings{}, instance(func(number int) {
		if first.Add(1); number == 0 {
			<-release
		}
	}))
	for n := range lanes {
		p.publish(l.steps(fmt.Sprint("lane-", n), each)...)
	}
	s.eventually("a handler of every aggregate runs", func() bool { return first.Load() == lanes }, l.String)
	s.start(settings{crowd: true}, instance(func(int) { second.Add(1) }))
	// Time for the second to be given what is not its own yet.
	for deadline := time.Now().Add(s.scale(700 * time.Millisecond)); second.Load() == 0 && time.Now().Before(deadline); {
		time.Sleep(s.scale(5 * time.Millisecond))
	}
	if n := second.Load(); n > 0 {
		s.Errorf("the second instance started %d events while handlers of their aggregates ran in the first", n)
	}
	free()
	l.audit(s)
	s.eventually("the second instance takes part", func() bool {
		for n := range lanes {
			p.publish(l.step(fmt.Sprint("lane-", n)))
		}
		return second.Load() > 0
	}, l.String)
	l.audit(s)
}

func secondBusIsRefused(s *scene) {
	l := newLedger()
	d := s.open()
	declare := func(b *tidings.Bus) { subscribe(s, b, "shared", tidings.SubscribeOptions{}, stepTaken, l.handler(nil)) }
	s.start(settings{driver: d}, declare)
	second := s.declare(settings{driver: d}, declare)
	if text := s.complaints(second); !strings.Contains(text, module+".shared") {
		s.Errorf("the complaint does not name the subscription: %s", text)
	}
}

func startAt(s *scene) {
	var mu sync.Mutex
	got := map[string][]string{}
	reader := func(name string, at tidings.StartAt) *process {
		return s.start(settings{}, func(b *tidings.Bus) {
			subscribe(s, b, name, tidings.SubscribeOptions{StartAt: at}, stepTaken, func(_ context.Context, e tidings.Event[stepPayload]) error {
				mu.Lock()
				defer mu.Unlock()
				got[name] = append(got[name], fmt.Sprint(e.Payload().Number))
				return nil
			})
		})
	}
	last := func(name, number string) {
		s.Helper()
		s.eventually(fmt.Sprintf("subscription %s handles event %s", name, number), func() bool {
			mu.Lock()
			defer mu.Unlock()
			all := got[name]
			return len(all) > 0 && all[len(all)-1] == number
		}, func() string { mu.Lock(); defer mu.Unlock(); return fmt.Sprint(got[name]) })
	}
	step := func(n int) tidings.DomainEvent { return stepTaken.New("a", stepPayload{Number: n}) }

	publisher := s.start(settings{}, nil)
	publisher.publish(step(1), step(2))
	// Brokers store times in milliseconds, some in seconds.
	time.Sleep(s.scale(20 * time.Millisecond))
	between := time.Now()
	time.Sleep(s.scale(20 * time.Millisecond))
	publisher.publish(step(3))
	now := reader("now", tidings.StartNow)
	reader("beginning", tidings.StartBeginning)
	reader("time", tidings.StartAtTime(between))
	publisher.publish(step(4))
	for name, want := range map[string]string{"now": "[4]", "beginning": "[1 2 3 4]", "time": "[3 4]"} {
		last(name, "4")
		mu.Lock()
		if all := fmt.Sprint(got[name]); all != want {
			s.Errorf("a subscription that starts at %s handled %s, want %s", name, all, want)
		}
		mu.Unlock()
	}
	// It has a position from the moment it was first seen, handled anything or not.
	now.stop()
	publisher.publish(step(5))
	reader("now", tidings.StartNow)
	last("now", "5")
	mu.Lock()
	defer mu.Unlock()
	if all := fmt.Sprint(got["now"]); all != "[4 5]" {
		s.Errorf("after a restart, a subscription that started with what came then has handled %s, want [4 5]", all)
	}
}

// A new subscription says where it begins; the driver itself refuses one that
// does not, for whoever calls it without the engine.
func noStartIsRefused(s *scene) {
	p := s.declare(settings{}, func(b *tidings.Bus) {
		b.Module(module).Subscribe("unsaid", nil, stepTaken.On(newLedger().handler(nil)))
	})
	text := s.complaints(p)
	for _, part := range []string{module + ".unsaid", "StartAt", "StartBeginning", "StartNow", s.name} {
		if !strings.Contains(text, part) {
			s.Errorf("the complaint does not say %s: %s", part, text)
		}
	}
	ctx, cancel := s.limited()
	defer cancel()
	_, err := s.open().Subscribe(ctx, driver.Subscription{Name: module + ".unsaid", Channels: []string{rawChannel}}, &catcher{joined: make(chan struct{})})
	if err == nil {
		s.Error("the driver subscribes without a place to start")
	}
}

func noStartIsNeeded(s *scene) {
	for name, at := range map[string]tidings.StartAt{"unsaid": {}, "beginning": tidings.StartBeginning} {
		var mu sync.Mutex
		var got []int
		d := s.open()
		p := s.start(settings{driver: d}, func(b *tidings.Bus) {
			subscribe(s, b, "other", tidings.SubscribeOptions{}, bellRung, func(context.Context, tidings.Event[emptyPayload]) error { return nil })
			subscribe(s, b, name, tidings.SubscribeOptions{StartAt: at}, stepTaken, func(_ context.Context, e tidings.Event[stepPayload]) error {
				mu.Lock()
				defer mu.Unlock()
				got = append(got, e.Payload().Number)
				return nil
			})
		})
		p.publish(stepTaken.New("a", stepPayload{Number: 1}))
		s.eventually("the event arrives", func() bool { mu.Lock(); defer mu.Unlock(); return fmt.Sprint(got) == "[1]" }, nil)
		p.stop()
	}
}
