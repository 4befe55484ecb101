package outbox

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/internal/calls"
	"github.com/tidings-go/tidings/internal/share"
)

// Relay sends what an outbox holds. Make it with [NewRelay] and call Run; any
// number may run on one outbox, in any number of processes.
type Relay struct {
	queue   Queue
	forward Forward
	o       Options
	holder  string
	share   *share.Share
	workers []*worker
	rate    rate

	mu     sync.Mutex
	leases map[int]driver.Lease // by slot
	unled  time.Time            // since when the leases cannot be asked, or zero
}

// Forward gives messages to a driver, such as [tidings.Bus.Forward]: nil when all
// are stored, a *driver.PublishError where more is known.
type Forward func(ctx context.Context, messages []driver.Message) error

// NewRelay makes a relay that sends to forward, or returns every complaint.
func NewRelay(queue Queue, forward Forward, options *Options) (*Relay, error) {
	o := options.withDefaults()
	errs := o.complaints()
	if queue == nil {
		errs = append(errs, errors.New("the queue is nil"))
	}
	if forward == nil {
		errs = append(errs, errors.New("forward is nil"))
	}
	id, err := uuid.NewV7()
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, fmt.Errorf("outbox: relay: %w", err)
	}
	r := &Relay{queue: queue, forward: forward, o: o, holder: id.String(), leases: make(map[int]driver.Lease)}
	names := make([]string, Slots)
	for slot := range names {
		names[slot] = LeaseName(slot)
	}
	for n := range o.Workers {
		r.workers = append(r.workers, &worker{relay: r, number: n, wake: make(chan struct{}, 1), sick: make(map[string]*sickness)})
	}
	r.share = share.New(share.Options{
		Leases: queue, Group: o.Group, Holder: r.holder, Names: map[string][]string{"slots": names}, TTL: o.LeaseTime,
		Adopt: r.adopt, Drain: func(driver.Lease) {}, GiveUp: r.giveUp, Lost: func(leases []driver.Lease, _ string) { r.remove(leases) },
		Joined: r.joined, Failed: r.failed, Stuck: r.stuck,
	})
	return r, nil
}

// Run relays until ctx ends, finishes the sends that are under way, and gives its
// slots up. A database or broker that does not answer is asked again; it returns
// nil. After the end of ctx it returns within two lease times, whatever does not
// answer.
func (r *Relay) Run(ctx context.Context) error {
	var all, renewing sync.WaitGroup
	renew, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	renewing.Go(func() { r.share.Renew(renew) })
	all.Go(func() { r.share.Divide(ctx) })
	wake := r.queue.Wake(ctx)
	if r.o.PollInterval == 0 {
		r.o.PollInterval = time.Second
		if wake == nil {
			r.o.PollInterval = 100 * time.Millisecond
		}
	}
	if wake != nil {
		all.Go(func() { r.listen(wake) })
	}
	if r.o.Keep >= 0 {
		all.Go(func() { r.clean(ctx) })
	}
	for _, w := range r.workers {
		all.Go(func() { w.run(ctx) })
	}
	<-ctx.Done()
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*r.o.LeaseTime)
	defer cancel()
	err := calls.Do(ending, func(context.Context) error {
		all.Wait()
		stop()
		renewing.Wait()
		return nil
	})
	if err != nil {
		r.o.Logger.Warn("outbox: the relay ends while the database or the broker does not answer", "error", err)
	}
	leaving, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(r.o.LeaseTime, 5*time.Second))
	defer cancel()
	if err := r.share.Leave(leaving); err != nil {
		r.o.Logger.Warn("outbox: the relay's slots stay with it until their leases end", "error", err)
	}
	return nil
}

// Rate is how many rows a second this relay has sent in the last minute.
func (r *Relay) Rate() float64 { return r.rate.perSecond() }

func (r *Relay) adopt(_ context.Context, leases []driver.Lease) error {
	r.mu.Lock()
	for _, lease := range leases {
		if slot, err := strconv.Atoi(lease.Name); err == nil {
			r.leases[slot] = lease
		}
	}
	r.mu.Unlock()
	r.wakeAll()
	return nil
}

func (r *Relay) remove(leases []driver.Lease) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, lease := range leases {
		if slot, err := strconv.Atoi(lease.Name); err == nil && r.leases[slot] == lease {
			delete(r.leases, slot)
		}
	}
}

// giveUp hands slots over when what is under way is confirmed.
func (r *Relay) giveUp(leases []driver.Lease) {
	r.remove(leases)
	for _, w := range r.workers {
		w.round.Lock()
		w.round.Unlock() //nolint:staticcheck // it waits for a round that began before
	}
}

// listen wakes the workers when the store says that there is something.
func (r *Relay) listen(wake <-chan struct{}) {
	for range wake {
		r.wakeAll()
	}
}

func (r *Relay) wakeAll() {
	for _, w := range r.workers {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

const (
	cleanEvery = time.Minute
	cleanBatch = 1000
	cleanGroup = "clean" // the lease of the one that cleans
)

// clean deletes old sent rows, by one instance at a time and a little at once.
func (r *Relay) clean(ctx context.Context) {
	for pause(ctx, cleanEvery) {
		held, err := calls.Within(ctx, r.o.LeaseTime, func(ctx context.Context) ([]driver.Lease, error) {
			return r.queue.Acquire(ctx, cleanGroup, r.holder, []string{r.o.Group}, 1, cleanEvery)
		})
		if err != nil || len(held) == 0 {
			continue // another does, or nobody can
		}
		for began := time.Now(); time.Since(began) < cleanEvery/2; {
			n, err := calls.Within(ctx, cleanEvery/2, func(ctx context.Context) (int, error) { return r.queue.Clean(ctx, r.o.Keep, cleanBatch) })
			if err != nil || n < cleanBatch || !pause(ctx, 50*time.Millisecond) {
				break
			}
		}
		_ = calls.DoWithin(context.WithoutCancel(ctx), time.Second, func(ctx context.Context) error {
			return r.queue.Release(ctx, cleanGroup, r.holder, []string{r.o.Group}) // else it ends by itself
		})
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// rate counts what was sent in the last minute.
type rate struct {
	mu      sync.Mutex
	seconds [60]int64
	at      int64
}

func (r *rate) add(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.turn()
	r.seconds[r.at%60] += int64(n)
}

func (r *rate) turn() {
	now := time.Now().Unix()
	for r.at = max(r.at, now-60); r.at < now; {
		r.at++
		r.seconds[r.at%60] = 0
	}
}

func (r *rate) perSecond() float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.turn()
	var sum int64
	for _, n := range r.seconds {
		sum += n
	}
	return float64(sum) / 60
}
