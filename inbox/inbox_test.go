package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/inbox"
)

type userPayload struct {
	Name string `json:"name"`
}

var (
	userCreated = tidings.Define[userPayload]("users.user.created", 1, tidings.Once)
	userRenamed = tidings.Define[userPayload]("users.user.renamed", 1, tidings.Repeatable)
)

// ledgerStore is a database in memory: a transaction works on a copy.
type ledgerStore struct {
	mu      sync.Mutex
	state   ledgerState
	starts  map[string][2]int // all, and those alone
	epochs  map[string]int64
	breaks  int  // how many commits break
	lands   bool // whether a broken commit is carried out
	unknown int  // how many lookups fail
	down    bool // it does not answer
	ends    int
}

type ledgerState struct {
	claims  map[string]driver.ClaimRequest
	effects []string
}

type ledgerTx struct{ state ledgerState }

func newLedgerStore() *ledgerStore {
	return &ledgerStore{state: ledgerState{claims: map[string]driver.ClaimRequest{}}, starts: map[string][2]int{}, epochs: map[string]int64{}}
}

func (s *ledgerStore) setDown(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

func (s *ledgerStore) Transact(ctx context.Context, fn func(context.Context, *ledgerTx) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return errors.New("connection refused")
	}
	tx := &ledgerTx{ledgerState{maps.Clone(s.state.claims), slices.Clone(s.state.effects)}}
	if err := fn(ctx, tx); err != nil {
		return err
	}
	if s.breaks > 0 {
		s.breaks--
		if s.lands {
			s.state = tx.state
		}
		return fmt.Errorf("connection reset: %w", inbox.ErrCommitUnknown)
	}
	s.state = tx.state
	return nil
}

func (s *ledgerStore) Claim(_ context.Context, tx *ledgerTx, r driver.ClaimRequest) (driver.ClaimAnswer, error) {
	if done, ok := tx.state.claims[r.Subscription+r.Key]; ok {
		return driver.ClaimAnswer{State: driver.ClaimDone, Digest: done.Digest}, nil
	}
	tx.state.claims[r.Subscription+r.Key] = r
	return driver.ClaimAnswer{State: driver.ClaimFresh}, nil
}

func (s *ledgerStore) Claimed(_ context.Context, subscription, key, owner string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unknown > 0 {
		s.unknown--
		return false, errors.New("no connection")
	}
	r, ok := s.state.claims[subscription+key]
	return ok && r.Owner == owner, nil
}

func (s *ledgerStore) Start(_ context.Context, subscription, key string, counting driver.Counting) (crashes, alone int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before, known := s.starts[subscription+key]
	after := [2]int{before[0] + 1, before[1]}
	if counting == driver.CountAlone {
		after[1]++
	}
	if !known || counting != driver.CountFirst {
		s.starts[subscription+key] = after
	}
	return before[0], before[1], nil
}

func (s *ledgerStore) End(_ context.Context, subscription, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.starts, subscription+key)
	s.ends++
	return nil
}

func (s *ledgerStore) Advance(_ context.Context, subscription, source string) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epochs[subscription+source]++
	return s.epochs[subscription+source], nil
}

func (s *ledgerStore) Fence(_ context.Context, _ *ledgerTx, subscription, source string, epoch int64) error {
	if s.epochs[subscription+source] > epoch {
		return inbox.ErrFenced
	}
	return nil
}

func (s *ledgerStore) effects() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprint(s.state.effects)
}

// tape is a driver with one source that delivers what it is told to.
type tape struct {
	mu       sync.Mutex
	sink     driver.Sink
	position int
	settled  int
	letters  []driver.DeadLetter
	since    time.Duration // how long before now events were stored
}

type tapeRef int

func (r tapeRef) Position() string { return fmt.Sprint(int(r)) }

func (t *tape) Name() string { return "tape" }
func (t *tape) Features() driver.Features {
	return driver.Features{Durable: true, Ordered: true, Groups: true, FanOut: true, Headers: true, Sources: true}
}
func (t *tape) Close(context.Context) error { return nil }
func (t *tape) Publish(ctx context.Context, messages []driver.Message) error {
	t.mu.Lock()
	var all []driver.Delivery
	for _, m := range messages {
		t.position++
		all = append(all, driver.Delivery{Message: driver.Message{Channel: m.Channel, Headers: slices.Clone(m.Headers), Body: slices.Clone(m.Body)},
			Ref: tapeRef(t.position), Source: driver.Source{Name: "tape/0", Epoch: 1}, Time: time.Now().Add(-t.since)})
	}
	sink := t.sink
	t.mu.Unlock()
	sink.Deliver(context.WithoutCancel(ctx), all)
	return nil
}
func (t *tape) Subscribe(_ context.Context, _ driver.Subscription, sink driver.Sink) (driver.Consumer, error) {
	t.sink = sink
	return t, nil
}
func (t *tape) PutDeadLetter(_ context.Context, letter driver.DeadLetter) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.letters = append(t.letters, letter)
	return nil
}
func (t *tape) Run(ctx context.Context) error { t.sink.Joined(); <-ctx.Done(); return nil }
func (t *tape) Settle(_ context.Context, settlements []driver.Settlement) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.settled += len(settlements)
	return nil
}

