package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/memory"
)

// sharedChannel has two types, of which releases know one or both.
const sharedChannel = "numbers.shared"

var (
	sharedA = tidings.Define[numberPayload]("numbers.shared.a", 1, tidings.Repeatable, tidings.Channel(sharedChannel))
	sharedB = tidings.Define[numberPayload]("numbers.shared.b", 1, tidings.Repeatable, tidings.Channel(sharedChannel))
)

var declaredA, declaredB = driver.Declaration{Channel: sharedChannel, Type: sharedA.Type()}, driver.Declaration{Channel: sharedChannel, Type: sharedB.Type()}

// keptRecord is a record of declarations of one subscription, over all processes.
type keptRecord struct {
	mu     sync.Mutex
	all    map[driver.Declaration]bool
	reads  int
	silent chan struct{} // not nil: it does not answer until that is closed
	broken bool
	takes  time.Duration // how long an answer is under way
}

func newRecord(declared ...driver.Declaration) *keptRecord {
	r := &keptRecord{all: map[driver.Declaration]bool{}}
	for _, one := range declared {
		r.all[one] = true
	}
	return r
}

func (r *keptRecord) Declare(_ context.Context, _ string, handled []driver.Declaration) ([]driver.Declaration, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, one := range handled {
		r.all[one] = true
	}
	return r.list(), nil
}

func (r *keptRecord) list() (all []driver.Declaration) {
	for one := range r.all {
		all = append(all, one)
	}
	return all
}

