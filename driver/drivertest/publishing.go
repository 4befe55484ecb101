package drivertest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
)

// odd is text that encoders, brokers and databases are known to stumble over.
const odd = "a\u0000b \"quotes\" \\ / <tag>&amp; \u2028\u2029 \x7f é e\u0301 \u65e5\u672c \U0001F469\u200D\U0001F680 \U0010FFFF \ufeff\r\n\t"

func everyKind() everythingPayload {
	number := 7
	return everythingPayload{
		Text: odd, Words: []string{"", odd, "x"}, Nothing: []int{},
		Counts: map[string]int64{"": 0, odd: math.MaxInt64, "least": math.MinInt64},
		Bytes:  []byte{0, 1, 0xFF, 0xFE}, Flag: true, Small: -128, Big: math.MinInt64, Unsigned: math.MaxUint64,
		Ratio: 0.1 + 0.2, Tiny: math.SmallestNonzeroFloat64,
		At: time.Date(1969, 12, 31, 23, 59, 59, 123456789, time.UTC), Took: -time.Nanosecond,
		Maybe:  &number,
		Nested: nestedPayload{Name: odd, Words: []string{"y"}},
		Deep:   map[string]nestedPayload{odd: {Name: "z"}},
	}
}

func roundTrip(s *scene) {
	at := time.Date(1999, 12, 31, 23, 59, 59, 999_000_000, time.UTC)
	longest := strings.Repeat("\U0001F600", 64) // 256 bytes
	cause := bellRung.New("cause", emptyPayload{}, tidings.WithID("the cause"))
	sent := map[string]tidings.DomainEvent{}
	for _, e := range []tidings.DomainEvent{
		everything.New("plain", everythingPayload{}),
		everything.New("full", everyKind(), tidings.At(at), tidings.WithID("its id / \"1\" é"), tidings.CausedBy(cause)),
		everything.New("aggregate \"\\ \n\t é \U0001F600 / ? # % +", everythingPayload{At: time.Unix(0, 0).UTC()}),
		everything.New(longest, everythingPayload{Text: "ids of the greatest length"}, tidings.WithID(longest)),
		bellRung.New("empty", emptyPayload{}, tidings.At(time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC))),
		bellRung.New("last day", emptyPayload{}, tidings.At(time.Date(9999, 12, 31, 23, 59, 59, 999_000_000, time.UTC))),
	} {
		sent[e.ID()] = e
	}
	var mu sync.Mutex
	got := map[string]int{}
	meet := func(e tidings.DomainEvent, payload func(tidings.DomainEvent) any) error {
		mu.Lock()
		defer mu.Unlock()
		got[e.ID()]++
		want := sent[e.ID()]
		if want == nil {
			s.Errorf("event %q arrived, which nobody published", e.ID())
			return nil
		}
		show := func(e tidings.DomainEvent) string {
			return fmt.Sprintf("id %q aggregate %q type %s version %d at %v correlation %q causation %q\npayload %+q",
				e.ID(), e.AggregateID(), e.Type(), e.Version(), e.OccurredAt(), e.CorrelationID(), e.CausationID(), fmt.Sprintf("%+v", payload(e)))
		}
		if !reflect.DeepEqual(payload(e), payload(want)) || show(e) != show(want) {
			s.Errorf("published %s\narrived   %s", show(want), show(e))
		}
		return nil
	}
	p := s.start(settings{}, func(b *tidings.Bus) {
		subscribe(s, b, "everything", tidings.SubscribeOptions{}, everything, func(_ context.Context, e tidings.Event[everythingPayload]) error {
			// Pointers are compared by what they point to, not by address.
			return meet(e, func(e tidings.DomainEvent) any {
				payload := e.(tidings.Event[everythingPayload]).Payload()
				if payload.Maybe != nil {
					payload.Words = append(payload.Words, fmt.Sprint(*payload.Maybe))
					payload.Maybe = nil
				}
				return payload
			})
		})
		subscribe(s, b, "bells", tidings.SubscribeOptions{}, bellRung, func(_ context.Context, e tidings.Event[emptyPayload]) error {
			return meet(e, func(e tidings.DomainEvent) any { return e.(tidings.Event[emptyPayload]).Payload() })
		})
	})
	for _, e := range sent {
		p.publish(e)
	}
	s.eventually("every event arrives", func() bool { mu.Lock(); defer mu.Unlock(); return len(got) == len(sent) }, nil)
	if n := p.seen.count(tidings.DeadLettered); n > 0 {
		s.Errorf("%d dead letters: %+v", n, p.seen.of(tidings.DeadLettered))
	}
}