// run gives the test a bus whose inbox writes the payload's name.
func run(t *testing.T, d *tape, store *ledgerStore, handle func(context.Context, *ledgerTx, tidings.Event[userPayload]) error, observers ...tidings.Observer) *tidings.Bus {
	t.Helper()
	b := tidings.New(d, &tidings.Options{Logger: slog.New(slog.DiscardHandler), Observers: observers})
	fn := func(ctx context.Context, tx *ledgerTx, e tidings.Event[userPayload]) error {
		tx.state.effects = append(tx.state.effects, e.Payload().Name)
		if handle != nil {
			return handle(ctx, tx, e)
		}
		return nil
	}
	b.Module("billing").Subscribe("profile", &tidings.SubscribeOptions{MaxAttempts: 3, Backoff: tidings.Backoff{Initial: time.Second, Jitter: -1}, UnorderedAcrossTypes: true},
		inbox.On(store, userCreated, fn), inbox.On(store, userRenamed, fn))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	if err := b.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return b
}

func publish(t *testing.T, b *tidings.Bus, events ...tidings.DomainEvent) {
	t.Helper()
	if err := b.Publish(t.Context(), events...); err != nil {
		t.Fatal(err)
	}
}

// after lets a time pass in which everything that is due happens.
func after(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // inside synctest: no real time
	synctest.Wait()
}

// kinds counts observations.
type kinds struct {
	mu     sync.Mutex
	counts map[tidings.Kind]int
}

func (k *kinds) Observe(_ context.Context, o tidings.Observation) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.counts == nil {
		k.counts = map[tidings.Kind]int{}
	}
	k.counts[o.Kind]++
}

func (k *kinds) of(kind tidings.Kind) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.counts[kind]
}

func TestEffectsHappenOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, d, seen := newLedgerStore(), &tape{}, &kinds{}
		b := run(t, d, store, nil, seen)
		ada := userCreated.New("u1", userPayload{"Ada"})
		renamed := userRenamed.New("u1", userPayload{"Ada L."})
		publish(t, b, ada, ada, renamed, renamed, userRenamed.New("u1", userPayload{"Ada K."}))
		publish(t, b, userCreated.New("u1", userPayload{"an impostor"}))
		after(time.Minute)
		if got := store.effects(); got != "[Ada Ada L. Ada K.]" && got != "[Ada L. Ada Ada K.]" && got != "[Ada L. Ada K. Ada]" {
			t.Errorf("effects %s", got)
		}
		if seen.of(tidings.Deduplicated) != 3 || seen.of(tidings.DuplicateDiffers) != 1 || d.settled != 6 {
			t.Errorf("%d deduplicated, %d differ, %d settled", seen.of(tidings.Deduplicated), seen.of(tidings.DuplicateDiffers), d.settled)
		}
	})
}

// A store that does not answer holds the lane: however long that lasts, the event
// uses no attempt and is no dead letter.
func TestAStoreThatDoesNotAnswerHoldsTheLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, d, seen := newLedgerStore(), &tape{}, &kinds{}
		b := run(t, d, store, nil, seen)
		store.setDown(true)
		publish(t, b, userCreated.New("u1", userPayload{"Ada"}))
		after(10 * time.Minute)
		if len(d.letters) != 0 || d.settled != 0 || seen.of(tidings.Retried) != 0 || seen.of(tidings.StoreFailed) == 0 {
			t.Errorf("while the store is down: dead letters %v, %d settled, %d retried, %d store failed", d.letters, d.settled, seen.of(tidings.Retried), seen.of(tidings.StoreFailed))
		}
		store.setDown(false)
		after(time.Minute)
		if store.effects() != "[Ada]" || d.settled != 1 || len(d.letters) != 0 {
			t.Errorf("after that: effects %s, %d settled, dead letters %v", store.effects(), d.settled, d.letters)
		}
	})
}

// An error takes everything back: the claim, the effect and what was published.
func TestAnErrorRollsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, d := newLedgerStore(), &tape{}
		calls := 0
		b := run(t, d, store, func(context.Context, *ledgerTx, tidings.Event[userPayload]) error {
			if calls++; calls < 3 {
				return errors.New("not yet")
			}
			return nil
		})
		publish(t, b, userCreated.New("u1", userPayload{"Ada"}))
		after(time.Minute)
		if store.effects() != "[Ada]" || calls != 3 || len(d.letters) != 0 {
			t.Errorf("effects %s after %d calls, dead letters %v", store.effects(), calls, d.letters)
		}
	})
}

