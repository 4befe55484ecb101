package drivertest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
)

// keeper is a driver value of its own as one that keeps a record.
func (s *scene) keeper() driver.Declarations {
	s.Helper()
	k, ok := s.open().(driver.Declarations)
	if !ok {
		s.Fatal("the driver keeps no record")
	}
	return k
}

func handles(channel, eventType string) driver.Declaration {
	return driver.Declaration{Channel: channel, Type: eventType}
}

func (s *scene) declares(k driver.Declarations, subscription string, handled ...driver.Declaration) []driver.Declaration {
	s.Helper()
	ctx, cancel := s.limited()
	defer cancel()
	all, err := k.Declare(ctx, subscription, handled)
	if err != nil {
		s.Errorf("Declare %v for %s: %v", handled, subscription, err)
	}
	return all
}

// wantDeclared reads the record of a subscription.
func (s *scene) wantDeclared(k driver.Declarations, subscription string, want ...driver.Declaration) {
	s.Helper()
	ctx, cancel := s.limited()
	defer cancel()
	got, err := k.Declared(ctx, subscription)
	if err != nil || !slices.Equal(got, want) {
		s.Errorf("the record of %s has %v (%v), want %v", subscription, got, err, want)
	}
}

func (s *scene) forgets(k driver.Declarations, subscription, eventType string, want bool) {
	s.Helper()
	ctx, cancel := s.limited()
	defer cancel()
	if known, err := k.ForgetType(ctx, subscription, eventType); err != nil || known != want {
		s.Errorf("ForgetType %s of %s: %t (%v), want %t", eventType, subscription, known, err, want)
	}
}

func declarationsAreAUnion(s *scene) {
	first, second := s.keeper(), s.keeper()
	name, other := module+".declares", module+".declares-too"
	a, b, c := handles("conformance.a", "conformance.a.done"), handles("conformance.a", "conformance.b.done"), handles("conformance.c", "conformance.c.done")
	s.wantDeclared(first, name)
	if got := s.declares(first, name, a); !slices.Equal(got, []driver.Declaration{a}) {
		s.Errorf("Declare returns %v, want %v", got, a)
	}
	if got := s.declares(second, name, c, b); !slices.Equal(got, []driver.Declaration{a, b, c}) {
		s.Errorf("Declare returns %v, want all three, sorted", got)
	}
	s.wantDeclared(first, name, a, b, c)
	s.declares(first, name, a) // a release with less takes nothing away
	s.wantDeclared(second, name, a, b, c)
	s.declares(second, other, c)
	s.wantDeclared(first, other, c)
	s.forgets(second, name, "conformance.never.done", false)
	s.forgets(second, name, c.Type, true)
	s.forgets(first, name, c.Type, false)
	s.wantDeclared(first, name, a, b)
	s.wantDeclared(first, other, c)
	s.declares(first, name, c)
	s.wantDeclared(second, name, a, b, c)
	s.wantDeclared(s.keeper(), name, a, b, c) // and for one that starts now
}

func declarationsAtTheSameTime(s *scene) {
	const processes, types = 4, 6
	keepers := make([]driver.Declarations, processes)
	for n := range keepers {
		keepers[n] = s.keeper()
	}
	name := module + ".crowded"
	var all sync.WaitGroup
	var want []driver.Declaration
	for n, k := range keepers {
		for m := range types {
			one := handles(fmt.Sprint("conformance.channel-", m%2), fmt.Sprintf("conformance.type-%d.done-%d", m, n))
			want = append(want, one)
			all.Go(func() {
				if got := s.declares(k, name, one); !slices.Contains(got, one) {
					s.Errorf("Declare returns %v, without what it declares", got)
				}
				// What is declared when a call begins is in its answer.
				ctx, cancel := s.limited()
				defer cancel()
				for _, other := range keepers {
					if got, err := other.Declared(ctx, name); err != nil || !slices.Contains(got, one) {
						s.Errorf("the record has %v (%v), without %v, which was declared before", got, err, one)
					}
				}
			})
		}
	}
	all.Wait()
	slices.SortFunc(want, func(a, b driver.Declaration) int {
		return cmp.Or(cmp.Compare(a.Channel, b.Channel), cmp.Compare(a.Type, b.Type))
	})
	s.wantDeclared(keepers[0], name, want...)
}

func declarationsFollowARenaming(s *scene) {
	d := s.open()
	k := d.(driver.Declarations)
	former, name := module+".former", module+".renamed"
	a, b := handles(rawChannel, rawChannel), handles(rawChannel, "conformance.raw.undone")
	s.declares(k, former, a, b)
	ctx, cancel := s.limited()
	defer cancel()
	rename := func() {
		s.Helper()
		if _, err := d.(driver.Renamer).Rename(ctx, former, driver.Subscription{Name: name, Channels: []string{rawChannel}, Types: []string{rawChannel},
			StartAt: driver.StartAt{Mode: driver.StartBeginning}}); err != nil {
			s.Fatalf("Rename: %v", err)
		}
	}
	rename()
	s.wantDeclared(k, name, a, b)
	s.forgets(k, name, b.Type, true)
	rename() // the next start takes over what is still there, and brings nothing back
	s.wantDeclared(k, name, a)
}

// handledNumbers are the numbers that were handled of each aggregate, each once, in the
// order of their first time.
type handledNumbers struct {
	mu  sync.Mutex
	all map[string][]int
}

func (h *handledNumbers) add(e tidings.DomainEvent, number int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all == nil {
		h.all = make(map[string][]int)
	}
	if of := h.all[e.AggregateID()]; !slices.Contains(of, number) {
		h.all[e.AggregateID()] = append(of, number)
	}
	return nil
}