func payloadsAreNotShared(s *scene) {
	attempts := make(chan string, 16)
	p := s.start(settings{}, func(b *tidings.Bus) {
		for _, name := range []string{"first", "second", "third"} {
			subscribe(s, b, name, tidings.SubscribeOptions{MaxAttempts: 3}, everything, func(ctx context.Context, e tidings.Event[everythingPayload]) error {
				payload := e.Payload()
				attempts <- fmt.Sprintf("%v %v %d %d %v", payload.Words, payload.Counts, payload.Bytes, *payload.Maybe, payload.Nested.Words)
				payload.Words[0], payload.Bytes[0], *payload.Maybe, payload.Nested.Words[0] = name, 9, 9, name
				payload.Counts[name] = 9
				if d, _ := tidings.DeliveryFrom(ctx); d.Attempt == 1 {
					return errNotYet
				}
				return nil
			})
		}
	})
	number := 1
	payload := everythingPayload{Words: []string{"a", "b"}, Counts: map[string]int64{"a": 1}, Bytes: []byte{1, 2}, Maybe: &number, Nested: nestedPayload{Words: []string{"c"}}}
	event := everything.New("a", payload)
	payload.Words[0], payload.Bytes[0], number, payload.Nested.Words[0] = "changed", 7, 7, "changed"
	p.publish(event)
	for range 6 {
		select {
		case got := <-attempts:
			if want := "[a b] map[a:1] [1 2] 1 [c]"; got != want {
				s.Errorf("an attempt saw %s, %s was published", got, want)
			}
		case <-time.After(s.patience()):
			s.Fatal("three subscriptions with two attempts each do not come")
		}
	}
}

func causes(s *scene) {
	answers := make(chan tidings.Event[stepPayload], 2)
	var p *process
	p = s.declare(settings{}, func(b *tidings.Bus) {
		subscribe(s, b, "asked", tidings.SubscribeOptions{}, stepTaken, func(ctx context.Context, e tidings.Event[stepPayload]) error {
			return p.Publish(ctx, stepAnswered.New(e.AggregateID(), stepPayload{Number: e.Payload().Number}))
		})
		subscribe(s, b, "answered", tidings.SubscribeOptions{}, stepAnswered, func(_ context.Context, e tidings.Event[stepPayload]) error {
			answers <- e
			return nil
		})
	})
	p.run()
	p.ready()
	root := stepTaken.New("one", stepPayload{})
	child := stepTaken.New("two", stepPayload{Number: 1}, tidings.CausedBy(root))
	p.publish(root, child)
	for range 2 {
		var e tidings.Event[stepPayload]
		select {
		case e = <-answers:
		case <-time.After(s.patience()):
			s.Fatal("no answer")
		}
		cause := []tidings.Event[stepPayload]{root, child}[e.Payload().Number]
		if e.CausationID() != cause.ID() || e.CorrelationID() != root.ID() {
			s.Errorf("the answer has causation %q and correlation %q, want %q and %q", e.CausationID(), e.CorrelationID(), cause.ID(), root.ID())
		}
	}
}

// tracer sets headers on what is published and reads them before a handler.
type tracer struct {
	mu  sync.Mutex
	got map[string]driver.Headers
}

var (
	_ tidings.PublishObserver = (*tracer)(nil)
	_ tidings.ProcessObserver = (*tracer)(nil)
)

const (
	sampleTraceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	sampleTracestate  = "vendor=opaque"
)

type spanKey struct{}

func (*tracer) Observe(context.Context, tidings.Observation) {}