func (r *keptRecord) Declared(ctx context.Context, _ string) ([]driver.Declaration, error) {
	r.mu.Lock()
	r.reads++
	silent, all := r.silent, r.list() // as it was when the call began
	broken, takes := r.broken, r.takes
	r.mu.Unlock()
	if broken {
		return nil, errors.New("the record is away")
	}
	pass(takes)
	if silent != nil {
		select {
		case <-silent:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return all, nil
}

func (r *keptRecord) ForgetType(_ context.Context, _, eventType string) (known bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for one := range r.all {
		if one.Type == eventType {
			known = true
			delete(r.all, one)
		}
	}
	return known, nil
}

func (r *keptRecord) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

func (r *keptRecord) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reads
}

// recordDriver is a durable log whose driver keeps a record.
type recordDriver struct {
	*randomDriver
	*keptRecord
}

// heard remembers what an observer was told that matters here.
type heard struct {
	mu       sync.Mutex
	ignored  int
	held     []string // reasons
	warnings []string
}

func (h *heard) Observe(_ context.Context, o tidings.Observation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch o.Kind {
	case tidings.Ignored:
		h.ignored++
	case tidings.Held:
		h.held = append(h.held, o.Reason)
	case tidings.Reported:
		if o.Report.Kind == driver.ReportWarning {
			h.warnings = append(h.warnings, o.Report.Text)
		}
	}
}

func (h *heard) look(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

// release is one process of a release of the subscription numbers.reader.
type release struct {
	*tidings.Bus
	done *diary
	seen *heard
	stop func()
}

// startRelease runs a release that handles A and has these reactions besides, and
// gives it every partition.
func startRelease(t *testing.T, broker *randomBroker, record *keptRecord, lanes driver.Lanes, more func(*diary) []tidings.Reaction) *release {
	t.Helper()
	r := &release{done: &diary{}, seen: &heard{}}
	r.Bus = tidings.New(recordDriver{&randomDriver{broker}, record}, &tidings.Options{Logger: discard(), Lanes: lanes, Observers: []tidings.Observer{r.seen}})
	reactions := []tidings.Reaction{sharedA.On(handleShared(r.done, "A"))}
	if more != nil {
		reactions = append(reactions, more(r.done)...)
	}
	r.Module("numbers").Subscribe("reader", nil, reactions...)
	r.stop = start(t, r.Bus)
	for _, p := range broker.partitions {
		broker.move(p, tidings.ConsumerOf(r.Bus).(*randomConsumer), true)
	}
	return r
}

func handleShared(d *diary, name string) func(context.Context, tidings.Event[numberPayload]) error {
	return func(_ context.Context, e tidings.Event[numberPayload]) error {
		d.add("%s%s%d", e.AggregateID(), name, e.Payload().Number)
		return nil
	}
}

func handlesB(d *diary) []tidings.Reaction {
	return []tidings.Reaction{sharedB.On(handleShared(d, "B"))}
}

func publishAll(t *testing.T, b *tidings.Bus, events ...tidings.DomainEvent) {
	t.Helper()
	if err := b.Publish(t.Context(), events...); err != nil {
		t.Fatal(err)
	}
}

func eventA(aggregate string, n int) tidings.DomainEvent {
	return sharedA.New(aggregate, numberPayload{n})
}
func eventB(aggregate string, n int) tidings.DomainEvent {
	return sharedB.New(aggregate, numberPayload{n})
}

// The record that an instance read when it started says nothing about what was
// declared since: an event of a type that it lacks is judged by a read that began
// after the event came.
func TestATypeThatAnotherReleaseDeclaredIsLeftForIt(t *testing.T) {
	for _, kept := range []string{"in memory", "in a store"} {
		t.Run(kept, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				broker, record := newRandomBroker(), newRecord()
				record.takes = 50 * time.Millisecond // what is known until then is old
				var lanes driver.Lanes
				if kept == "in a store" {
					lanes = newFencedLanes(func() bool { return false })
				}
				old := startRelease(t, broker, record, lanes, nil)
				record.set(func() { record.all[declaredB] = true }) // the new release starts elsewhere
				publishAll(t, old.Bus, eventA("x", 1), eventB("x", 2), eventA("x", 3), eventA("y", 1))
				pass(time.Minute)
				synctest.Wait()
				if got := old.done.String(); got != "xA1 yA1" && got != "yA1 xA1" {
					t.Errorf("the old release handled %q, want what is not behind the event that it lacks", got)
				}
				health := old.Health()
				if want := []tidings.Lacked{{Channel: sharedChannel, Type: sharedB.Type(), Held: 1}}; !slices.Equal(health.Subscriptions[0].Lacks, want) || !health.Ready {
					t.Errorf("health: ready %t, lacks %+v, want ready and %+v", health.Ready, health.Subscriptions[0].Lacks, want)
				}
				old.seen.look(func() {
					if len(old.seen.held) == 0 || slices.ContainsFunc(old.seen.held, func(r string) bool { return r != "lacking" }) || old.seen.ignored > 0 {
						t.Errorf("held for %q, %d ignored", old.seen.held, old.seen.ignored)
					}
					if len(old.seen.warnings) != 1 || !strings.Contains(old.seen.warnings[0], "forget-type numbers.reader numbers.shared.b") || !strings.Contains(old.seen.warnings[0], "Ignored()") {
						t.Errorf("warnings: %q", old.seen.warnings)
					}
				})
				if left := broker.unfinished(); lanes == nil && left != 2 {
					t.Errorf("%d events are unfinished, want the held one and the one behind it", left)
				}
				old.stop()
				next := startRelease(t, broker, record, lanes, handlesB)
				pass(time.Minute)
				synctest.Wait()
				if got := next.done.String(); got != "xB2 xA3" {
					t.Errorf("the new release handled %q, want what was left for it, in order", got)
				}
				if left := broker.unfinished(); left != 0 {
					t.Errorf("%d events are unfinished", left)
				}
				next.stop()
			})
		})
	}
}

