package tidings_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
)

// randomBroker is a durable log with partitions whose ownership moves between
// consumers at random, in good order or not. It lives in this test only.
type randomBroker struct {
	mu         sync.Mutex
	partitions []*randomPartition
	letters    []driver.DeadLetter
	random     *rand.Rand
	failDead   int
	failSettle int
}

type randomPartition struct {
	name      string
	messages  []driver.Message
	finished  []bool
	owner     *randomConsumer
	epoch     int64
	delivered int
}

type randomDriver struct{ broker *randomBroker }

type randomConsumer struct {
	broker *randomBroker
	sink   driver.Sink
}

type randomRef struct {
	partition *randomPartition
	offset    int
}

func (r randomRef) Position() string { return fmt.Sprint(r.partition.name, "/", r.offset) }

func (d *randomDriver) Name() string { return "random" }
func (d *randomDriver) Features() driver.Features {
	return driver.Features{Durable: true, Ordered: true, Groups: true, FanOut: true, Headers: true, Sources: true}
}
func (d *randomDriver) Publish(_ context.Context, messages []driver.Message) error {
	b := d.broker
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range messages {
		p := b.partitions[int(m.Key[len(m.Key)-1])%len(b.partitions)]
		p.messages = append(p.messages, driver.Message{Channel: m.Channel, Headers: slices.Clone(m.Headers), Body: slices.Clone(m.Body)})
		p.finished = append(p.finished, false)
	}
	return nil
}
func (d *randomDriver) Close(context.Context) error { return nil }
func (d *randomDriver) PutDeadLetter(_ context.Context, letter driver.DeadLetter) error {
	d.broker.mu.Lock()
	defer d.broker.mu.Unlock()
	if d.broker.random.IntN(100) < d.broker.failDead {
		return errors.New("the dead letters are down")
	}
	d.broker.letters = append(d.broker.letters, letter)
	return nil
}
func (d *randomDriver) Subscribe(_ context.Context, _ driver.Subscription, sink driver.Sink) (driver.Consumer, error) {
	return &randomConsumer{broker: d.broker, sink: sink}, nil
}

func (c *randomConsumer) Run(ctx context.Context) error {
	c.sink.Joined()
	for ctx.Err() == nil {
		c.broker.deliver(ctx, c)
		pass(3 * time.Millisecond)
	}
	return nil
}
func (c *randomConsumer) Close(context.Context) error { return nil }

func (c *randomConsumer) Settle(_ context.Context, settlements []driver.Settlement) error {
	b := c.broker
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.random.IntN(100) < b.failSettle {
		return errors.New("the commit failed")
	}
	for _, s := range settlements {
		ref := s.Ref.(randomRef)
		if ref.partition.epoch == s.Source.Epoch && ref.partition.owner == c {
			ref.partition.finished[ref.offset] = true
		}
	}
	return nil
}

func (b *randomBroker) deliver(ctx context.Context, c *randomConsumer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.partitions {
		if p.owner != c {
			continue
		}
		var batch []driver.Delivery
		for ; p.delivered < len(p.messages) && len(batch) < 20; p.delivered++ {
			if !p.finished[p.delivered] {
				batch = append(batch, driver.Delivery{Message: p.messages[p.delivered], Ref: randomRef{p, p.delivered}, Source: driver.Source{Name: p.name, Epoch: p.epoch}})
			}
		}
		if len(batch) > 0 {
			c.sink.Deliver(ctx, batch)
		}
	}
}

// move gives a partition to another consumer: with Revoke, as a rebalance does,
// or with Lose, as a lost session does.
func (b *randomBroker) move(p *randomPartition, to *randomConsumer, orderly bool) {
	b.mu.Lock()
	from, source := p.owner, driver.Source{Name: p.name, Epoch: p.epoch}
	b.mu.Unlock()
	if from != nil && orderly {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		from.sink.Revoke(ctx, []driver.Source{source})
		cancel()
	}
	if from != nil && !orderly {
		from.sink.Lose([]driver.Source{source})
	}
	b.mu.Lock()
	p.owner, p.delivered = to, 0
	p.epoch++
	source = driver.Source{Name: p.name, Epoch: p.epoch}
	b.mu.Unlock()
	to.sink.Report(driver.Report{Kind: driver.ReportAssigned, Source: source})
}