func (*tracer) ObservePublish(ctx context.Context, p *tidings.Publication) (context.Context, func(error)) {
	for n, e := range p.Events {
		p.SetHeader(n, driver.HeaderTraceparent, sampleTraceparent)
		p.SetHeader(n, driver.HeaderTracestate, sampleTracestate)
		p.SetHeader(n, "tenant", "é "+e.AggregateID())
	}
	return ctx, nil
}

func (o *tracer) ObserveProcess(ctx context.Context, e tidings.DomainEvent, headers driver.Headers) (context.Context, func(error)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.got[e.AggregateID()] = append(driver.Headers(nil), headers...)
	return context.WithValue(ctx, spanKey{}, e.AggregateID()), nil
}

func trace(s *scene) {
	o := &tracer{got: make(map[string]driver.Headers)}
	spans := make(chan any, 2)
	p := s.start(settings{options: tidings.Options{Observers: []tidings.Observer{o}}}, func(b *tidings.Bus) {
		subscribe(s, b, "traced", tidings.SubscribeOptions{}, bellRung, func(ctx context.Context, _ tidings.Event[emptyPayload]) error {
			spans <- ctx.Value(spanKey{})
			return nil
		})
	})
	p.publish(bellRung.New("a", emptyPayload{}), bellRung.New("b", emptyPayload{}))
	for range 2 {
		select {
		case span := <-spans:
			if span == nil {
				s.Error("the handler's context is not the one that the observer returned")
			}
		case <-time.After(s.patience()):
			s.Fatal("the events do not arrive")
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, aggregate := range []string{"a", "b"} {
		headers := o.got[aggregate]
		if got := headers.Get(driver.HeaderTraceparent); got != sampleTraceparent {
			s.Errorf("traceparent of %s is %q, want %q", aggregate, got, sampleTraceparent)
		}
		if got := headers.Get(driver.HeaderTracestate); got != sampleTracestate {
			s.Errorf("tracestate of %s is %q, want %q", aggregate, got, sampleTracestate)
		}
		if got, want := headers.Get("tenant"), "é "+aggregate; s.features.Headers && s.features.MaxHeaders == 0 && got != want {
			s.Errorf("header tenant of %s is %q, want %q", aggregate, got, want)
		}
	}
}

func nearTheLimit(s *scene) {
	var mu sync.Mutex
	sizes := map[string]int{}
	p := s.start(settings{}, func(b *tidings.Bus) {
		subscribe(s, b, "large", tidings.SubscribeOptions{}, stepTaken, func(_ context.Context, e tidings.Event[stepPayload]) error {
			mu.Lock()
			defer mu.Unlock()
			sizes[e.AggregateID()] = len(e.Payload().Text)
			return nil
		})
	})
	arrived := func(aggregate string) func() bool {
		return func() bool { mu.Lock(); defer mu.Unlock(); _, ok := sizes[aggregate]; return ok }
	}
	limit := s.features.MaxSize
	if limit == 0 {
		const large = 1 << 20
		p.publish(stepTaken.New("large", stepPayload{Text: strings.Repeat("x", large)}))
		s.eventually("a large event arrives", arrived("large"), nil)
		if sizes["large"] != large {
			s.Errorf("%d bytes arrived, %d were published", sizes["large"], large)
		}
		return
	}
	fill := func(aggregate string, size int) tidings.Event[stepPayload] {
		small := stepTaken.New(aggregate, stepPayload{Text: "x"})
		messages, err := p.Encode(context.Background(), small)
		if err != nil {
			s.Fatalf("Encode: %v", err)
		}
		return stepTaken.New(aggregate, stepPayload{Text: strings.Repeat("x", size-messages[0].Size+1)})
	}
	largest := fill("fits", limit)
	p.publish(largest)
	s.eventually("the largest event arrives", arrived("fits"), nil)
	if want := len(largest.Payload().Text); sizes["fits"] != want {
		s.Errorf("%d bytes arrived, %d were published", sizes["fits"], want)
	}

	err := p.tryPublish(stepTaken.New("small", stepPayload{}), fill("over", limit+1), stepTaken.New("small", stepPayload{}))
	if !errors.Is(err, tidings.ErrTooLarge) || !strings.Contains(fmt.Sprint(err), fmt.Sprint(limit)) {
		s.Fatalf("one byte more than %d: %v, want ErrTooLarge with the limit", limit, err)
	}
	if got, want := s.publishStates(err), "not stored, not stored, not stored"; got != want {
		s.Errorf("states %s, want %s", got, want)
	}
	for _, aggregate := range []string{"small", "over"} {
		p.publish(stepTaken.New(aggregate, stepPayload{Number: 1, Text: "after"}))
		s.eventually("the next event arrives", arrived(aggregate), nil)
	}
	mu.Lock()
	defer mu.Unlock()
	if sizes["small"] != len("after") || p.seen.count(tidings.Handled) != 3 {
		s.Errorf("%d events were handled, want the largest and two small ones; something of the refused call was stored", p.seen.count(tidings.Handled))
	}
}

func invalidAmongValid(s *scene) {
	l := newLedger()
	p := s.start(settings{}, func(b *tidings.Bus) {
		subscribe(s, b, "strict", tidings.SubscribeOptions{}, stepTaken, l.handler(nil))
	})
	good := func(n int) tidings.DomainEvent { return stepTaken.New("a", stepPayload{Number: n}) }
	for name, c := range map[string]struct {
		publisher tidings.Publisher
		bad       tidings.DomainEvent
		sentinel  error
		text      string
	}{
		"an empty aggregate id":    {p, stepTaken.New("", stepPayload{}), nil, "aggregate id"},
		"a zero event":             {p, tidings.Event[stepPayload]{}, nil, "Contract.New"},
		"a number that is none":    {p, everything.New("a", everythingPayload{Ratio: math.NaN()}), nil, "ratio"},
		"text that is not UTF-8":   {p, stepTaken.New("a", stepPayload{Text: "\xff"}), nil, "UTF-8"},
		"another module's event":   {p.Module(module), otherOccurred.New("a", emptyPayload{}), tidings.ErrForeignEvent, "elsewhere"},
		"an id that is too long":   {p, stepTaken.New("a", stepPayload{}, tidings.WithID(strings.Repeat("x", 257))), nil, "256"},
		"a year beyond the wire's": {p, stepTaken.New("a", stepPayload{}, tidings.At(time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC))), nil, "10000"},
	} {
		ctx, cancel := s.limited()
		err := c.publisher.Publish(ctx, good(1), c.bad, good(2))
		cancel()
		if err == nil {
			s.Errorf("%s was published", name)
			continue
		}
		if got, want := s.publishStates(err), "not stored, not stored, not stored"; got != want {
			s.Errorf("%s: states %s, want %s", name, got, want)
		}
		if c.sentinel != nil && !errors.Is(err, c.sentinel) || !strings.Contains(err.Error(), c.text) {
			s.Errorf("%s: the error should say %q and does not: %v", name, c.text, err)
		}
	}
	// Whatever of these calls was stored would come before this one.
	p.publish(l.step("a"), l.step("b"))
	l.audit(s)
}

func honestStates(s *scene) {
	const rounds, size = 24, 40
	var mu sync.Mutex
	arrived := map[string]int{}
	p := s.start(settings{}, func(b *tidings.Bus) {
		subscribe(s, b, "honest", tidings.SubscribeOptions{}, stepTaken, func(_ context.Context, e tidings.Event[stepPayload]) error {
			mu.Lock()
			defer mu.Unlock()
			arrived[e.ID()]++
			return nil
		})
	})
	states := map[string]tidings.PublishState{}
	counts := map[tidings.PublishState]int{}
	before, cancel := context.WithCancel(context.Background())
	cancel()
	early := stepTaken.New("a-0", stepPayload{})
	if err := p.Publish(before, early); !errors.Is(err, context.Canceled) || s.publishStates(err) != "not stored" {
		s.Errorf("a publish whose context had ended: %v", err)
	}
	states[early.ID()] = tidings.NotStored
	for round := range rounds {
		var events []tidings.DomainEvent
		for n := range size {
			events = append(events, stepTaken.New(fmt.Sprint("a-", n%8), stepPayload{Number: round}))
		}
		// Contexts end at every moment between the call and its end.
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(round)*s.scale(400*time.Microsecond))
		err := p.Publish(ctx, events...)
		cancel()
		failed, partly := errors.AsType[*tidings.PublishError](err)
		if partly && !slices.ContainsFunc(failed.Results, func(r tidings.PublishResult) bool { return r.State != tidings.Stored }) {
			s.Errorf("Publish failed, and calls each of its events stored: %v", err)
		}
		for n, e := range events {
			switch {
			case err == nil:
				states[e.ID()] = tidings.Stored
			case partly:
				states[e.ID()] = failed.Results[n].State
			default:
				s.Fatalf("Publish: %v, want a *tidings.PublishError", err)
			}
			counts[states[e.ID()]]++
		}
	}
	s.Logf("%d stored, %d not stored, %d unknown", counts[tidings.Stored], counts[tidings.NotStored], counts[tidings.Unknown])
	var last []tidings.DomainEvent
	for n := range 8 {
		e := stepTaken.New(fmt.Sprint("a-", n), stepPayload{Number: rounds})
		states[e.ID()] = tidings.Stored
		last = append(last, e)
	}
	p.publish(last...)
	s.eventually("everything that is stored arrives", func() bool {
		mu.Lock()
		defer mu.Unlock()
		for id, state := range states {
			if state == tidings.Stored && arrived[id] == 0 {
				return false
			}
		}
		return true
	}, nil)
	mu.Lock()
	defer mu.Unlock()
	for id, state := range states {
		if state == tidings.NotStored && arrived[id] > 0 {
			s.Errorf("event %s arrived, and Publish had called it not stored", id)
		}
	}
}