// What nobody declared is finished unseen, and one read of the record answers for
// everything that came before it began.
func TestATypeThatNobodyDeclaredIsFinishedUnseen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker, record := newRandomBroker(), newRecord()
		r := startRelease(t, broker, record, nil, nil)
		const events = 500
		silent := make(chan struct{})
		record.set(func() { record.silent = silent })
		before := record.count()
		for n := range events {
			publishAll(t, r.Bus, eventB(fmt.Sprint("b", n%7), n))
		}
		publishAll(t, r.Bus, eventA("other", 1), eventA("b0", events))
		pass(time.Second)
		synctest.Wait()
		if got := r.done.String(); got != "otherA1" || broker.unfinished() != events+1 {
			t.Errorf("while the record did not answer: handled %q, %d unfinished of %d", got, broker.unfinished(), events+1)
		}
		close(silent)
		pass(time.Second)
		synctest.Wait()
		if got := r.done.String(); got != fmt.Sprint("otherA1 b0A", events) || broker.unfinished() != 0 {
			t.Errorf("handled %q, %d unfinished", got, broker.unfinished())
		}
		r.seen.look(func() {
			if r.seen.ignored != events || len(r.seen.held) > 0 {
				t.Errorf("%d ignored, held %q", r.seen.ignored, r.seen.held)
			}
		})
		if reads := record.count() - before; reads > 3 {
			t.Errorf("%d reads of the record for %d events that came while one read was under way", reads, events)
		}
		r.stop()
	})
}

// While the record cannot be read nothing is finished on a guess; other aggregates
// flow.
func TestNothingIsFinishedWhileTheRecordIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker, record := newRandomBroker(), newRecord()
		r := startRelease(t, broker, record, nil, nil)
		record.set(func() { record.broken = true })
		publishAll(t, r.Bus, eventB("x", 1), eventA("x", 2), eventA("y", 1))
		pass(time.Hour)
		synctest.Wait()
		if got := r.done.String(); got != "yA1" || broker.unfinished() != 2 {
			t.Errorf("handled %q, %d unfinished", got, broker.unfinished())
		}
		record.set(func() { record.broken = false })
		pass(time.Minute)
		synctest.Wait()
		if got := r.done.String(); got != "yA1 xA2" || broker.unfinished() != 0 {
			t.Errorf("handled %q, %d unfinished", got, broker.unfinished())
		}
		r.stop()
	})
}

// A type that an operator has taken out of the record is finished unseen, also where
// events of it are held already.
func TestAForgottenTypeHoldsNothing(t *testing.T) {
	for _, kept := range []string{"in memory", "in a store"} {
		t.Run(kept, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				broker, record := newRandomBroker(), newRecord(declaredB)
				var lanes driver.Lanes
				store := newFencedLanes(func() bool { return false })
				if kept == "in a store" {
					lanes = store
				}
				r := startRelease(t, broker, record, lanes, nil)
				publishAll(t, r.Bus, eventB("x", 1), eventA("x", 2))
				pass(time.Minute)
				synctest.Wait()
				if got := r.done.String(); got != "" {
					t.Fatalf("handled %q before it was forgotten", got)
				}
				if known, err := record.ForgetType(t.Context(), "numbers.reader", sharedB.Type()); err != nil || !known {
					t.Fatal(known, err)
				}
				pass(time.Minute)
				synctest.Wait()
				if got := r.done.String(); got != "xA2" || broker.unfinished()+store.held() != 0 {
					t.Errorf("handled %q, %d unfinished, %d parked", got, broker.unfinished(), store.held())
				}
				if lacks := r.Health().Subscriptions[0].Lacks; lacks != nil {
					t.Errorf("lacks %+v", lacks)
				}
				r.stop()
			})
		})
	}
}

