package drivertest

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"unicode/utf8"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
)

func undecodable(s *scene) {
	l := newLedger()
	p := s.start(settings{}, func(b *tidings.Bus) {
		subscribe(s, b, "reader", tidings.SubscribeOptions{}, stepTaken, l.handler(nil))
	})
	// Aggregate ids give the dead letters an order; brokers without headers have none.
	header := func(name string, eventType string) driver.Headers {
		headers := driver.Headers{{Name: driver.HeaderAggregateID, Value: name}}
		headers.Set(driver.HeaderEventType, eventType)
		return headers
	}
	foreign := []struct {
		name    string
		headers driver.Headers
		body    []byte
	}{
		{"1 no JSON", header("1 no JSON", stepTaken.Type()), []byte("hello")},
		{"2 binary", header("2 binary", ""), []byte{0xFF, 0xFE, 0, 1, 2}},
		{"3 an array", header("3 an array", ""), []byte("[1,2]")},
		{"4 cut off", header("4 cut off", ""), []byte(`{"aggregateId":"a","eventType":"` + stepTaken.Type() + `","payload":{"number":`)},
		{"5 another type within", header("5 another type within", stepAnswered.Type()),
			[]byte(`{"id":"x","aggregateId":"a","eventType":"` + stepTaken.Type() + `","occurredAt":"2026-01-01T00:00:00.000Z","version":1,"payload":{"number":1}}`)},
		{"6 a payload of other types", header("6 a payload of other types", stepTaken.Type()),
			[]byte(`{"id":"y","aggregateId":"6 a payload of other types","eventType":"` + stepTaken.Type() + `","occurredAt":"2026-01-01T00:00:00.000Z","version":1,"payload":{"number":"one"}}`)},
	}
	want := map[string]bool{}
	for n, f := range foreign {
		if s.features.Text && !utf8.Valid(f.body) {
			continue // it cannot come to be there
		}
		if !s.features.Headers {
			if f.headers = nil; n == 4 {
				continue // nothing contradicts it
			}
		}
		want[string(f.body)] = true
		p.publish(l.step("a"))
		s.putRaw(driver.Message{Channel: stepTaken.Type(), Type: stepTaken.Type(), Key: "a", ID: f.name, Headers: f.headers, Body: f.body})
	}
	p.publish(l.steps("a", 2)...)
	l.audit(s)
	letters := s.letters(p, len(want))
	for _, o := range p.seen.of(tidings.DeadLettered) {
		if o.Reason != "undecodable" {
			s.Errorf("dead-lettered with reason %q: %+v", o.Reason, o)
		}
	}
	for _, letter := range letters {
		at := slices.IndexFunc(foreign, func(f struct {
			name    string
			headers driver.Headers
			body    []byte
		}) bool {
			return bytes.Equal(f.body, letter.Body)
		})
		if at < 0 {
			s.Errorf("a dead letter has body %q, which nobody stored", letter.Body)
			continue
		}
		if letter.Reason != "undecodable" || letter.Err == "" || letter.ID == "" || letter.Position == "" {
			s.Errorf("the dead letter of %s: %+v", foreign[at].name, letter)
		}
		if s.features.Headers && letter.Headers.Get(driver.HeaderAggregateID) != foreign[at].name {
			s.Errorf("the dead letter of %s has headers %v", foreign[at].name, letter.Headers)
		}
	}
}

func olderVersion(s *scene) {
	var mu sync.Mutex
	var got []string
	p := s.start(settings{}, func(b *tidings.Bus) {
		subscribe(s, b, "papers", tidings.SubscribeOptions{}, paperTitled, func(ctx context.Context, e tidings.Event[paperV2]) error {
			d, _ := tidings.DeliveryFrom(ctx)
			mu.Lock()
			defer mu.Unlock()
			got = append(got, fmt.Sprintf("%d %q v%d from v%d", e.Payload().Number, e.Payload().Title, e.Version(), d.WireVersion))
			return nil
		})
	})
	p.publish(paperWritten.New("a", paperV1{1}))
	p.publish(paperTitled.New("b", paperV2{2, "title"}))
	s.eventually("both are handled", func() bool { mu.Lock(); defer mu.Unlock(); return len(got) == 2 }, nil)
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(got)
	if want := `[1 "untitled" v2 from v1 2 "title" v2 from v2]`; fmt.Sprint(got) != want {
		s.Errorf("handled %v, want %s", got, want)
	}
}

// papers is the handler of one release: it remembers what it was given.
type papers struct {
	mu  sync.Mutex
	got []string
}

func (p *papers) add(e tidings.DomainEvent, number int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.got = append(p.got, fmt.Sprint(e.AggregateID(), number))
	slices.Sort(p.got)
	return nil
}

func (p *papers) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return fmt.Sprint(p.got)
}

// oldRelease runs the handler of version 1, to which version 2 is given.
func (s *scene) oldRelease() (*process, *papers) {
	s.Helper()
	var old papers
	p := s.start(settings{}, func(b *tidings.Bus) {
		subscribe(s, b, "papers", tidings.SubscribeOptions{}, paperWritten, func(_ context.Context, e tidings.Event[paperV1]) error {
			return old.add(e, e.Payload().Number)
		})
	})
	p.publish(paperWritten.New("a", paperV1{1}), paperTitled.New("a", paperV2{2, "new"}), paperWritten.New("a", paperV1{3}))
	p.publish(paperWritten.New("b", paperV1{1}), paperWritten.New("b", paperV1{2}))
	want := "[a1 b1 b2]"
	if !s.features.Ordered && s.features.MaxDelay > 0 { // it is given back, and others overtake it
		want = "[a1 a3 b1 b2]"
	}
	s.eventually("what the old release can read is handled", func() bool { return old.String() == want }, old.String)
	s.eventually("the newer event is held", func() bool { return p.seen.count(tidings.Held) > 0 }, nil)
	return p, &old
}

func newerVersionIsHeld(s *scene) {
	p, old := s.oldRelease()
	p.publish(paperWritten.New("c", paperV1{1}))
	s.eventually("other lanes flow", func() bool { return p.seen.count(tidings.Handled) >= 4 }, old.String)
	p.stop()
	for _, kind := range []tidings.Kind{tidings.DeadLettered, tidings.Retried} {
		if n := p.seen.count(kind); n > 0 {
			s.Errorf("%d events %v", n, kind)
		}
	}
	for _, o := range p.seen.of(tidings.Started) {
		if o.Version == 2 {
			s.Error("the newer event was started")
		}
	}
}

func newerVersionFlows(s *scene) {
	p, _ := s.oldRelease()
	p.stop()
	var mu sync.Mutex
	var got []string
	p = s.start(settings{}, func(b *tidings.Bus) {
		subscribe(s, b, "papers", tidings.SubscribeOptions{}, paperTitled, func(_ context.Context, e tidings.Event[paperV2]) error {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, fmt.Sprint(e.AggregateID(), e.Payload().Number, " ", e.Payload().Title))
			return nil
		})
	})
	p.publish(paperTitled.New("a", paperV2{4, "last"}))
	list := func() string { mu.Lock(); defer mu.Unlock(); return fmt.Sprint(got) }
	want := "[a2 new a3 untitled a4 last]"
	if !s.features.Ordered {
		want = "[a2 new a4 last]"
	}
	s.eventually("the new release handles "+want, func() bool {
		if all := list(); s.features.Ordered || all == want {
			return all == want
		}
		return list() == "[a4 last a2 new]"
	}, list)
}
