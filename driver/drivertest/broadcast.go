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

func eachInstance(s *scene) {
	const events = 60
	var ledgers [3]*ledger
	var instances [3]*process
	for n := range instances {
		ledgers[n] = newLedger()
		instances[n] = s.start(settings{}, func(b *tidings.Bus) {
			subscribe(s, b, "refresh", tidings.SubscribeOptions{EachInstance: true}, stepTaken, ledgers[n].handler(nil))
		})
	}
	for n := range events {
		aggregate := fmt.Sprint("a-", n) // no order is promised
		e := ledgers[0].step(aggregate)
		for _, l := range ledgers[1:] {
			l.step(aggregate, tidings.WithID(e.ID()))
		}
		instances[n%3].publish(e)
	}
	for _, l := range ledgers {
		l.audit(s)
	}
}

func sharedClaimsDecide(s *scene) {
	l := newLedger()
	desk := &desk{}
	var suppressed atomic.Int64
	var instances [3]*process
	for n := range instances {
		instances[n] = s.start(settings{options: tidings.Options{
			Claims: desk, RedeliveryHorizon: time.Hour,
			Observers: []tidings.Observer{observe(func(o tidings.Observation) {
				if o.Kind == tidings.Deduplicated {
					suppressed.Add(1)
				}
			})},
		}}, func(b *tidings.Bus) {
			o := s.options(tidings.SubscribeOptions{})
			o.EachInstance = false
			b.Module(module).Subscribe("shared", o, stepTaken.On(l.handler(nil)))
		})
	}
	const events = 60
	for n := range events {
		instances[n%3].publish(l.step(fmt.Sprint("a-", n)))
	}
	l.audit(s)
	s.eventually("the other two instances learn that it was handled", func() bool { return suppressed.Load() == 2*events }, func() string { return fmt.Sprint(suppressed.Load()) })
	l.audit(s)
}

func unsharedIsRefused(s *scene) {
	p := s.declare(settings{}, func(b *tidings.Bus) {
		o := s.options(tidings.SubscribeOptions{})
		o.EachInstance = false
		b.Module(module).Subscribe("unsaid", o, stepTaken.On(newLedger().handler(nil)))
	})
	text := s.complaints(p)
	for _, part := range []string{module + ".unsaid", "EachInstance", "Options.Claims", s.name} {
		if !strings.Contains(text, part) {
			s.Errorf("the complaint does not say %s: %s", part, text)
		}
	}
}

func eachInstanceIsRefused(s *scene) {
	p := s.declare(settings{}, func(b *tidings.Bus) {
		subscribe(s, b, "refresh", tidings.SubscribeOptions{EachInstance: true}, stepTaken, newLedger().handler(nil))
	})
	text := s.complaints(p)
	for _, part := range []string{module + ".refresh", "EachInstance", s.name} {
		if !strings.Contains(text, part) {
			s.Errorf("the complaint does not say %s: %s", part, text)
		}
	}
}

// observe is an observer that is one function.
type observe func(tidings.Observation)

// Observe implements [tidings.Observer].
func (f observe) Observe(_ context.Context, o tidings.Observation) { f(o) }

// desk keeps claims for the processes of one case, which all live in this one:
// for them it is as durable as it says.
type desk struct {
	mu     sync.Mutex
	owners map[string]string // "" when it is finished
}

var _ driver.Claims = (*desk)(nil)

// Claim implements [driver.Claims].
func (d *desk) Claim(_ context.Context, r driver.ClaimRequest) (driver.ClaimAnswer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.owners == nil {
		d.owners = make(map[string]string)
	}
	key := r.Subscription + "\n" + r.Key
	switch owner, known := d.owners[key]; {
	case known && owner == "":
		return driver.ClaimAnswer{State: driver.ClaimDone, Digest: r.Digest}, nil
	case known && owner != r.Owner:
		return driver.ClaimAnswer{State: driver.ClaimBusy, Until: time.Now().Add(20 * time.Millisecond)}, nil
	}
	d.owners[key] = r.Owner
	return driver.ClaimAnswer{State: driver.ClaimFresh}, nil
}

// Finish implements [driver.Claims].
func (d *desk) Finish(_ context.Context, r driver.ClaimRequest) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.owners[r.Subscription+"\n"+r.Key] = ""
	return nil
}

// Release implements [driver.Claims].
func (d *desk) Release(_ context.Context, r driver.ClaimRequest) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.owners, r.Subscription+"\n"+r.Key)
	return nil
}

// Durable implements [driver.Claims].
func (d *desk) Durable() bool { return true }