// Ignored is said by this release: the record is not asked, and keeps the type.
func TestAnIgnoredTypeIsFinishedUnseen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker, record := newRandomBroker(), newRecord(declaredB)
		r := startRelease(t, broker, record, nil, func(*diary) []tidings.Reaction { return []tidings.Reaction{sharedB.Ignored()} })
		reads := record.count()
		publishAll(t, r.Bus, eventB("x", 1), eventA("x", 2), eventB("x", 3))
		pass(time.Second)
		synctest.Wait()
		if got := r.done.String(); got != "xA2" || broker.unfinished() != 0 || record.count() != reads {
			t.Errorf("handled %q, %d unfinished, %d reads", got, broker.unfinished(), record.count()-reads)
		}
		r.seen.look(func() {
			if r.seen.ignored != 2 || len(r.seen.warnings) > 0 {
				t.Errorf("%d ignored, warnings %q", r.seen.ignored, r.seen.warnings)
			}
		})
		if lacks := r.Health().Subscriptions[0].Lacks; lacks != nil || !record.all[declaredB] {
			t.Errorf("lacks %+v, the record has it: %t", lacks, record.all[declaredB])
		}
		described := r.Describe().Subscriptions[0]
		if !slices.Equal(described.Types, []string{sharedA.Type()}) || !slices.Equal(described.Ignored, []string{sharedB.Type()}) {
			t.Errorf("described as %+v", described)
		}
		r.stop()
	})
}

func TestAnIgnoredTypeInMemory(t *testing.T) {
	b := tidings.New(memory.New(nil), &tidings.Options{Logger: discard()})
	done := &diary{}
	b.Module("numbers").Subscribe("reader", nil, sharedA.On(handleShared(done, "A")), sharedB.Ignored())
	start(t, b)
	publishAll(t, b, eventB("x", 1), eventA("x", 2))
	if got := done.String(); got != "xA2" {
		t.Errorf("handled %q", got)
	}
}

// A release declares what it handles before it is given anything, and not what it
// ignores.
func TestAReleaseDeclaresWhatItHandles(t *testing.T) {
	broker, record := newRandomBroker(), newRecord()
	startRelease(t, broker, record, nil, func(*diary) []tidings.Reaction { return []tidings.Reaction{sharedB.Ignored()} })
	if got := record.list(); !slices.Equal(got, []driver.Declaration{declaredA}) {
		t.Errorf("the record has %+v", got)
	}
}

// Health says what another release has declared since, before any event of it comes,
// also on a channel that this one does not read.
func TestHealthSaysWhatAnotherReleaseHandles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker, record := newRandomBroker(), newRecord()
		r := startRelease(t, broker, record, nil, nil)
		far := driver.Declaration{Channel: "numbers.far", Type: "numbers.far.away"}
		record.set(func() { record.all[far] = true })
		pass(time.Minute)
		synctest.Wait()
		health := r.Health()
		if want := []tidings.Lacked{{Channel: far.Channel, Type: far.Type}}; !slices.Equal(health.Subscriptions[0].Lacks, want) || !health.Ready {
			t.Errorf("health: ready %t, lacks %+v", health.Ready, health.Subscriptions[0].Lacks)
		}
		r.seen.look(func() {
			if len(r.seen.warnings) != 1 {
				t.Errorf("%d warnings: %q", len(r.seen.warnings), r.seen.warnings)
			}
		})
		r.stop()
	})
}

func TestComplaintsAboutIgnored(t *testing.T) {
	for name, c := range map[string]struct {
		reactions []tidings.Reaction
		want      string
	}{
		"alone":       {[]tidings.Reaction{sharedA.Ignored(), sharedB.Ignored()}, "handles nothing"},
		"and handled": {[]tidings.Reaction{sharedA.On(handleShared(&diary{}, "A")), sharedA.Ignored()}, "both handles numbers.shared.a and says that it is Ignored"},
		"twice":       {[]tidings.Reaction{sharedA.On(handleShared(&diary{}, "A")), sharedB.Ignored(), sharedB.Ignored()}, "numbers.shared.b"},
	} {
		b := tidings.New(memory.New(nil), nil)
		b.Module("numbers").Subscribe("reader", nil, c.reactions...)
		err := b.Run(t.Context())
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