func (b *randomBroker) unfinished() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.partitions {
		for _, done := range p.finished {
			if !done {
				n++
			}
		}
	}
	return n
}

// sharedClaims makes two buses share what each would keep for itself, as a
// durable store does.
type sharedClaims struct {
	mu     sync.Mutex
	states map[string]string
}

func (c *sharedClaims) Claim(_ context.Context, r driver.ClaimRequest) (driver.ClaimAnswer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch owner, known := c.states[r.Key]; {
	case known && owner == "":
		return driver.ClaimAnswer{State: driver.ClaimDone, Digest: r.Digest}, nil
	case known && owner != r.Owner:
		return driver.ClaimAnswer{State: driver.ClaimBusy, Until: time.Now().Add(5 * time.Millisecond)}, nil
	}
	c.states[r.Key] = r.Owner
	return driver.ClaimAnswer{State: driver.ClaimFresh}, nil
}
func (c *sharedClaims) Finish(_ context.Context, r driver.ClaimRequest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.states[r.Key] != r.Owner {
		return driver.ErrNotClaimed
	}
	c.states[r.Key] = ""
	return nil
}
func (c *sharedClaims) Release(_ context.Context, r driver.ClaimRequest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.states[r.Key] == r.Owner {
		delete(c.states, r.Key)
	}
	return nil
}
func (c *sharedClaims) Durable() bool { return true }

// TestOrderUnderRandomFailures is the engine's promise as a property: whatever
// fails and whoever owns a partition, each event ends exactly once as handled
// or dead, and event n of an aggregate ends before event n+1 first starts.
func TestOrderUnderRandomFailures(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		aggregates := rapid.IntRange(1, 8).Draw(rt, "aggregates")
		perAggregate := rapid.IntRange(1, 12).Draw(rt, "events of each")
		failing := rapid.IntRange(0, 60).Draw(rt, "failing percent")
		stores := rapid.IntRange(0, 40).Draw(rt, "store failures percent")
		moves := rapid.IntRange(0, 12).Draw(rt, "moves")
		policy := rapid.SampledFrom([]tidings.Policy{tidings.DeadLetter, tidings.Block, tidings.Park}).Draw(rt, "policy")
		var problems []string
		synctest.Test(t, func(t *testing.T) {
			problems = randomRun(t, seed, aggregates, perAggregate, failing, stores, moves, policy)
		})
		if len(problems) > 0 {
			rt.Fatalf("%d problems, the first: %v", len(problems), problems[:min(5, len(problems))])
		}
	})
}