func publishWhenClosed(s *scene) {
	refused := stepTaken.New("a", stepPayload{Number: 1})
	try := func(p *process, when string) {
		err := p.tryPublish(refused, refused)
		if !errors.Is(err, tidings.ErrClosed) || s.publishStates(err) != "not stored, not stored" {
			s.Errorf("publish %s: %v, want ErrClosed and nothing stored", when, err)
		}
	}
	ran := s.start(settings{}, nil)
	ran.stop()
	try(ran, "after Run")
	never := s.declare(settings{}, nil)
	ctx, cancel := s.limited()
	defer cancel()
	if err := never.Close(ctx); err != nil {
		s.Errorf("Close of a bus that never ran: %v", err)
	}
	try(never, "after Close")
	if !s.features.Durable {
		return
	}
	var mu sync.Mutex
	var got []int
	p := s.start(settings{}, func(b *tidings.Bus) {
		subscribe(s, b, "late", tidings.SubscribeOptions{}, stepTaken, func(_ context.Context, e tidings.Event[stepPayload]) error {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, e.Payload().Number)
			return nil
		})
	})
	p.publish(stepTaken.New("a", stepPayload{Number: 2}))
	s.eventually("an event of an open bus arrives", func() bool { mu.Lock(); defer mu.Unlock(); return len(got) > 0 }, nil)
	if got[0] != 2 {
		s.Error("what was published to a closed bus was stored")
	}
}

func throughAnOutage(s *scene) {
	l := newLedger()
	p := s.start(settings{}, func(b *tidings.Bus) {
		subscribe(s, b, "patient", tidings.SubscribeOptions{}, stepTaken, l.handler(nil))
	})
	p.publish(l.steps("a", 10)...)
	restore := s.broker.Interrupt(s.T)
	var sending sync.WaitGroup
	sending.Go(func() {
		event := l.step("a")
		for deadline := time.Now().Add(s.patience()); ; {
			ctx, cancel := context.WithTimeout(context.Background(), s.scale(500*time.Millisecond))
			err := p.Publish(ctx, event) // the same value: a second copy is a duplicate
			cancel()
			if err == nil {
				return
			}
			if time.Now().After(deadline) {
				s.Errorf("the broker is back, and Publish fails: %v", err)
				return
			}
		}
	})
	s.eventually("a publish fails while the broker is away", func() bool { return p.seen.count(tidings.PublishFailed) > 0 }, nil)
	restore()
	sending.Wait()
	p.publish(l.steps("a", 10)...)
	l.audit(s)
}