// A commit whose outcome is unknown is looked up: carried out, it is not made
// again, and lost, it is.
func TestAnUnknownCommitIsLookedUp(t *testing.T) {
	for name, c := range map[string]struct {
		lands   bool
		unknown int
		calls   int
	}{
		"carried out":                     {lands: true, calls: 1},
		"lost":                            {lands: false, calls: 2},
		"carried out, and cannot be seen": {lands: true, unknown: 1, calls: 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store, d, calls := newLedgerStore(), &tape{}, 0
				store.breaks, store.lands, store.unknown = 1, c.lands, c.unknown
				b := run(t, d, store, func(context.Context, *ledgerTx, tidings.Event[userPayload]) error { calls++; return nil })
				publish(t, b, userCreated.New("u1", userPayload{"Ada"}))
				after(time.Minute)
				if store.effects() != "[Ada]" || calls != c.calls || d.settled != 1 {
					t.Errorf("effects %s after %d calls, %d settled", store.effects(), calls, d.settled)
				}
			})
		})
	}
}

// An instance that was given the source later fences this one off; if the broker
// says that it is this one's all the same, it goes on with a new epoch.
func TestANewerEpochFences(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, d, seen := newLedgerStore(), &tape{}, &kinds{}
		b := run(t, d, store, nil, seen)
		publish(t, b, userCreated.New("u1", userPayload{"Ada"}))
		after(time.Second)
		if _, err := store.Advance(t.Context(), "billing.profile", "tape/0"); err != nil {
			t.Fatal(err)
		}
		publish(t, b, userCreated.New("u2", userPayload{"Grace"}))
		synctest.Wait()
		if store.effects() != "[Ada]" || seen.of(tidings.Discarded) != 1 {
			t.Errorf("a fenced instance has had effects %s, %d discarded", store.effects(), seen.of(tidings.Discarded))
		}
		after(time.Minute)
		if store.effects() != "[Ada Grace]" || seen.of(tidings.Retried) != 0 || store.epochs["billing.profiletape/0"] != 3 {
			t.Errorf("effects %s, %d retried, epoch %d", store.effects(), seen.of(tidings.Retried), store.epochs["billing.profiletape/0"])
		}
		d.sink.Lose([]driver.Source{{Name: "tape/0", Epoch: 1}})
		publish(t, b, userCreated.New("u3", userPayload{"Edsger"}))
		after(time.Minute)
		if store.effects() != "[Ada Grace]" {
			t.Errorf("an instance that lost the source has had effects %s", store.effects())
		}
	})
}

// What ends its process each time it is started becomes a dead letter; what only
// fails is not taken for that.
func TestWhatCrashesIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, d := newLedgerStore(), &tape{since: time.Hour}
		e := userCreated.New("u1", userPayload{"Ada"})
		b := run(t, d, store, func(context.Context, *ledgerTx, tidings.Event[userPayload]) error { return errors.New("no") })
		store.starts["billing.profile"+"users.user.created\nu1"] = [2]int{3, 1} // three processes have ended, one while it handled nothing else
		publish(t, b, e)
		after(time.Minute)
		if len(d.letters) != 1 || d.letters[0].Reason != "exhausted" || d.letters[0].Attempts != 3 || store.ends != 3 {
			t.Errorf("an event that fails: %+v, %d ends", d.letters, store.ends)
		}
		store.starts["billing.profile"+"users.user.created\nu2"] = [2]int{4, 2}
		publish(t, b, userCreated.New("u2", userPayload{"Grace"}))
		after(time.Minute)
		if len(d.letters) != 2 || d.letters[1].Reason != "crashed" || d.letters[1].AggregateID != "u2" || store.effects() != "[]" {
			t.Errorf("an event that crashes: %+v, effects %s", d.letters, store.effects())
		}
		// What was stored after this process was given its source is not counted.
		d.since = -time.Hour
		before := store.ends
		publish(t, b, userCreated.New("u3", userPayload{"Edsger"}))
		after(time.Minute)
		if store.ends != before {
			t.Error("an event that no earlier process can have started is counted")
		}
	})
}

func TestANilHandlerIsRefused(t *testing.T) {
	b := tidings.New(&tape{}, &tidings.Options{Logger: slog.New(slog.DiscardHandler)})
	b.Module("billing").Subscribe("profile", nil, inbox.On[*ledgerTx](newLedgerStore(), userCreated, nil))
	if err := b.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "the handler of users.user.created v1 is nil") {
		t.Errorf("Run: %v", err)
	}
}