func randomRun(t *testing.T, seed uint64, aggregates, perAggregate, failing, stores, moves int, policy tidings.Policy) (problems []string) {
	random := rand.New(rand.NewPCG(seed, 1))
	var mu sync.Mutex
	chance := func(percent int) bool { mu.Lock(); defer mu.Unlock(); return random.IntN(100) < percent }
	upTo := func(n int) int { mu.Lock(); defer mu.Unlock(); return random.IntN(n) }

	broker := &randomBroker{random: rand.New(rand.NewPCG(seed, 2)), failDead: stores, failSettle: stores}
	for n := range 3 {
		broker.partitions = append(broker.partitions, &randomPartition{name: fmt.Sprint("p", n)})
	}
	claims := &sharedClaims{states: map[string]string{}}
	lanes := newFencedLanes(func() bool { return chance(stores) })
	options := tidings.Options{Logger: discard(), Claims: claims, DrainTimeout: 5 * time.Second}
	if policy == tidings.Park {
		options.Lanes = lanes
	}

	ended := map[string]int{}   // by aggregate: how many are handled or dead
	handled := map[string]int{} // by aggregate and number
	running := map[string]int{}
	problem := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	dead := map[string]bool{}
	syncDead := func() { // caller holds mu
		broker.mu.Lock()
		defer broker.mu.Unlock()
		for _, letter := range broker.letters {
			var body struct {
				Payload numberPayload `json:"payload"`
			}
			_ = json.Unmarshal(letter.Body, &body)
			if key := fmt.Sprint(letter.AggregateID, "/", body.Payload.Number); !dead[key] {
				dead[key] = true
				if handled[key] > 0 {
					problem("%s was dead-lettered after it was handled", key)
				}
				ended[letter.AggregateID]++
			}
		}
	}
	var consumers []*randomConsumer
	var stops []func()
	for range 2 {
		b := tidings.New(&randomDriver{broker}, &options)
		b.Module("numbers").Subscribe("property", &tidings.SubscribeOptions{
			Concurrency: 4, MaxAttempts: 3, OnExhausted: policy, Timeout: 50 * time.Millisecond,
			Backoff:     tidings.Backoff{Initial: 5 * time.Millisecond, Max: 40 * time.Millisecond},
			ParkBackoff: tidings.Backoff{Initial: 20 * time.Millisecond, Max: 100 * time.Millisecond},
		}, numberChosen.On(func(ctx context.Context, e tidings.Event[numberPayload]) error {
			key := fmt.Sprint(e.AggregateID(), "/", e.Payload().Number)
			mu.Lock()
			syncDead()
			if n := ended[e.AggregateID()]; handled[key] == 0 && !dead[key] && n != e.Payload().Number {
				problem("%s starts while %d of its aggregate have ended", key, n)
			}
			// A dead letter whose settlement was lost comes again to the new owner,
			// perhaps while the old one has not noticed yet that it lost the source.
			if running[e.AggregateID()]++; running[e.AggregateID()] > 1 && !dead[key] {
				problem("%s overlaps", key)
			}
			mu.Unlock()
			pass(time.Duration(upTo(8)) * time.Millisecond)
			fail := chance(failing)
			mu.Lock()
			defer mu.Unlock()
			running[e.AggregateID()]--
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if fail {
				if random.IntN(10) == 0 {
					return tidings.Permanent(errors.New("never"))
				}
				return errors.New("not now")
			}
			if handled[key]++; handled[key] == 1 && !dead[key] {
				ended[e.AggregateID()]++
			}
			return nil
		}))
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- b.Run(ctx) }()
		if err := b.Ready(ctx); err != nil {
			t.Fatal(err)
		}
		stops = append(stops, func() {
			cancel()
			if err := <-done; err != nil {
				problem("Run: %v", err)
			}
		})
		consumers = append(consumers, tidings.ConsumerOf(b).(*randomConsumer))
		for n := range aggregates {
			for number := range perAggregate {
				if len(consumers) > 1 {
					break
				}
				if err := b.Publish(ctx, numberChosen.New(fmt.Sprint("aggregate-", n), numberPayload{number})); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for n, p := range broker.partitions {
		broker.move(p, consumers[n%2], true)
	}
	for range moves {
		pass(time.Duration(upTo(40)) * time.Millisecond)
		broker.move(broker.partitions[upTo(3)], consumers[upTo(2)], chance(60))
	}
	for deadline := time.Now().Add(10 * time.Minute); broker.unfinished()+lanes.held() > 0 && time.Now().Before(deadline); {
		pass(50 * time.Millisecond)
	}
	for _, stop := range stops {
		stop()
	}
	mu.Lock()
	defer mu.Unlock()
	syncDead()
	for n := range aggregates {
		for number := range perAggregate {
			key := fmt.Sprint("aggregate-", n, "/", number)
			switch ends := handled[key]; {
			case ends == 0 && !dead[key]:
				problem("%s was neither handled nor dead-lettered", key)
			case ends > 0 && dead[key] && moves == 0:
				// After a change of owner a dead letter whose settlement was lost
				// comes again, like any other event.
				problem("%s was handled and dead-lettered", key)
			case ends > 1:
				problem("%s was handled %d times", key, ends)
			}
		}
	}
	return problems
}