func (h *handledNumbers) count() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, of := range h.all {
		n += len(of)
	}
	return n
}

func (h *handledNumbers) of(aggregate string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return fmt.Sprint(h.all[aggregate])
}

func (h *handledNumbers) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return fmt.Sprint(h.all)
}

// accountRelease runs a release of a subscription that handles what is opened, and
// what is changed where it is a new one.
func (s *scene) accountRelease(got *handledNumbers, crowd bool, reactions ...tidings.Reaction) *process {
	s.Helper()
	return s.start(settings{crowd: crowd}, func(b *tidings.Bus) {
		opened := accountOpened.On(func(_ context.Context, e tidings.Event[accountPayload]) error {
			return got.add(e, e.Payload().Number)
		})
		b.Module(module).Subscribe("accounts", s.options(tidings.SubscribeOptions{}), append(reactions, opened)...)
	})
}

func handlesChanges(got *handledNumbers) tidings.Reaction {
	return accountChanged.On(func(_ context.Context, e tidings.Event[accountPayload]) error { return got.add(e, e.Payload().Number) })
}

const accounts = 6

// publishAccounts opens and changes each account in turn: numbers grow in each.
func publishAccounts(p *process, from, to int) {
	p.scene.Helper()
	for n := from; n < to; n++ {
		for account := range accounts {
			aggregate := fmt.Sprint("account-", account)
			if n%2 == 0 {
				p.publish(accountOpened.New(aggregate, accountPayload{n}))
			} else {
				p.publish(accountChanged.New(aggregate, accountPayload{n}))
			}
		}
	}
}

// wantAccounts waits until every account has its numbers, in order.
func (s *scene) wantAccounts(got *handledNumbers, to int) {
	s.Helper()
	s.eventually(fmt.Sprintf("%d events of each of %d accounts are handled", to, accounts), func() bool { return got.count() >= accounts*to }, got.String)
	for account := range accounts {
		var want []int
		for n := range to {
			want = append(want, n)
		}
		if of := got.of(fmt.Sprint("account-", account)); of != fmt.Sprint(want) {
			s.Errorf("account %d was handled as %s, want %v", account, of, want)
		}
	}
}

// A new release begins beside the old one and declares one type more. Whoever of them
// an event comes to, the old one passes none that it lacks.
func aTypeIsLeftForItsRelease(s *scene) {
	var got handledNumbers
	old := s.accountRelease(&got, false)
	publishAccounts(old, 0, 1)
	s.eventually("the old release handles what it knows", func() bool { return got.count() == accounts }, got.String)
	next := s.accountRelease(&got, true, handlesChanges(&got))
	next.ready() // it has declared what it handles
	publishAccounts(old, 1, 6)
	s.eventually("the old release says what it lacks, or has nothing left", func() bool {
		return len(old.Health().Subscriptions[0].Lacks) == 1 || got.count() == accounts*6
	}, got.String)
	old.stop()
	s.wantAccounts(&got, 6)
	if n := old.seen.count(tidings.Ignored); n > 0 {
		s.Errorf("the old release finished %d events unseen", n)
	}
	for _, p := range []*process{old, next} {
		if n := p.seen.count(tidings.DeadLettered); n > 0 {
			s.Errorf("%d dead letters", n)
		}
	}
}

// A release is taken back: what only the later one handles waits for it, with what is
// behind it. Then the type is forgotten, or said to be ignored, and waits no more.
func aTypeIsKeptThroughARollback(s *scene) {
	var got handledNumbers
	publisher := s.start(settings{}, nil)
	next := s.accountRelease(&got, false, handlesChanges(&got))
	publishAccounts(publisher, 0, 2)
	s.wantAccounts(&got, 2)
	next.stop()
	old := s.accountRelease(&got, false)
	publishAccounts(publisher, 2, 4)
	s.eventually("the old release meets what it lacks", func() bool {
		lacks := old.Health().Subscriptions[0].Lacks
		return got.count() == accounts*3 && len(lacks) == 1 && lacks[0].Held == accounts && lacks[0].Type == accountChanged.Type()
	}, func() string { return fmt.Sprintf("%s, %+v", got.String(), old.Health().Subscriptions[0].Lacks) })
	old.stop()
	next = s.accountRelease(&got, false, handlesChanges(&got))
	s.wantAccounts(&got, 4)
	next.stop()

	// The last change of each account is left out for good.
	old = s.accountRelease(&got, false)
	publisher.publish(accountChanged.New("account-0", accountPayload{9}), accountOpened.New("account-0", accountPayload{4}))
	s.eventually("it is held", func() bool { return old.seen.count(tidings.Held) > 0 }, nil)
	s.forgets(s.keeper(), module+".accounts", accountChanged.Type(), true)
	s.eventually("what is behind a forgotten type is handled", func() bool { return got.count() == accounts*4+1 }, got.String)
	old.stop()
	s.declares(s.keeper(), module+".accounts", handles(accountChannel, accountChanged.Type()))
	ignoring := s.accountRelease(&got, false, accountChanged.Ignored())
	publisher.publish(accountChanged.New("account-0", accountPayload{9}), accountOpened.New("account-0", accountPayload{5}))
	s.eventually("what is behind an ignored type is handled", func() bool { return got.count() == accounts*4+2 }, got.String)
	if n := ignoring.seen.count(tidings.Held); n > 0 {
		s.Errorf("%d events were held of a type that is ignored", n)
	}
}
